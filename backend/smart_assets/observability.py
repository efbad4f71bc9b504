"""Logging, request ids and metrics: what an operator sees of the service."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from pythonjsonlogger.json import JsonFormatter

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = Counter("smart_assets_requests", "Requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "smart_assets_request_seconds", "Time from a request's head to its answer's end.", ["route"], buckets=_FAST
)
UPLOADS = Counter("smart_assets_uploads", "Assets asked for, by how it ended.", ["storage", "outcome"])
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


def metrics_registry() -> CollectorRegistry:
    """What this process counts; of several that serve together (see `supervisor`), what all of them do."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


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
