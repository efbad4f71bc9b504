"""The Postman collection: a story through the whole API, with what has to hold after each step.

    python -m tests.postman postman

writes `postman/` from the API's description and from `story`; so does `make openapi`, and tests hold it to both. What a
step calls, its parameters and what they mean come from the description; the story says what is sent, and what has to
come of it. Newman plays it in `tests/live/test_postman.py`.

To show a new operation, add a `Step` to the folder of `story.STORY` where it belongs:

    Step(
        "Count them",                                   # its name, once in the whole story
        "GET /api/v1/assets/count",                     # as the description has it: method and path
        query={"tag": "{{tag}}"},                       # what is sent; every parameter is shown, these are switched on
        checks={"there are two": "expect(body.count).to.equal(2)"},
        keeps={"count": "body.count"},                  # for later steps, as {{count}}
    )

`status` is 200 unless it is said, and checked; so is the shape of a `problem`. `body` is the answer where it is JSON,
`answer` Postman's response, `kept("name")` what an earlier step kept. A test fails as long as the description has an
operation that no step calls.
"""
