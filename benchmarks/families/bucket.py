"""Uploads over HTTP into an S3 bucket, 16 at a time, beside bare `put_object` calls of boto3 from 16 threads.

SeaweedFS, which holds the bucket, shares the load's core in both cases. The loop reads no request and keeps no
catalogue: what a local upload of ours costs is added to its CPU time for the last rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import photographs
from benchmarks.load import Requests, form
from benchmarks.machine import ROOT, NotThere, find, pinned
from benchmarks.photographs import Photograph
from benchmarks.rounds import CPU, RATE, Case, Outcome, Run
from benchmarks.servers import Server, clean_environment, service
from benchmarks.table import Row, Series, Target, ratio

TITLE = "Uploads into an S3 bucket (SeaweedFS), over HTTP, no sizes"
SUBTITLE = "16 at a time, beside a bare boto3 put_object loop of 16 threads on the same core"

_CONNECTIONS = 16
_SECONDS = 2
_THROUGHPUT = Target(0.9)
_CPU = Target(1.0, at_most=True)
_PHOTOGRAPHS = (photographs.WEB, photographs.SMALL)


def measure(run: Run) -> Outcome:
    """Both files, by both."""
    try:
        find("weed", "`make bench` installs it")
    except NotThere as error:
        return Outcome([row for each in _PHOTOGRAPHS for row in _missing(each, str(error))])
    # Imported late: it is the tests' server, and their libraries come with it.
    from tests.torture.bucket import Bucket, s3_server

    scripts, local, remote = run.new_folder("scripts"), run.new_folder("local"), run.new_folder("remote")
    with ExitStack() as stack:
        with pinned(run.cores.load):
            bucket = Bucket(stack.enter_context(s3_server()))
        to_bucket = stack.enter_context(service(remote, on=run.cores.server, settings=bucket.settings))
        to_disk = stack.enter_context(service(local, on=run.cores.server))
        contests = [
            _Contest(
                run,
                scripts,
                photograph,
                to_bucket,
                to_disk,
                stack.enter_context(_put_loop(run, bucket.settings, photograph.write(scripts))),
            )
            for photograph in _PHOTOGRAPHS
        ]
        cases = [case for contest in contests for case in contest.cases]
        run.take_turns(cases, warm_up=contests[-1].cases)
    rows = [row for contest in contests for row in contest.rows()]
    return Outcome(rows, [series for case in cases for series in case.all_series()])


class _Contest:
    """One file, put by both."""

    def __init__(
        self,
        run: Run,
        scripts: Path,
        photograph: Photograph,
        to_bucket: Server,
        to_disk: Server,
        loop: subprocess.Popen[str],
    ) -> None:
        self._name = photograph.name
        body, of_form = form("file", photograph.content, "photo.jpg", photograph.content_type)

        def uploads(name: str, server: Server) -> Case:
            requests = Requests(scripts, ["/api/v1/assets"], headers={**server.headers, **of_form}, body=body)
            return run.under_load(f"{name}, {photograph.name}", server, requests, _CONNECTIONS, _SECONDS)

        self._ours = uploads("ours, to S3", to_bucket)
        self._local = uploads("ours, to disk", to_disk)
        self._loop = _case(f"put_object, {photograph.name}", loop)

    @property
    def cases(self) -> list[Case]:
        """All three."""
        return [self._loop, self._ours, self._local]

    def rows(self) -> list[Row]:
        """Its lines of the table."""
        cpu = zip(self._loop.series(CPU).samples, self._local.series(CPU).samples, strict=True)
        both = Series("put_object and our upload to disk", CPU, tuple(map(sum, cpu)))
        return [
            ratio(f"{self._name}, rate : put_object", self._ours.series(RATE), self._loop.series(RATE), _THROUGHPUT),
            ratio(f"{self._name}, CPU : put_object + to disk", self._ours.series(CPU), both, _CPU),
        ]


def _missing(photograph: Photograph, reason: str) -> list[Row]:
    return [
        Row(f"{photograph.name}, rate : put_object", _THROUGHPUT, missing=reason),
        Row(f"{photograph.name}, CPU : put_object + to disk", _CPU, missing=reason),
    ]


@contextmanager
def _put_loop(run: Run, settings: Mapping[str, str], file: Path) -> Iterator[subprocess.Popen[str]]:
    """The loop, on the server's core, waiting for orders."""
    account = {
        "AWS_ACCESS_KEY_ID": settings["ASSETS_S3__ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": settings["ASSETS_S3__SECRET_ACCESS_KEY"],
    }
    where = [settings["ASSETS_S3__BUCKET"], settings["ASSETS_S3__ENDPOINT_URL"]]
    command = [sys.executable, "-m", "benchmarks.put_loop", *where, str(file), str(_CONNECTIONS)]
    with (
        pinned(run.cores.server),
        subprocess.Popen(
            command,
            env=clean_environment() | account,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        yield process
        process.communicate()  # its orders end, and so does it


def _case(name: str, loop: subprocess.Popen[str]) -> Case:
    def measure() -> dict[str, float]:
        assert loop.stdin is not None
        assert loop.stdout is not None
        loop.stdin.write(f"{_SECONDS}\n")
        loop.stdin.flush()
        took = json.loads(loop.stdout.readline())
        return {RATE: took["uploads"] / took["seconds"], CPU: 1000 * took["cpu_seconds"] / took["uploads"]}

    return Case(name, measure)
