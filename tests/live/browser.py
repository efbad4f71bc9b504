"""The system's own Chromium without a window, in front of the real service as a process of its own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.faults.process import PATIENCE, ServiceProcess
from tests.live.process import unavailable

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = Path(sys.prefix) / "azurite/node_modules/axe-core/axe.min.js"

# Of what a page does: what its content policy did not let it do.
_NOTE_VIOLATIONS = """
    addEventListener("securitypolicyviolation", (event) =>
      console.error(`POLICY ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@dataclass
class Visitor:
    """A person with a page open, and what the page did that it should not."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note errors of scripts, violations of the policy, and requests to anybody but this machine."""
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on(
            "console", lambda message: self.faults.append(message.text) if message.text.startswith("POLICY") else None
        )
        self.page.on("request", lambda request: self._note_request(request.url))

    def _note_request(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:")):
            self.faults.append(f"request to {url}")


Visit = Callable[..., AbstractContextManager["Page"]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser. It does not outlive its module: as long as it is there, no other event loop can run."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        unavailable("there is no Chromium: `apt-get install chromium` brings one")
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        unavailable("there is no playwright: `make live` installs it")
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Visit:
    """Opens a page; at the end it must have done nothing that it should not, but for what `allowed` begins."""

    @contextmanager
    def open_page(url: str, *, allowed: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
        settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        with browser.new_context(**settings | options) as context:
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            context.add_init_script(_NOTE_VIOLATIONS)
            visitor = Visitor(context.new_page())
            visitor.watch()
            visitor.page.goto(url)
            yield visitor.page
            assert [fault for fault in visitor.faults if not fault.startswith(allowed or "\0")] == []

    return open_page


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[ServiceProcess]:
    """A service without keys, for all tests of a module."""
    with ServiceProcess(tmp_path_factory.mktemp("service"), ASSETS_IMAGING__WORKERS="1") as service:
        yield service


@pytest.fixture
def api(running: ServiceProcess) -> Iterator[httpx.Client]:
    """Whoever calls that service; nothing is stored there when the test begins."""
    with httpx.Client(base_url=f"{running.url}/api/v1", timeout=60, trust_env=False) as client:
        while items := client.get("/assets", params={"limit": 200}).json()["items"]:
            for asset in items:
                client.delete(f"/assets/{asset['id']}")
        yield client


@cache
def _axe() -> str:
    if not AXE.exists():
        unavailable("there is no axe: `make live` installs it")
    return AXE.read_text(encoding="utf-8")


def serious_faults(page: Page) -> list[str]:
    """What axe finds that keeps people out: by its rule's name, with the elements at fault."""
    page.evaluate(_axe())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] }).then((result) => result.violations)")
    return [
        f"{fault['id']}: {[node['target'] for node in fault['nodes']]}"
        for fault in found
        if fault["impact"] in {"serious", "critical"}
    ]
