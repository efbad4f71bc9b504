"""The load: wrk, told by a script what to ask for, and made to say what came of it as JSON."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.machine import NotThere

BOUNDARY = "-----------------benchmark"
_SAYS = "wrk says "

_SCRIPT = """\
wrk.method = "{method}"
{headers}
{asking}
function done(summary, latency, requests)
  local failed = summary.errors
  io.write(string.format(
    '{says}{{"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "timeouts": %d, "not_ok": %d}}\\n',
    summary.requests, summary.duration, failed.connect, failed.read + failed.write, failed.timeout, failed.status))
end
"""

# What a script does not change wrk sends again and again without copying it, or asking the script.
_ONE_PATH = 'wrk.path = "{path}"'
_BODY = 'local file = io.open("{body}", "rb"); wrk.body = file:read("*all"); file:close()'
_MANY_PATHS = """\
local requests, number = {{}}, 0
function init(args)
  for path in io.lines("{paths}") do requests[#requests + 1] = wrk.format(nil, path) end
end
function request()
  number = number % #requests + 1
  return requests[number]
end"""


class LoadFailed(Exception):
    """Requests failed: what was measured counts for nothing."""


class NothingAnswered(LoadFailed):
    """Not one request was answered in time: the machine stood still."""


@dataclass(frozen=True)
class Load:
    """What came of one run: requests answered well, and the seconds they took together.

    `busy` is how much of that time the load's core was at work: near 1 it was the load that could do no more.
    """

    requests: int
    seconds: float
    busy: float = 0.0


def read(output: str) -> Load:
    """What wrk said. Raises LoadFailed where a request failed, or none was answered."""
    said = [line.removeprefix(_SAYS) for line in output.splitlines() if line.startswith(_SAYS)]
    if not said:
        raise LoadFailed(f"wrk did not say how it went:\n{output}")
    summary = json.loads(said[-1])
    requests, microseconds = summary.pop("requests"), summary.pop("microseconds")
    wrong = ", ".join(f"{count} {kind}" for kind, count in summary.items() if count)
    if wrong:
        raise LoadFailed(f"of {requests} requests: {wrong}")
    if not requests:
        raise NothingAnswered("no request was answered")
    return Load(requests, microseconds / 1e6)


class Requests:
    """What wrk is to ask for, as a script in `folder`; wrk sends it to whatever server it is told."""

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        """GET, or with a body POST. Of several paths each takes its turn."""
        self.uploads = body is not None
        number = len(list(folder.glob("*.lua")))
        self.script, path_file, body_file = (folder / f"{number}.{kind}" for kind in ("lua", "paths", "body"))
        if len(paths) == 1:
            asking = _ONE_PATH.format(path=paths[0])
        else:
            path_file.write_text("\n".join(paths) + "\n")
            asking = _MANY_PATHS.format(paths=path_file)
        if body is not None:
            body_file.write_bytes(body)
            asking += "\n" + _BODY.format(body=body_file)
        lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items())
        method = "GET" if body is None else "POST"
        self.script.write_text(_SCRIPT.format(method=method, headers=lines, asking=asking, says=_SAYS))


def form(field: str, content: bytes, filename: str, content_type: str) -> tuple[bytes, dict[str, str]]:
    """A multipart body with one file, and its header."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def program() -> str:
    """Where wrk is."""
    found = shutil.which("wrk")
    if found is None:
        raise NotThere("wrk, the load generator (Debian: apt-get install wrk)")
    return found


def run(url: str, requests: Requests, *, connections: int, seconds: int) -> Load:
    """One run over so many connections, on the cores this process is on."""
    command = [program(), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(requests.script), url]
    before = _children_seconds()
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode:
        raise LoadFailed(finished.stderr or finished.stdout)
    found = read(finished.stdout)
    return replace(found, busy=(_children_seconds() - before) / found.seconds)


def _children_seconds() -> float:
    """CPU time of all programs this one has run to their ends."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
