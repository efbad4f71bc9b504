"""Logging, request ids and metrics: what an operator sees of the service."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    multiprocess,
)
from prometheus_client import Metric as MetricFamily
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from pythonjsonlogger.json import JsonFormatter

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The library's variable: where each of several processes that serve together keeps what it counts (`supervisor`)."""

_OWN_FILES = {"counter": 512 * 1024, "gauge_livesum": 64 * 1024, "histogram": 2 * 1024 * 1024}


def _make_room(directory: Path) -> None:
    """Have this process's files on the disk, whole, before the library maps them into memory.

    It makes them of holes, and a hole that cannot be filled because the disk is full is no error, but SIGBUS.
    """
    for kind, size in _OWN_FILES.items():
        unfinished = directory / f"{kind}_{os.getpid()}.new"  # empty, one would be no file of metrics to a reader
        with suppress(OSError):
            with unfinished.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            unfinished.rename(unfinished.with_suffix(".db"))


# A second series for each, which nobody asks for and several processes have not.
disable_created_metrics()  # type: ignore[no-untyped-call]

if METRICS_DIRECTORY in os.environ:  # before the first metric: each opens its file
    _make_room(Path(os.environ[METRICS_DIRECTORY]))

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = Counter("smart_assets_requests", "Requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "smart_assets_request_seconds", "Time from a request's head to its answer's end.", ["route"], buckets=_FAST
)
UPLOADS = Counter("smart_assets_uploads", "Assets asked for, by how it ended.", ["storage", "outcome"])
UPLOAD_BYTES = Counter("smart_assets_upload_bytes", "Bytes of the originals that were taken in.", ["storage"])
UPLOAD_STAGE_SECONDS = Histogram(
    "smart_assets_upload_stage_seconds", "Time an upload spends in each stage.", ["stage"], buckets=_FAST
)
STORAGE_SECONDS = Histogram(
    "smart_assets_storage_call_seconds",
    "Calls to storage backends.",
    ["storage", "operation", "outcome"],
    buckets=_FAST,
)
STORAGE_BYTES = Counter("smart_assets_storage_bytes", "Bytes through storage backends.", ["storage", "direction"])
CLEANUP_FAILURES = Counter(
    "smart_assets_cleanup_failures", "Objects of failed uploads that could not be removed at once.", ["storage"]
)
REPAIRS = Counter("smart_assets_repairs", "Assets a dead process left half done, by what was made of them.", ["action"])
RETENTION_ASSETS = Counter("smart_assets_retention_assets", "Assets retention removed.", ["storage", "reason"])
RETENTION_BYTES = Counter("smart_assets_retention_bytes", "Bytes retention removed.", ["storage", "reason"])
RETENTION_FAILURES = Counter(
    "smart_assets_retention_failures", "Assets retention could not remove at once.", ["storage", "reason"]
)
RATE_LIMITED = Counter("smart_assets_rate_limited", "Requests refused by a limit.", ["limit"])
BACKGROUND_FAILURES = Counter("smart_assets_background_failures", "Background work that failed.", ["task"])
PROCESSES = Gauge("smart_assets_processes", "Processes that serve.", multiprocess_mode="livesum")
QUEUED = Gauge(
    "smart_assets_queue_length",
    "Calls that wait for a thread, looked at every second.",
    ["queue"],
    multiprocess_mode="livesum",
)
RENDER_WAITING = Gauge(
    "smart_assets_render_waiting", "Images that wait for a worker and its memory.", multiprocess_mode="livesum"
)
RENDER_MEMORY = Gauge(
    "smart_assets_render_memory_bytes", "Estimated memory of the images in work.", multiprocess_mode="livesum"
)
WORKER_RESTARTS = Counter(
    "smart_assets_render_pool_restarts", "Times the pool of rendering workers had to be built anew."
)


_children: dict[tuple[Any, ...], Any] = {}


def labelled(metric: Metric, *labels: object) -> Metric:
    """`metric.labels(*labels)`, without its lock and its copies: for what every request counts."""
    found: Metric | None = _children.get((metric, *labels))
    if found is None:
        found = _children[metric, *labels] = metric.labels(*labels)
    return found


class _Times:
    """How long requests of one route took."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.buckets = [0] * (len(_FAST) + 1)


_requests: dict[tuple[str, str, int], int] = {}
_times: dict[str, _Times] = {}


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request that was answered; in metrics when `hand_on` is called next.

    A metric takes a lock, and with several processes a file: a small image would spend a twentieth of its delivery on
    being counted.
    """
    request = method, route, status
    _requests[request] = _requests.get(request, 0) + 1
    times = _times.get(route)
    if times is None:
        times = _times[route] = _Times()
    times.seconds += seconds
    times.buckets[bisect_left(_FAST, seconds)] += 1


def hand_on() -> None:
    """Have metrics say what `count_request` was told. In the event loop's own thread, as that is."""
    for request, count in _requests.items():
        labelled(REQUESTS, *request).inc(count)
    for route, times in _times.items():
        histogram = labelled(REQUEST_SECONDS, route)
        histogram._sum.inc(times.seconds)  # noqa: SLF001 - it offers one observation at a time, and nothing else
        for bucket, count in zip(histogram._buckets, times.buckets, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
    _requests.clear()
    _times.clear()


class Timed:
    """Observes how long its context lasts, in seconds."""

    __slots__ = ("_began", "_histogram")

    def __init__(self, histogram: Histogram, *labels: object) -> None:
        """`labels` of the histogram."""
        self._histogram = labelled(histogram, *labels)

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._histogram.observe(time.perf_counter() - self._began)


class _AllProcesses:
    """What all processes over a directory have counted, the dead ones too."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[MetricFamily]:
        with _locked(self._directory, fcntl.LOCK_SH):
            return _merged(self._directory.glob("*.db"), accumulate=True)


class _Now:
    """What was looked up for one answer."""

    def __init__(self, families: Sequence[MetricFamily]) -> None:
        self._families = families

    def collect(self) -> Sequence[MetricFamily]:
        return self._families


def metrics_registry(now: Sequence[MetricFamily] = ()) -> CollectorRegistry:
    """What this process counts; of several that serve together (see `supervisor`), what all of them do.

    `now` stands beside it: what is the same for all of them, and is looked up and not counted.
    """
    counted = REGISTRY if METRICS_DIRECTORY not in os.environ else _AllProcesses(Path(os.environ[METRICS_DIRECTORY]))
    registry = CollectorRegistry()
    for collector in (counted, _Now(now)):
        registry.register(collector)
    return registry


def bury(pid: int, directory: Path) -> None:
    """Keep what a process counted that has ended, in one file for all the dead; never raises.

    Each would leave files behind otherwise, which are read at every scrape for as long as the service runs.
    """
    multiprocess.mark_process_dead(pid, path=str(directory))  # type: ignore[no-untyped-call]
    # Nobody may see what it counted twice, or not at all: Prometheus would take it for a restart. Who cannot be put in
    # its grave now, because somebody reads, or for want of room, stays as it is.
    with suppress(OSError), _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for kind in ("counter", "histogram"):
            own, grave = directory / f"{kind}_{pid}.db", directory / f"{kind}_dead.db"
            _write(directory / "grave.new", _merged([file for file in (own, grave) if file.exists()]))
            (directory / "grave.new").replace(grave)
            own.unlink(missing_ok=True)


def _merged(files: Iterable[Path], *, accumulate: bool = False) -> Sequence[MetricFamily]:
    merge = multiprocess.MultiProcessCollector.merge
    return list(merge([str(file) for file in files], accumulate))  # type: ignore[no-untyped-call]


def _write(path: Path, families: Sequence[MetricFamily]) -> None:
    """A file as the library would have written it. OSError where there is no room."""
    values = {
        mmap_key(family.name, sample.name, list(sample.labels), list(sample.labels.values()), family.documentation): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4096 + sum(len(key.encode()) + 32 for key in values))
    written = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for key, value in values.items():
        written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    written.close()  # type: ignore[no-untyped-call]


@contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


_NOT_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "request_id",
    "message",
    "asctime",
    "color_message",
}


class _ConsoleFormatter(logging.Formatter):
    """One line for people: time, level, message, then the fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        fields = {name: value for name, value in vars(record).items() if name not in _NOT_FIELDS}
        if record.__dict__.get("request_id"):
            fields["request_id"] = record.__dict__["request_id"]
        return super().formatMessage(record) + "".join(f" {name}={value}" for name, value in fields.items())


def configure_logging(level: str, style: Literal["auto", "console", "json"]) -> None:
    """Send every log line of this process to standard error, as JSON or for people (`auto`: by whether it is a tty)."""
    # What every line would gather and none shows ("Optimization" in the documentation of `logging`).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RequestIdFilter())
    if style == "json" or (style == "auto" and not sys.stderr.isatty()):
        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(name)s %(message)s %(request_id)s",
                rename_fields={"levelname": "level", "name": "logger"},
                timestamp="time",
            )
        )
    else:
        handler.setFormatter(_ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Ours says the same with a request id; the library's would print signatures.
    logging.getLogger("uvicorn.access").disabled = True
    # What a caller sent is the caller's to hear of.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # The vendors' SDKs tell of every request, and some of where they found their credentials.
    for sdk in ("azure", "botocore", "google", "httpx", "urllib3"):
        logging.getLogger(sdk).setLevel(logging.WARNING)
