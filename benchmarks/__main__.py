"""Uploads and downloads per second, ours beside a naive FastAPI endpoint's and StaticFiles'.

    make bench                      the whole run, about four minutes
    python -m benchmarks --quick    one minute, for a change in hand

Each server is pinned to one core, the load (wrk) to another. Servers take turns within a round, so that a machine whose
speed drifts drifts for all of them; what counts is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks.photographs import PHOTOGRAPHS

SERVER_CORE, LOAD_CORE = "0", "1"
BOUNDARY = "benchmark-boundary"
RESULTS = Path(__file__).parent / "results"

POST_SCRIPT = """\
local file = io.open("{path}", "rb")
wrk.method = "POST"
wrk.body = file:read("*all")
wrk.headers["Content-Type"] = "{content_type}"
file:close()
"""


@dataclass
class Case:
    """One thing that is measured: requests to `url`, with `script` as wrk's where it posts."""

    name: str
    url: str
    connections: int
    script: Path | None = None
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """`ours` beside `theirs`."""

    what: str
    ours: Case
    theirs: Case


@contextmanager
def server(command: list[str], port: int, ready: str, environment: dict[str, str], log: Path) -> Iterator[str]:
    """A server on its own core, for as long as the context lasts; its address."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", SERVER_CORE, *command], env=os.environ | environment, stdout=output, stderr=output
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(200):
                try:
                    urllib.request.urlopen(address + ready).close()
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                sys.exit(f"{command[0]} did not start: see {log}")
            yield address
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def form(field_name: str, content: bytes) -> bytes:
    """A multipart body with one file."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field_name}"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def post_script(folder: Path, name: str, body: bytes, content_type: str) -> Path:
    """A script for wrk that posts `body`."""
    path = folder / f"{name}.body"
    path.write_bytes(body)
    script = folder / f"{name}.lua"
    script.write_text(POST_SCRIPT.format(path=path, content_type=content_type))
    return script


def load(case: Case, seconds: float) -> float:
    """Requests answered per second; ends the run where one of them failed."""
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{case.connections}", f"-d{seconds:g}s"]
    if case.script:
        command += ["-s", str(case.script)]
    # What one server left for the disk to write must not be waited for by the next one's fsync.
    os.sync()
    output = subprocess.run([*command, case.url], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"{case.name}: {output}")
    match = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert match, output
    return float(match[1])


def upload(url: str, content: bytes) -> dict[str, str]:
    """One upload of raw bytes; the answer."""
    request = urllib.request.Request(url, content, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request) as answer:
        found: dict[str, str] = json.load(answer)
        return found


def comparisons(ours: str, naive: str, folder: Path, naive_folder: Path) -> Iterator[Comparison]:
    """Everything that is measured."""
    for name, make in PHOTOGRAPHS.items():
        content = make()
        slug = name.replace(" ", "-")
        multipart = post_script(
            folder, f"{slug}-form", form("file", content), f"multipart/form-data; boundary={BOUNDARY}"
        )
        raw = post_script(folder, f"{slug}-raw", content, "image/jpeg")
        theirs = Case(f"naive upload {name}", f"{naive}/upload", 8, multipart)
        yield Comparison(
            f"upload, form, {name}", Case(f"our upload {name}", f"{ours}/api/v1/assets", 8, multipart), theirs
        )
        yield Comparison(
            f"upload, raw, {name}", Case(f"our raw upload {name}", f"{ours}/api/v1/assets", 8, raw), theirs
        )
    for name in ("21 KB", "0.8 MB"):
        content = PHOTOGRAPHS[name]()
        (naive_folder / f"{len(content)}.jpg").write_bytes(content)
        static = Case(f"StaticFiles {name}", f"{naive}/static/{len(content)}.jpg", 16)
        for visibility in ("public", "private"):
            url = upload(f"{ours}/api/v1/assets?visibility={visibility}", content)["url"]
            yield Comparison(f"download, {visibility}, {name}", Case(f"our {visibility} {name}", url, 16), static)


def measure(found: list[Comparison], rounds: int, seconds: float) -> None:
    """Let every case take its turn in each round."""
    cases = list({id(case): case for pair in found for case in (pair.ours, pair.theirs)}.values())
    for number in range(rounds + 1):
        for case in cases:
            if sys.stderr.isatty():
                sys.stderr.write(f"\rround {number} of {rounds} (0 warms up): {case.name:<28}")
            rate = load(case, seconds if number else min(seconds, 1))
            if number:
                case.rates.append(rate)
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 70 + "\r")


def report(found: list[Comparison]) -> list[dict[str, object]]:
    """Print the table; the same as data."""
    rows: list[dict[str, object]] = []
    print(f"{'what':<28}{'ours/s':>10}{'theirs/s':>10}{'ratio':>8}   least..most")
    for pair in found:
        ratios = [mine / other for mine, other in zip(pair.ours.rates, pair.theirs.rates, strict=True)]
        row = {
            "what": pair.what,
            "ours_per_second": round(median(pair.ours.rates), 1),
            "theirs_per_second": round(median(pair.theirs.rates), 1),
            "ratio": round(median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        }
        rows.append(row)
        print(
            f"{pair.what:<28}{row['ours_per_second']:>10}{row['theirs_per_second']:>10}{row['ratio']:>8.2f}"
            f"   {row['least']:.2f}..{row['most']:.2f}"
        )
    return rows


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three short rounds")
    parser.add_argument("--only", default="", help="only what has this in its name")
    arguments = parser.parse_args()
    if not (shutil.which("wrk") and shutil.which("taskset")) or (os.cpu_count() or 1) < 2:
        sys.exit("this needs wrk, taskset and two cores (Debian: apt-get install wrk util-linux)")
    rounds, seconds = (3, 1.0) if arguments.quick else (5, 3.0)
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    naive_folder = folder / "naive"
    naive_folder.mkdir()
    our_port, naive_port = free_port(), free_port()
    our_command = [str(Path(sys.executable).with_name("smart-assets")), "serve"]
    our_environment = {"ASSETS_PORT": str(our_port), "ASSETS_DATA_DIR": str(folder / "data")}
    naive_command = [
        sys.executable,
        "-m",
        "uvicorn",
        "benchmarks.naive:app",
        "--port",
        str(naive_port),
        "--no-access-log",
    ]
    naive_environment = {"NAIVE_FOLDER": str(naive_folder)}
    try:
        with (
            server(our_command, our_port, "/health/live", our_environment, folder / "ours.log") as ours,
            server(naive_command, naive_port, "/openapi.json", naive_environment, folder / "naive.log") as naive,
        ):
            found = [pair for pair in comparisons(ours, naive, folder, naive_folder) if arguments.only in pair.what]
            measure(found, rounds, seconds)
            rows = report(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not arguments.quick and not arguments.only:
        RESULTS.mkdir(exist_ok=True)
        result = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "rounds": rounds, "rows": rows}
        (RESULTS / "http.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
