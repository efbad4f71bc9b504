"""Delivery of local files under `/assets`: public beside StaticFiles and nginx, private beside public. 16 connections.

nginx serves the very files of the service: how a file came to be written decides how it lies in memory, and a copy may
be a fifth faster or slower. The gateway is nginx as it is shipped, in front of the service.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import peers, photographs
from benchmarks.load import Requests
from benchmarks.photographs import Photograph
from benchmarks.rounds import RATE, Case, Outcome, Run, start
from benchmarks.servers import Server, service
from benchmarks.table import Row, Series, Target, ratio

TITLE = "Delivery of local files"
SUBTITLE = "requests a second over 16 connections, server on one core, load on another"

_CONNECTIONS = 16
_STATIC_FILES = {photographs.SMALL: Target(3.0), photographs.WEB: Target(4.0)}
_NGINX = {photographs.SMALL: None, photographs.WEB: Target(0.5)}
_PRIVATE = Target(0.85)
_GATEWAY = {photographs.SMALL: None, photographs.WEB: Target(0.9)}
_ACCEL_REDIRECT = {"ASSETS_ACCEL_REDIRECT": "/_bytes"}


def measure(run: Run) -> Outcome:
    """Both files, from everybody."""
    files, folder, own = run.new_folder("static"), run.new_folder("nginx"), run.new_folder("ours")
    with ExitStack() as stack:
        ours = stack.enter_context(service(own, on=run.cores.server, settings=_ACCEL_REDIRECT))
        static = stack.enter_context(peers.naive(files, on=run.cores.server))
        nginx = "" if run.quick else start(stack, lambda: peers.nginx(folder, own / "data", on=run.cores.server))
        front = run.new_folder("gateway")
        gateway = "" if run.quick else start(stack, lambda: peers.gateway(front, ours, on=run.cores.server))
        scripts = run.new_folder("scripts")
        contests = [
            _Contest(run, scripts, files, photograph, ours, static, nginx, gateway) for photograph in _STATIC_FILES
        ]
        cases = [case for contest in contests for case in contest.cases]
        run.take_turns(cases, warm_up=contests[0].cases)
    rows = [row for contest in contests for row in contest.rows()]
    return Outcome(rows, [series for case in cases for series in case.all_series()])


class _Contest:
    """One file, asked of everybody. In a quick run, public and StaticFiles only."""

    def __init__(
        self,
        run: Run,
        scripts: Path,
        files: Path,
        photograph: Photograph,
        ours: Server,
        static: Server,
        nginx: Server | str,
        gateway: Server | str,
    ) -> None:
        self._photograph, self._quick = photograph, run.quick
        name, file = photograph.name, photograph.write(files)

        def case(who: str, server: Server, path: str) -> Case:
            return run.under_load(f"{who}, {name}", server, Requests(scripts, [path]), _CONNECTIONS)

        self._static = case("StaticFiles", static, f"/static/{file.name}")
        public, private = (_uploaded(ours, photograph, visibility) for visibility in ("public", "private"))
        self._public, self._private = case("public", ours, public), case("private", ours, private)
        self._nginx = nginx if isinstance(nginx, str) else case("nginx", nginx, public)
        self._gateway = gateway if isinstance(gateway, str) else case("gateway, public", gateway, public)
        self._handed_over = gateway if isinstance(gateway, str) else case("gateway, private", gateway, private)

    @property
    def cases(self) -> list[Case]:
        """Whoever is there."""
        if self._quick:
            return [self._static, self._public]
        others = (self._nginx, self._gateway, self._handed_over)
        return [
            self._static,
            self._public,
            self._private,
            *(case for case in others if not isinstance(case, str)),
        ]

    def rows(self) -> list[Row]:
        """Its lines of the table."""
        photograph, public = self._photograph, self._public.series(RATE)
        name = photograph.name
        rows = [ratio(f"{name}, public : StaticFiles", public, self._static.series(RATE), _STATIC_FILES[photograph])]
        if self._quick:
            return rows
        private, nginx = self._private.series(RATE), _rate(self._nginx)
        rows.append(ratio(f"{name}, public : nginx", public, nginx, _NGINX[photograph]))
        rows.append(ratio(f"{name}, private : public", private, public, _PRIVATE))
        front, handed_over = _rate(self._gateway), _rate(self._handed_over)
        rows.append(_beside(f"{name}, gateway, public : nginx", front, nginx, _GATEWAY[photograph]))
        rows.append(_beside(f"{name}, gateway, private : private", handed_over, private, None))
        return rows


def _rate(case: Case | str) -> Series | str:
    return case if isinstance(case, str) else case.series(RATE)


def _beside(what: str, ours: Series | str, theirs: Series | str, target: Target | None) -> Row:
    return Row(what, target, missing=ours) if isinstance(ours, str) else ratio(what, ours, theirs, target)


def _uploaded(service: Server, photograph: Photograph, visibility: str) -> str:
    """The address, in the service, of a photograph just uploaded to it."""
    headers = {"Content-Type": photograph.content_type}
    asset = service.post(f"/api/v1/assets?visibility={visibility}", photograph.content, headers)
    parts = urlsplit(asset["url"])
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
