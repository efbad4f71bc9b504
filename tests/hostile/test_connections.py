"""The wire, by hand, against the real service: what is no request, or wants to be two, or never ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_assets.connections import MAX_HEAD_BYTES, MAX_HEAD_FIELDS
from tests import images
from tests.faults.process import ServiceProcess, temporary_files, until, usage
from tests.hostile.counting import tried
from tests.hostile.raw import HOST, Connection, exchange, get, post

KEY = "a-key-of-more-than-sixteen-characters"
MiB = 1024 * 1024
LIVE = get("/health/live")
SMUGGLED = get("/smuggled")
"""Stands behind what is refused: nobody may ever take it for a request of its own."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path_factory.mktemp("connections")) as service:
        yield service


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One that waits for nobody longer than a second."""
    with ServiceProcess(tmp_path_factory.mktemp("hasty"), ASSETS_BODY_TIMEOUT_SECONDS="1") as service:
        yield service


def serves(service: ServiceProcess) -> bool:
    """Whether the next one is served."""
    (answer,) = exchange(service.address, get("/health/ready", b"Connection: close"))
    return answer.status == 200


def chunked(body: bytes) -> bytes:
    return post(body, b"Transfer-Encoding: chunked")


# ── Requests that servers and proxies might read differently ────────────────────────────────────────────────────────

MALFORMED = {
    "a length and chunks": post(b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks and a length": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two lengths": post(b"abcdef", b"Content-Length: 5", b"Content-Length: 6"),
    "the same length twice": post(b"abcde", b"Content-Length: 5", b"Content-Length: 5"),
    "a list of lengths": post(b"abcde", b"Content-Length: 5, 5"),
    "a length with a sign": post(b"abcde", b"Content-Length: +5"),
    "a negative length": post(b"abcde", b"Content-Length: -5"),
    "a length in hexadecimal": post(b"abcde", b"Content-Length: 0x5"),
    "a length beyond all numbers": post(b"abcde", b"Content-Length: 99999999999999999999999"),
    "an unknown coding": post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "chunked not the last coding": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, identity"),
    "chunked and another": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"),
    "a coding behind a control character": post(b"0\r\n\r\n", b"Transfer-Encoding: \x0bchunked"),
    "a space before the colon": post(b"abcde", b"Content-Length : 5"),
    "a folded line": get("/health/live", b"X-A: b", b" c"),
    "a folded first line": b"GET /health/live HTTP/1.1\r\n " + HOST + b"\r\n",
    "line feeds alone": b"GET /health/live HTTP/1.1\nHost: 127.0.0.1\n\n",
    "a line feed in a value": get("/health/live", b"X-A: b\nX-B: c"),
    "a carriage return in a value": get("/health/live", b"X-A: b\rX-B: c"),
    "NUL in a value": get("/health/live", b"X-A: b\0c"),
    "NUL in a name": get("/health/live", b"X\0A: b"),
    "NUL in the target": get("/health/\0live"),
    "a field without a name": get("/health/live", b": b"),
    "a field without a colon": get("/health/live", b"junk"),
    "no Host": get("/health/live", host=b""),
    "two Hosts": get("/health/live", host=HOST + b"Host: evil.example\r\n"),
    "the same Host twice": get("/health/live", host=HOST * 2),
    "another's address as the target": get("http://evil.example/health/live"),
    "another's address without a path": get("http://evil.example"),
    "another's address with a query": get("http://evil.example?x"),
    "an address with a user": get("http://a:b@127.0.0.1/health/live"),
    "a fragment": get("/health/live#/../x"),
    "a target that is no path": get("health/live"),
    "bytes beyond ASCII in the target": b"GET /health/\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method nobody knows": b"BREW /pot HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": b"GET / ICE/1.0\r\n" + HOST + b"\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "a chunk's size that is no number": chunked(b"zz\r\nabc\r\n0\r\n\r\n"),
    "a chunk's size beyond all numbers": chunked(b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "a chunk's size with a sign": chunked(b"+3\r\nabc\r\n0\r\n\r\n"),
    "chunks with line feeds alone": chunked(b"3\nabc\n0\n\n"),
    "a chunk longer than it says": chunked(b"3\r\nabcd\r\n0\r\n\r\n"),
    "a line feed in a chunk's extension": chunked(b"3;a=b\nGET\r\nabc\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("shape", MALFORMED)
def test_what_could_be_read_in_two_ways_is_refused_with_all_that_follows(service: ServiceProcess, shape: str) -> None:
    with tried("shapes of requests"), Connection(service.address) as connection:
        connection.send(MALFORMED[shape] + SMUGGLED)
        (answer,) = connection.answers()
        answer.problem(400, "malformed_request")
        assert answer.headers["connection"] == "close"
        assert "/smuggled" not in service.text
    assert serves(service)


def test_a_message_of_http_1_0_ends_its_connection_whatever_its_framing(service: ServiceProcess) -> None:
    request = chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0") + SMUGGLED
    assert [answer.status for answer in exchange(service.address, request)] == [422]
    (answer,) = exchange(service.address, b"GET /health/live HTTP/1.0\r\n" + HOST + b"\r\n" + SMUGGLED)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert "/smuggled" not in service.text


@pytest.mark.parametrize(
    "lie", [b"Host: evil.example", b"Authorization: Bearer " + KEY.encode(), b"X-Request-ID: evil"]
)
def test_a_trailer_is_no_header(service: ServiceProcess, lie: bytes) -> None:
    body = b"3\r\nabc\r\n0\r\n" + lie + b"\r\n\r\n"
    request = chunked(body)
    with Connection(service.address) as connection:
        connection.send(request)
        answer = connection.answer()
    answer.problem(415, "unsupported_image")
    assert answer.headers["x-request-id"] != "evil"


def test_an_upgrade_is_passed_over_and_ends_the_connection(service: ServiceProcess) -> None:
    offer = get("/health/live", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    for request in (offer, get("/health/live", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x")):
        with Connection(service.address) as connection:
            connection.send(request + SMUGGLED)
            (answer,) = connection.answers()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
    image = images.png(8, 6)
    framing = (b"Content-Length: %d" % len(image), b"Connection: Upgrade", b"Upgrade: h2c")
    for at in (None, -len(image), -3):  # as Java's client sends its first request, in one piece or two
        with Connection(service.address) as connection:
            request = post(image, *framing)
            connection.send(request[:at])
            connection.send((request[at:] if at else b"") + SMUGGLED)
            (answer,) = connection.answers()
            assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert "/smuggled" not in service.text


# ── Requests that are right ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("http://127.0.0.1/health/live"), 200),
        (get("/health/live", b"X-A:\tb "), 200),
        (get("/health/live", b"X-Empty:"), 200),
        (b"\r\n" + LIVE, 200),
        (LIVE.replace(b"GET", b"PURGE"), 405),
        (LIVE.replace(b"GET", b"TRACE"), 405),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (LIVE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nabcde"), 200),
    ],
    ids=["its own address", "a tab", "an empty value", "an empty line first", "purge", "trace", "*", "a GET's body"],
)
def test_what_is_rare_and_right_is_answered_and_the_connection_stays(
    service: ServiceProcess, request_: bytes, status: int
) -> None:
    with Connection(service.address) as connection:
        for _again in range(2):
            connection.send(request_)
            assert connection.answer().status == status
        connection.send(LIVE)
        assert connection.answer().status == 200


def test_requests_sent_at_once_are_answered_in_their_order(service: ServiceProcess) -> None:
    image = images.png(8, 6)
    upload = post(image, b"Content-Length: %d" % len(image))
    with Connection(service.address) as connection:
        connection.send((upload + LIVE + get("/nowhere")) * 10)
        assert [connection.answer().status for _ in range(30)] == [201, 200, 404] * 10


def test_what_is_broken_behind_good_requests_takes_nothing_from_their_answers(service: ServiceProcess) -> None:
    image = images.png(8, 6)
    upload = post(image, b"Content-Length: %d" % len(image))
    for broken in (b"GARBAGE\r\n\r\n", get("/health/live", host=b""), get("/" + "x" * 2 * MAX_HEAD_BYTES)):
        with Connection(service.address) as connection:
            connection.send(upload + broken + SMUGGLED)
            assert [answer.status for answer in connection.answers()] == [201]
        with Connection(service.address) as connection:
            connection.send(LIVE)
            assert connection.answer().status == 200
            connection.send(broken + SMUGGLED)
            assert [answer.status for answer in connection.answers()] in ([400], [431])
    assert "/smuggled" not in service.text


VALID = [
    LIVE,
    get("/api/v1/assets?limit=1"),
    post(b"abcde", b"Content-Length: 5"),
    chunked(b"3\r\nabc\r\n0\r\nX: y\r\n\r\n"),
]


@settings(max_examples=300)
@given(
    parts=st.lists(st.sampled_from(VALID), min_size=1, max_size=3),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.integers(0, 3),
            st.sampled_from(
                [b"", b"\r", b"\n", b"\r\n", b"\0", b" ", b":", b"\t", b"\xff", b"0", b"Content-Length: 3\r\n"]
            )
            | st.binary(max_size=4),
        ),
        max_size=4,
    ),
)
def test_whatever_comes_each_answer_is_whole_and_none_is_a_bug(
    service: ServiceProcess, parts: list[bytes], edits: list[tuple[float, int, bytes]]
) -> None:
    request = bytearray(b"".join(parts))
    for where, removed, inserted in edits:
        at = int(where * len(request))
        request[at : at + removed] = inserted
    with tried("streams of bytes on a connection"), Connection(service.address) as connection:
        connection.send(bytes(request))
        connection.has_answer(0.02)  # whoever goes away before is answered no more
        connection.end()
        answers = list(connection.answers())
        assert len(answers) <= len(parts) + len(edits)
        for answer in answers:
            assert answer.status < 500
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.status < 400 or answer.headers["content-type"] == "application/problem+json"


# ── Heads without an end ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "head",
    [
        get("/" + "x" * 10 * MiB),
        get("/health/live", b"X: " + b"y" * 10 * MiB),
        get("/health/live", b"y" * 10 * MiB + b": x"),
        get("/health/live", *(b"X-%d: y" % number for number in range(500_000))),
        b"GET " + b" " * 10 * MiB,
        b"\r\n" * 5 * MiB,
        chunked(b"3\r\nabc\r\n0\r\nX: " + b"y" * 10 * MiB),
        chunked(b"3;" + b"y" * 10 * MiB),
    ],
    ids=["target", "value", "name", "fields", "spaces", "empty lines", "trailer", "extension"],
)
def test_a_head_of_megabytes_is_refused_before_it_is_there(service: ServiceProcess, head: bytes) -> None:
    assert serves(service)
    before = usage(service.pid).memory
    with tried("heads beyond the limits"), Connection(service.address) as connection:
        assert not connection.send(head), "it took all of it"
        assert [answer.status for answer in connection.answers()] in ([], [400], [431])
        assert usage(service.pid).memory - before < 8 * MiB
    assert serves(service)


def test_a_head_is_held_to_its_bytes_and_fields_exactly(service: ServiceProcess) -> None:
    fields = [b"X-%d: y" % number for number in range(MAX_HEAD_FIELDS - 1)]  # and a Host
    room = MAX_HEAD_BYTES - len("/health/live") - len("Host127.0.0.1") - len("X")
    for most in ([*fields], [b"X: " + b"y" * room]):
        with Connection(service.address) as connection:
            connection.send(get("/health/live", *most))
            assert connection.answer().status == 200
    for too_much in ([*fields, b"Y: z"], [b"X: " + b"y" * (room + 1)]):
        with Connection(service.address) as connection:
            connection.send(get("/health/live", *too_much))
            connection.answer().problem(431, "head_too_large")
            assert connection.is_closed()


# ── Callers who take their time ─────────────────────────────────────────────────────────────────────────────────────


def drip(connection: Connection, data: bytes) -> bool:
    """A byte at a time until the service will not have more; whether it got so far."""
    for at in range(len(data)):
        if not connection.send(data[at : at + 1]):
            return True
        if connection.has_answer(0.02):
            return True
    return False


SLOW = {
    "a head": (b"", get("/health/live", b"X: " + b"y" * 500)),
    "empty lines": (b"", b"\r\n" * 250),
    "the next head": (LIVE, get("/health/live", b"X: " + b"y" * 500)),
}


@pytest.mark.parametrize("what", SLOW)
def test_a_head_that_drips_is_cut(hasty: ServiceProcess, what: str) -> None:
    before, slowly = SLOW[what]
    with tried("slow callers"), Connection(hasty.address) as connection:
        if before:
            connection.send(before)
            assert connection.answer().status == 200
        assert drip(connection, slowly), "it waited to the end"
        connection.answer().problem(408, "head_timeout")
        assert connection.is_closed()


def test_a_caller_who_says_nothing_is_let_go_without_a_word(hasty: ServiceProcess) -> None:
    with tried("slow callers"), Connection(hasty.address) as connection:
        assert list(connection.answers()) == []


@pytest.mark.parametrize("half", [LIVE[:-2], LIVE + LIVE[:20]])
def test_half_a_head_is_told_so(hasty: ServiceProcess, half: bytes) -> None:
    with tried("slow callers"), Connection(hasty.address) as connection:
        connection.send(half)
        *_, last = connection.answers()
        if len(half) < len(LIVE):
            last.problem(408, "head_timeout")
        else:
            assert last.status == 200  # uvicorn waits five seconds for the rest of the second, and closes


def test_the_rest_of_a_body_nobody_wants_is_not_waited_for_long(hasty: ServiceProcess) -> None:
    with tried("slow callers"), Connection(hasty.address) as connection:
        connection.send(post(b"", b"Content-Length: 100000000", kind="text/plain"))
        connection.answer().problem(415, "unsupported_media_type")
        assert drip(connection, bytes(500)), "it went on reading"
        assert connection.is_closed()


@pytest.mark.parametrize(
    "begin",
    [
        post(b"", b"Content-Length: 1000000"),
        post(b"--x\r\n", b"Content-Length: 1000000", kind="multipart/form-data; boundary=x"),
        post(b"", b"Transfer-Encoding: chunked"),
        post(b"{", b"Content-Length: 1000000", kind="application/json"),
    ],
    ids=["raw", "form", "chunked", "json"],
)
def test_a_body_that_stops_is_told_so(hasty: ServiceProcess, begin: bytes) -> None:
    with tried("slow callers"), Connection(hasty.address) as connection:
        connection.send(begin)
        connection.answer().problem(408, "body_timeout")


def test_an_answer_that_nobody_reads_is_broken_off(hasty: ServiceProcess) -> None:
    image = images.with_film(images.jpeg(8, 8)) + bytes(30 * MiB)
    with hasty.client() as client:
        asset = client.post("/api/v1/assets", content=image, headers={"Content-Type": "image/jpeg"}).json()
    before = hasty.open_files()
    path = asset["url"].removeprefix(hasty.url)
    connections = [Connection(hasty.address, receive_buffer=4096) for _ in range(5)]
    try:
        for connection in connections:
            connection.send(get(path))
            assert connection.has_answer(10)
        with tried("slow callers"):
            until(lambda: hasty.open_files() <= before, of="the end of answers that are not read")
    finally:
        for connection in connections:
            connection.reset()


def test_many_slow_callers_keep_nobody_else_waiting(hasty: ServiceProcess) -> None:
    before = hasty.open_files()
    with tried("slow callers"), ExitStack() as stack:
        callers = [stack.enter_context(Connection(hasty.address)) for _ in range(200)]
        for caller in callers:
            caller.send(b"GET / HT")
        assert serves(hasty)
        for caller in callers:
            caller.answer().problem(408, "head_timeout")
    until(lambda: hasty.open_files() <= before)


def test_callers_who_go_away_leave_no_connection(service: ServiceProcess) -> None:
    before = service.open_files()
    for begin in (b"", b"GET ", LIVE[:-2], post(b"abc", b"Content-Length: 10000"), chunked(b"3\r\nab"), LIVE * 50):
        connection = Connection(service.address)
        connection.send(begin)
        connection.reset()
    until(lambda: service.open_files() <= before, of="the end of connections that were reset")
    assert serves(service)


# ── Forms without an end ────────────────────────────────────────────────────────────────────────────────────────────


def part(name: str, content: bytes = b"x", *lines: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n' % name.encode()
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + content + b"\r\n"


FORMS = {
    "files": (part("file") * 300_000, 422),
    "a batch's files": (part("files") * 300_000, 422),
    "fields nobody asked for": (part("more") * 300_000, 422),
    "metadata": (part("metadata", b"{}") * 300_000, 422),
    "metadata of megabytes": (part("metadata", b" " * 10 * MiB), 422),
    "a part's fields": (part("file", b"x", *(b"X-%d: y" % number for number in range(500_000))), 400),
    "a part's field of megabytes": (part("file", b"x", b"X: " + b"y" * 10 * MiB), 400),
    "a name of megabytes": (part("n" * 10 * MiB), 400),
    "a preamble of megabytes": (b"y" * 10 * MiB, 400),
    "empty lines of megabytes": (b"\r\n" * 5 * MiB, 422),
    "nested forms": (part("file", part("file", part("file"))) * 100_000, 422),
}


@pytest.mark.parametrize("what", FORMS)
def test_a_form_of_too_much_is_refused_as_soon_as_it_shows(service: ServiceProcess, what: str) -> None:
    body, status = FORMS[what]
    path = "/api/v1/assets/batch" if "batch" in what else "/api/v1/assets"
    framing = (b"Content-Length: %d" % (len(body) + 9), b"Connection: close")
    assert serves(service)
    before = usage(service.pid).memory
    with tried("forms of too much"), Connection(service.address) as connection:
        connection.send(post(body + b"--x--\r\n\r\n", *framing, path=path, kind="multipart/form-data; boundary=x"))
        answer = connection.answer()
        answer.problem(status, "invalid_parameter" if status == 422 else "malformed_body")
        assert usage(service.pid).memory - before < 16 * MiB
    with service.client() as client:
        assert client.get("/api/v1/stats").json()["deletions_owed"] == 0
    assert not temporary_files(service.data)
