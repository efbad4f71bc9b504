"""What people can do on the pages, in a real browser in front of the real service."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests import images
from tests.faults.process import ServiceProcess, until
from tests.live.browser import Visit, serious_faults
from tests.live.browser import api as api
from tests.live.browser import browser as browser
from tests.live.browser import running as running
from tests.live.browser import visit as visit
from tests.live.seaweed import S3Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

HOLIDAY = images.jpeg(900, 600, seed=3)
KEY = "the-key-of-this-service"


def expect(locator: Locator) -> Any:
    from playwright.sync_api import expect as wait_for

    return wait_for(locator)


def file(name: str, content: bytes = HOLIDAY) -> Any:
    return {"name": name, "mimeType": "image/jpeg", "buffer": content}


def choose(page: Page, *files: Any) -> None:
    page.locator("#picker").set_input_files(list(files))


def tiles(page: Page) -> Locator:
    return page.locator("#grid > li:not([hidden]) .tile")


def stored(api: httpx.Client, name: str = "holiday.jpg", **query: Any) -> Any:
    answer = api.post(
        "/assets", params={"sizes": "400,100x100", "fit": "cover"} | query, files={"file": (name, HOLIDAY)}
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


def open_first(page: Page) -> Locator:
    tiles(page).first.click()
    detail = page.locator("#detail")
    expect(detail).to_be_visible()
    return detail


def clipboard(page: Page) -> str:
    return str(page.evaluate("navigator.clipboard.readText()"))


# ── Uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_several_files_are_uploaded_as_was_chosen(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    with visit(running.url) as page:
        expect(page.locator("#empty")).to_contain_text("No images yet")
        page.get_by_role("radio", name="Private").check()
        page.get_by_label("responsive").uncheck()
        page.get_by_label("thumbnail").check()
        page.get_by_label("More sizes").fill("320, x90")
        page.get_by_label("Made as").select_option("webp")
        page.get_by_label("Tags").fill("trip, berlin")
        choose(page, file("one.jpg"), file("two.jpg", images.jpeg(300, 500)))
        expect(page.locator("#queue [data-state=stored]")).to_have_count(2)
        expect(tiles(page)).to_have_count(2)
        expect(page.locator("#grid .sharp")).to_have_count(2)
    found = api.get("/assets").json()["items"]
    assert {asset["filename"] for asset in found} == {"one.jpg", "two.jpg"}
    for asset in found:
        assert (asset["visibility"], asset["tags"]) == ("private", ["trip", "berlin"])
        assert [variant["size"] for variant in asset["variants"]] == ["150x150", "320", "x90"]
        assert {variant["content_type"] for variant in asset["variants"]} == {"image/webp"}
        assert asset["thumbhash"]


def test_the_progress_of_a_file_is_seen(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    with visit(running.url) as page:
        network = page.context.new_cdp_session(page)
        speed = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 400_000}
        network.send("Network.emulateNetworkConditions", speed)
        choose(page, file("large.png", images.png(1000, 700)))
        bar = page.get_by_label("Progress of large.png")
        expect(bar).to_have_attribute("value", re.compile(r"0\.\d+"))
        expect(page.locator("#queue")).to_contain_text(re.compile(r"Sending, \d+ %"))
        network.send("Network.emulateNetworkConditions", speed | {"uploadThroughput": -1})
        expect(page.locator("#queue [data-state=stored]")).to_have_count(1)


def test_files_are_dropped_and_pasted(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    with visit(running.url) as page:
        given = """([kind, name, content]) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
          data.items.add(new File([bytes], name, { type: "image/jpeg" }));
          const options = { bubbles: true, cancelable: true };
          if (kind === "paste") {
            document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: data }));
          } else {
            for (const type of ["dragenter", "dragover", "drop"]) {
              document.body.dispatchEvent(new DragEvent(type, { ...options, dataTransfer: data }));
            }
          }
        }"""
        content = base64.b64encode(HOLIDAY).decode()
        page.evaluate(given, ["drop", "dropped.jpg", content])
        page.evaluate(given, ["paste", "pasted.jpg", content])
        expect(page.locator("#queue [data-state=stored]")).to_have_count(2)
        expect(page.locator("#drop")).to_be_hidden()
    assert {asset["filename"] for asset in api.get("/assets").json()["items"]} == {"dropped.jpg", "pasted.jpg"}


def test_an_error_is_shown_in_the_services_own_words(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    with visit(running.url) as page:
        choose(page, file("notes.jpg", b"no image at all\n" * 9), file("good.jpg"))
        failed = page.locator("#queue [data-state=failed]")
        expect(failed).to_contain_text("Unsupported image")
        expect(failed).to_contain_text("this looks like text; allowed: JPEG, PNG, WebP, GIF, AVIF")
        expect(failed.get_by_role("alert")).to_be_visible()
        expect(failed.get_by_role("button")).to_have_count(1)  # to try again would not help
        expect(page.locator("#queue [data-state=stored]")).to_have_count(1)
        failed.get_by_role("button", name="Remove").click()
        expect(page.locator("#queue > li")).to_have_count(1)


def test_a_size_that_is_none_is_said_before_anything_is_sent(
    running: ServiceProcess, api: httpx.Client, visit: Visit
) -> None:
    with visit(running.url) as page:
        page.get_by_label("More sizes").fill("wide")
        choose(page, file("one.jpg"))
        assert "not a size" in str(page.get_by_label("More sizes").evaluate("(field) => field.validationMessage"))
        expect(page.locator("#queue > li")).to_have_count(0)


def test_a_file_is_sent_again_under_the_same_key_and_stored_once(
    running: ServiceProcess, api: httpx.Client, visit: Visit
) -> None:
    keys = []

    def answer(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) < 3:
            busy = {"type": "x", "title": "Busy", "status": 503, "code": "busy", "detail": "No worker had room."}
            route.fulfill(status=503, json=busy, headers={"Retry-After": "0"})
        else:
            route.continue_()

    with visit(running.url) as page:
        page.route(re.compile(r"/api/v1/assets\?.*placeholder"), answer)
        choose(page, file("again.jpg"))
        expect(page.locator("#queue [data-state=stored]")).to_have_count(1)
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert len(api.get("/assets").json()["items"]) == 1


# ── The library ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_placeholders_are_there_at_once_and_sharpen(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    stored(api)
    held: list[Route] = []
    with visit("about:blank") as page:
        page.route("**/assets/public/**", lambda route: held.append(route))
        page.goto(running.url)
        expect(page.locator("#grid canvas.placeholder")).to_be_visible()
        expect(page.locator("#grid .sharp")).to_have_count(0)
        painted = "(canvas) => canvas.getContext('2d').getImageData(0, 0, 1, 1).data[3]"
        assert page.locator("#grid canvas.placeholder").evaluate(painted) == 255
        for route in held:
            route.continue_()
        expect(page.locator("#grid .sharp")).to_have_count(1)


def test_a_long_library_is_scrolled_through_and_searched(
    running: ServiceProcess, api: httpx.Client, visit: Visit
) -> None:
    small = images.jpeg(12, 9)
    for number in range(130):
        assert api.post("/assets", files={"file": (f"image {number}.jpg", small)}).status_code == 201
    api.post("/assets", params={"tags": "trip", "storage": "memory"}, files={"file": ("Zürich.jpg", small)})
    with visit(running.url) as page:
        expect(tiles(page).first).to_be_visible()
        assert tiles(page).count() < 131
        for _ in range(3):
            page.mouse.wheel(0, 100_000)
            page.wait_for_load_state("networkidle")
        expect(tiles(page)).to_have_count(131)
        expect(page.locator("#count")).to_have_text("131 images")

        page.get_by_placeholder("Search file names").fill("zürich")
        expect(tiles(page)).to_have_count(1)
        page.reload()
        expect(page.get_by_placeholder("Search file names")).to_have_value("zürich")
        expect(tiles(page)).to_have_count(1)
        page.get_by_role("button", name="Reset").click()
        page.locator("#filter-storage").select_option("memory")
        expect(tiles(page)).to_have_count(1)
        page.locator("#filters [name=visibility]").select_option("private")
        expect(page.locator("#empty")).to_contain_text("Nothing fits these filters")
        page.get_by_role("button", name="Show everything").click()
        page.locator("#filters [name=tag]").fill("trip")
        expect(tiles(page)).to_have_count(1)


def test_an_asset_is_looked_at_with_all_its_sizes(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    asset = stored(api, "a & b.jpg", sizes="400,200,100x100", tags="trip")
    with visit(running.url) as page:
        detail = open_first(page)
        expect(detail.locator(".sides > li")).to_have_count(4)
        expect(detail.locator(".sides .sharp")).to_have_count(4)
        for text in ("900 \u00d7 600", "100 \u00d7 100", asset["sha256"], "trip", "local", "image/jpeg"):
            expect(detail).to_contain_text(text)

        detail.get_by_role("button", name="URL", exact=True).click()
        expect(page.locator("#said")).to_have_text("The URL copied")
        assert clipboard(page) == asset["url"]
        detail.get_by_role("button", name="Markdown").click()
        expect(page.locator("#said")).to_have_text("The Markdown copied")
        assert clipboard(page) == f"![a & b]({asset['url']})"
        detail.get_by_role("button", name="HTML").click()
        expect(page.locator("#said")).to_have_text("The HTML copied")
        assert clipboard(page) == _picture(asset)

        page.keyboard.press("Escape")
        expect(detail).to_be_hidden()
        expect(tiles(page).first).to_be_focused()


def _picture(asset: Any) -> str:
    """Of the sizes those that show the whole: the cropped one is none of them."""
    by_size = {variant["size"]: variant["url"] for variant in asset["variants"]}
    candidates = f"{by_size['200']} 200w, {by_size['400']} 400w, {asset['url']} 900w"
    return (
        f'<picture>\n  <source type="image/jpeg" srcset="{candidates}" sizes="100vw">\n'
        f'  <img src="{asset["url"]}" width="900" height="600" alt="a &amp; b" loading="lazy" decoding="async">\n'
        "</picture>"
    )


@pytest.mark.parametrize("public_access", ["none", "policy"])
def test_images_that_lie_in_a_bucket_are_seen(
    seaweed: S3Server, tmp_path: Path, visit: Visit, public_access: str
) -> None:
    bucket = {
        "ENDPOINT_URL": seaweed.endpoint_url or "",
        "REGION": seaweed.region,
        "BUCKET": seaweed.new_bucket(open_prefix="public/" if public_access == "policy" else None),
        "ACCESS_KEY_ID": seaweed.access_key_id,
        "SECRET_ACCESS_KEY": seaweed.secret_access_key,
        "PUBLIC_ACCESS": public_access,
    }
    environment = {f"ASSETS_S3__{name}": value for name, value in bucket.items()}
    with ServiceProcess(tmp_path, **environment) as service, service.client() as client:
        client.base_url = f"{service.url}/api/v1"
        for visibility in ("public", "private"):
            stored(client, storage="s3", visibility=visibility)
        with visit(service.url) as page:
            expect(page.locator("#grid .sharp")).to_have_count(2)  # the redirects too are within the policy


def test_a_private_link_works_for_its_time_and_nothing_else_does(
    running: ServiceProcess, api: httpx.Client, visit: Visit
) -> None:
    asset = stored(api, visibility="private")
    with visit(running.url) as page:
        expect(page.locator("#grid .sharp")).to_have_count(1)  # the page has signed addresses
        detail = open_first(page)
        detail.locator("#sign [name=size]").select_option("100x100")
        detail.get_by_label("Good for").fill("8")
        detail.get_by_label("Unit").select_option("days")
        detail.get_by_role("button", name="Make link").click()
        assert "At most 7" in str(detail.get_by_label("Good for").evaluate("(field) => field.validationMessage"))
        detail.get_by_label("Good for").fill("2")
        detail.get_by_role("button", name="Make link").click()
        link = detail.get_by_label("The link").input_value()
    answer = httpx.get(link, trust_env=False)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert ".100x100" in link
    assert httpx.get(asset["url"].partition("?")[0], trust_env=False).status_code == 403


def test_visibility_is_changed_and_the_old_address_is_dead(
    running: ServiceProcess, api: httpx.Client, visit: Visit
) -> None:
    asset = stored(api)
    with visit(running.url) as page:
        detail = open_first(page)
        detail.get_by_role("button", name="Make it private").click()
        button = detail.get_by_role("button", name="Make it public")
        expect(button).to_be_focused()
        expect(tiles(page).first.locator(".badge")).to_have_count(1)
        assert httpx.get(asset["url"], trust_env=False).status_code == 404

        api.patch(f"/assets/{asset['id']}", json={"tags": ["changed meanwhile"]})
        button.click()
        expect(page.get_by_role("alert").filter(has_text="Precondition failed")).to_be_visible()
        expect(detail).to_contain_text("changed meanwhile")
        assert api.get(f"/assets/{asset['id']}").json()["visibility"] == "private"


@pytest.mark.parametrize("can", [False, True])
def test_moving_is_offered_where_the_service_can(
    running: ServiceProcess, api: httpx.Client, visit: Visit, can: bool
) -> None:
    asset = stored(api)
    paths: Any = (
        {"/api/v1/assets/{asset_id}/move": {"post": {}}} if can else {"/api/v1/assets/{asset_id}": {"post": {}}}
    )
    asked: list[str] = []

    def move(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(json=asset)

    with visit("about:blank") as page:
        page.route("**/openapi.json", lambda route: route.fulfill(json={"paths": paths}))
        page.route("**/move?**", move)
        with page.expect_response("**/api/v1/storages"):
            page.goto(running.url)
        with page.expect_response("**/openapi.json"):
            open_first(page)
        button = page.locator("#move")
        if not can:
            expect(button).to_be_hidden()
            return
        page.get_by_label("Move to").select_option("memory")
        button.click()
        expect(page.locator("#said")).to_have_text("It lies on memory now")
    assert asked == [f"{running.url}/api/v1/assets/{asset['id']}/move?storage=memory"]


# ── Deleting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_deleting_waits_and_can_be_undone(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    asset = stored(api)
    path = f"/assets/{asset['id']}"
    with visit("about:blank") as page:
        page.clock.install()
        page.goto(running.url)
        open_first(page).get_by_role("button", name="Delete").click()
        undo = page.get_by_role("button", name="Undo")
        expect(undo).to_be_focused()
        expect(tiles(page)).to_have_count(0)
        undo.press("Enter")
        expect(tiles(page).first).to_be_focused()
        page.clock.run_for(20_000)
        assert api.get(path).status_code == 200

        open_first(page).get_by_role("button", name="Delete").click()
        page.mouse.move(5, 5)
        undo.evaluate("(button) => button.blur()")
        assert api.get(path).status_code == 200, "the page waits"
        with page.expect_response(lambda response: response.request.method == "DELETE"):
            page.clock.run_for(9_000)
        expect(page.locator("#empty")).to_contain_text("No images yet")
    assert api.get(path).status_code == 404


def test_leaving_the_page_sends_what_was_deleted(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    asset = stored(api)
    with visit(running.url) as page:
        open_first(page).get_by_role("button", name="Delete").click()
        expect(page.locator(".undo")).to_contain_text("or when you leave this page")
        page.goto("about:blank")
        until(lambda: api.get(f"/assets/{asset['id']}").status_code == 404, of="the deletion")


def test_what_could_not_be_deleted_comes_back(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    stored(api)
    busy = {"type": "x", "title": "Asset busy", "status": 409, "code": "asset_busy", "detail": "Another change runs."}
    with visit("about:blank") as page:
        page.clock.install()
        page.goto(running.url)
        open_first(page).get_by_role("button", name="Delete").click()
        page.route("**/api/v1/assets/*", lambda route: route.fulfill(status=409, json=busy))
        page.get_by_role("button", name="Undo").evaluate("(button) => button.blur()")
        page.clock.run_for(9_000)
        expect(page.get_by_role("alert").filter(has_text="Another change runs.")).to_be_visible()
        expect(tiles(page)).to_have_count(1)


# ── Keys, statistics, everybody ─────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_asked_for_once_and_kept_in_the_tab(tmp_path: Path, visit: Visit) -> None:
    with ServiceProcess(tmp_path, ASSETS_API_KEYS=KEY) as service, visit(service.url) as page:
        dialog = page.locator("#key")
        expect(dialog).to_be_visible()
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        page.get_by_label("Key", exact=True).fill("another-key-that-is-none")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#key-error")).to_have_text("the key is not known")
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#empty")).to_contain_text("No images yet")
        choose(page, file("one.jpg"))
        expect(page.locator("#grid .sharp")).to_have_count(1)
        page.reload()
        expect(page.locator("#grid .sharp")).to_have_count(1)
        expect(dialog).to_be_hidden()
        assert page.evaluate("localStorage.length") == 0

        page.get_by_role("button", name="Key is set").click()
        page.get_by_role("button", name="Forget it").click()
        expect(dialog).to_be_visible()  # the list is asked for without it, and refused
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#empty")).to_contain_text("Unauthorized")
        assert page.evaluate("sessionStorage.getItem('smart-assets-key')") is None


def test_statistics_count_by_storage_and_day(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    for number, storage in enumerate(("local", "local", "memory")):
        stored(api, f"{number}.jpg", storage=storage)
    with visit(running.url) as page:
        page.get_by_role("button", name="Statistics").click()
        dialog = page.locator("#stats")
        expect(dialog.locator(".by-storage")).to_contain_text(re.compile(r"local\s*2.*memory\s*1", re.DOTALL))
        expect(dialog).to_contain_text("The 3 images of the last 30 days that are still there")
        expect(dialog.locator(".chart rect")).to_have_count(2)
        dialog.get_by_text("As a table").click()
        expect(dialog.locator("details tbody td")).to_have_text(["2", "1"])


SCREENS: Sequence[dict[str, Any]] = (
    {"color_scheme": "light"},
    {"color_scheme": "dark"},
    {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
)


@pytest.mark.parametrize("screen", SCREENS, ids=["light", "dark", "phone"])
def test_nobody_is_kept_out(running: ServiceProcess, api: httpx.Client, visit: Visit, screen: dict[str, Any]) -> None:
    stored(api, visibility="private", tags="trip")
    stored(api, "Ein sehr langer Name ohne ein einziges Leerzeichen darin".replace(" ", "-") * 3 + ".jpg")
    with visit(running.url, **screen) as page:
        expect(page.locator("#grid .sharp")).to_have_count(2)
        choose(page, file("notes.jpg", b"text"), file("good.jpg"))
        expect(page.locator("#queue [data-state=failed]")).to_have_count(1)
        expect(page.locator("#queue [data-state=stored]")).to_have_count(1)
        assert serious_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0

        detail = open_first(page)
        detail.get_by_role("button", name="Make link").click()
        expect(detail.get_by_label("The link")).to_be_visible()
        expect(detail.locator(".sides .sharp").first).to_be_visible()
        assert serious_faults(page) == []
        assert detail.evaluate("(dialog) => dialog.scrollWidth - dialog.clientWidth") <= 0
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Statistics").click()
        expect(page.locator(".chart")).to_be_visible()
        assert serious_faults(page) == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Key", exact=True).click()
        assert serious_faults(page) == []


def test_the_keyboard_is_enough(running: ServiceProcess, api: httpx.Client, visit: Visit) -> None:
    newest = [stored(api, name) for name in ("b.jpg", "a.jpg")][-1]
    with visit(running.url) as page:
        expect(tiles(page)).to_have_count(2)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the images")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(tiles(page).first).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#detail-title")).to_have_text("a.jpg")
        assert page.url.endswith(f"#{newest['id']}")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#detail-title")).to_have_text("b.jpg")
        page.keyboard.press("Escape")
        expect(tiles(page).nth(1)).to_be_focused()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


# ── Swagger UI and ReDoc ────────────────────────────────────────────────────────────────────────────────────────────


def test_swagger_ui_uploads_a_file_with_a_key_and_shows_the_image(tmp_path: Path, visit: Visit) -> None:
    with ServiceProcess(tmp_path, ASSETS_API_KEYS=KEY) as service, visit(f"{service.url}/docs") as page:
        page.get_by_role("button", name="Authorize").first.click()
        page.locator(".auth-container input").fill(KEY)
        page.locator(".auth-btn-wrapper").get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close").first.click()

        upload = page.locator("#operations-upload-upload")
        upload.locator(".opblock-summary-control").click()
        storages = upload.locator("tr[data-param-name=storage] select")
        assert storages.locator("option").all_inner_texts()[-3:] == ["direct", "local", "memory"]
        expect(storages).to_have_value("local")
        upload.locator("tr[data-param-name=visibility] select").select_option("private")
        upload.locator("input[type=file]").set_input_files(file("photo.jpg"))
        upload.get_by_role("button", name="Execute").click()
        answer = upload.locator(".live-responses-table")
        expect(answer.locator(".response-col_status").last).to_contain_text("201")
        asset_id = re.search(r'"id": "([0-9a-f-]{36})"', answer.inner_text())
        assert asset_id is not None

        content = page.locator("#operations-library-get_content")
        content.locator(".opblock-summary-control").click()
        content.locator("tr[data-param-name=asset_id] input").fill(asset_id[1])
        _shows_the_image(content)

        address = re.search(r"/assets/(private[^?]+)\?exp=(\d+)&kid=(\w+)&sig=([\w-]+)", answer.inner_text())
        assert address is not None
        delivery = page.locator("#operations-delivery-deliver")
        delivery.locator(".opblock-summary-control").click()
        for name, value in zip(("key", "exp", "kid", "sig"), address.groups(), strict=True):
            delivery.locator(f"tr[data-param-name={name}] input").fill(value)
        _shows_the_image(delivery)


def _shows_the_image(operation: Locator) -> None:
    operation.get_by_role("button", name="Execute").click()
    image = operation.locator(".live-responses-table img")
    expect(image).to_be_visible(timeout=30_000)
    assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 900


def test_redoc_shows_every_operation(running: ServiceProcess, visit: Visit) -> None:
    makers_picture = ("POLICY img-src https://cdn.redoc.ly", "request to https://cdn.redoc.ly")  # refused by the policy
    with visit(f"{running.url}/redoc", allowed=makers_picture) as page:
        expect(page.get_by_role("heading", name=re.compile("Upload an image$"))).to_be_visible(timeout=60_000)
        expect(page.get_by_role("heading", name="Delete an asset")).to_be_attached()
