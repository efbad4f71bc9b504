"""Keys of callers over HTTP: who may do what, and who sees what."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests import images
from tests.conftest import Service, StartService, problem_of

ROOT = {"Authorization": "Bearer root-key-0123456789"}
NOBODY = "019aa0c2-0000-7000-8000-000000000000"
HOLIDAY = images.jpeg(40, 30)


@pytest.fixture
async def service(start_service: StartService) -> AsyncIterator[Service]:
    async with start_service(api_keys=(SecretStr("root-key-0123456789"),)) as running:
        yield running


async def make(service: Service, *scopes: str, owner: str | None = None, **more: Any) -> dict[str, str]:
    body = {"name": "test", "scopes": list(scopes), **more, **({"owner": owner} if owner else {})}
    answer = await service.client.post("/api/v1/keys", json=body, headers=ROOT)
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['key']}"}


async def call(service: Service, method: str, path: str, key: dict[str, str], **more: Any) -> httpx.Response:
    return await service.client.request(method, path, headers=key, **more)


async def upload(service: Service, key: dict[str, str], **query: Any) -> httpx.Response:
    return await call(service, "POST", "/api/v1/assets", key, params=query, files={"file": ("a.jpg", HOLIDAY)})


async def test_a_key_is_shown_once_and_listed_without_its_secret(service: Service) -> None:
    wanted = {"name": "website", "scopes": ["assets:write", "assets:read"], "owner": "ann"}
    answer = await service.client.post("/api/v1/keys", json=wanted, headers=ROOT)
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    secret = made.pop("key")
    assert secret.startswith("sa_")
    expected = {"name": "website", "owner": "ann", "scopes": ["assets:read", "assets:write"], "expires_at": None}
    assert expected.items() <= made.items()
    listed = await service.client.get("/api/v1/keys", headers=ROOT)
    assert listed.json() == {"keys": [made]}
    assert secret not in listed.text


async def test_a_revoked_key_is_refused_from_then_on(service: Service) -> None:
    key = await make(service, "assets:read")
    assert (await call(service, "GET", "/api/v1/assets", key)).status_code == 200
    (listed,) = (await service.client.get("/api/v1/keys", headers=ROOT)).json()["keys"]
    assert (await call(service, "DELETE", f"/api/v1/keys/{listed['id']}", ROOT)).status_code == 204
    problem_of(await call(service, "GET", "/api/v1/assets", key), 401, "unauthorized")
    for key_id in (listed["id"], NOBODY, "x"):
        problem_of(await call(service, "DELETE", f"/api/v1/keys/{key_id}", ROOT), 404, "key_not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": ["assets:read"]}, "name"),
        ({"name": " ", "scopes": ["assets:read"]}, "name"),
        ({"name": "a\nb", "scopes": ["assets:read"]}, "name"),
        ({"name": "x" * 201, "scopes": ["assets:read"]}, "name"),
        ({"name": "x"}, "scopes"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["everything"]}, "scopes"),
        ({"name": "x", "scopes": ["admin"], "owner": ""}, "owner"),
        ({"name": "x", "scopes": ["admin"], "owner": "a b"}, "owner"),
        ({"name": "x", "scopes": ["admin"], "owner": "x" * 65}, "owner"),
        ({"name": "x", "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "scopes": ["admin"], "key": "mine"}, "key"),
    ],
)
async def test_what_is_no_key_is_not_made(service: Service, body: dict[str, Any], field: str) -> None:
    problem = problem_of(await service.client.post("/api/v1/keys", json=body, headers=ROOT), 422, "invalid_parameter")
    assert problem["errors"][0]["loc"][:2] == ["body", field]
    assert (await service.client.get("/api/v1/keys", headers=ROOT)).json() == {"keys": []}


async def test_each_scope_opens_its_own_doors_and_no_other(service: Service) -> None:
    asset = (await upload(service, ROOT)).json()
    here = f"/api/v1/assets/{asset['id']}"
    doors: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
        "assets:read": [
            ("GET", "/api/v1/assets", {}),
            ("GET", here, {}),
            ("GET", f"{here}/content", {}),
            ("GET", "/api/v1/assets/export", {}),
            ("POST", f"{here}/signed-url", {}),
        ],
        "assets:write": [
            ("POST", "/api/v1/assets", {"files": {"file": ("a.jpg", HOLIDAY)}}),
            ("POST", "/api/v1/assets/batch", {"files": {"files": ("a.jpg", HOLIDAY)}}),
            ("PATCH", here, {"json": {"tags": ["a"]}}),
            ("POST", f"{here}/variants?sizes=8", {}),
            ("POST", f"{here}/move?storage=memory", {}),
        ],
        "admin": [
            ("GET", "/api/v1/keys", {}),
            ("POST", "/api/v1/keys", {"json": {"name": "x", "scopes": ["admin"]}}),
            ("DELETE", f"/api/v1/keys/{NOBODY}", {}),
            ("POST", "/api/v1/maintenance/retention", {}),
        ],
        "assets:delete": [("POST", "/api/v1/assets/delete", {"json": {"ids": [NOBODY]}}), ("DELETE", here, {})],
    }
    for scope, own in doors.items():
        others = [other for other in doors if other != scope]
        key, without = await make(service, scope), await make(service, *(set(others) - {"admin"} or {"assets:read"}))
        for method, path, more in own:
            problem_of(await call(service, method, path, without, **more), 403, "forbidden")
            problem_of(await service.client.request(method, path, **more), 401, "unauthorized")
        for method, path, more in own:
            assert (await call(service, method, path, key, **more)).status_code in {200, 201, 204, 404}, (method, path)


async def test_a_key_without_leave_is_refused_before_its_body_is_read(service: Service) -> None:
    key = await make(service, "assets:read")
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        sent += 1
        yield b"x"

    answer = await service.client.post("/api/v1/assets", content=body(), headers={**key, "Content-Type": "image/jpeg"})
    problem_of(answer, 403, "forbidden")


async def test_owners_see_their_own_assets_only_and_an_admin_all(service: Service) -> None:
    everything = ("assets:read", "assets:write", "assets:delete")
    ann, bob = [await make(service, *everything, owner=owner) for owner in ("ann", "bob")]
    also_ann = await make(service, *everything, owner="ann")
    asset = (await upload(service, ann, visibility="private", tags="trip")).json()
    here = f"/api/v1/assets/{asset['id']}"
    for key, sees in ((ann, [asset["id"]]), (also_ann, [asset["id"]]), (bob, []), (ROOT, [asset["id"]])):
        for query in ({}, {"tag": "trip"}, {"visibility": "private"}, {"storage": "local"}, {"q": "A"}):
            page = (await call(service, "GET", "/api/v1/assets", key, params=query)).json()
            assert [item["id"] for item in page["items"]] == sees
    for key, owner, sees in ((ROOT, "ann", [asset["id"]]), (ROOT, "bob", []), (ann, "ann", [asset["id"]])):
        page = (await call(service, "GET", "/api/v1/assets", key, params={"owner": owner})).json()
        assert [item["id"] for item in page["items"]] == sees
    problem_of(await call(service, "GET", "/api/v1/assets", bob, params={"owner": "ann"}), 403, "forbidden")
    nothing = (await call(service, "GET", f"/api/v1/assets/{NOBODY}", bob)).json()
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", here, {}),
        ("GET", f"{here}/content", {}),
        ("PATCH", here, {"json": {"tags": []}}),
        ("POST", f"{here}/signed-url", {}),
        ("POST", f"{here}/variants?sizes=8", {}),
        ("POST", f"{here}/move?storage=memory", {}),
        ("DELETE", here, {}),
    ]
    for method, path, more in calls:
        problem = problem_of(await call(service, method, path, bob, **more), 404, "asset_not_found")
        assert problem["detail"] == nothing["detail"], "no answer says that another's asset exists"
    results = (await call(service, "POST", "/api/v1/assets/delete", bob, json={"ids": [asset["id"]]})).json()["results"]
    assert [result["status"] for result in results] == ["not_found"]
    assert (await call(service, "GET", "/api/v1/assets/export", bob)).content == b""
    assert (await call(service, "PATCH", here, ROOT, json={"tags": ["seen"]})).status_code == 200
    twice = [await call(service, "POST", f"{here}/variants?sizes=8", {**ROOT, "Idempotency-Key": "k"}) for _ in "12"]
    assert [answer.status_code for answer in twice] == [200, 200]
    assert (await call(service, "DELETE", here, also_ann)).status_code == 204


async def test_an_idempotency_key_is_its_owners(service: Service) -> None:
    ann, bob, also_ann = [await make(service, "assets:write", owner=owner) for owner in ("ann", "bob", "ann")]
    first, other, again = [await upload(service, {**key, "Idempotency-Key": "k"}) for key in (ann, bob, also_ann)]
    assert first.json()["id"] != other.json()["id"]
    assert again.json()["id"] == first.json()["id"]


async def test_in_open_mode_a_key_is_no_more_than_it_says(start_service: StartService) -> None:
    async with start_service() as service:
        answer = await service.client.post("/api/v1/keys", json={"name": "x", "scopes": ["assets:read"]})
        key = {"Authorization": f"Bearer {answer.json()['key']}"}
        assert (await call(service, "GET", "/api/v1/assets", key)).status_code == 200
        problem_of(await upload(service, key), 403, "forbidden")
        assert (await upload(service, {})).status_code == 201


async def test_statistics_take_an_admin_unless_asked_from_this_machine(service: Service) -> None:
    reader = await make(service, "assets:read")
    away = httpx.ASGITransport(service.client._transport.app, client=("203.0.113.7", 1))  # type: ignore[attr-defined]
    async with httpx.AsyncClient(transport=away, base_url="http://127.0.0.1:8000") as elsewhere:
        for path in ("/api/v1/stats", "/metrics"):
            assert (await service.client.get(path)).status_code == 200
            problem_of(await elsewhere.get(path, headers=reader), 403, "forbidden")
            problem_of(await elsewhere.get(path), 401, "unauthorized")
            assert (await elsewhere.get(path, headers=ROOT)).status_code == 200
