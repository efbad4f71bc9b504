"""A connection, until what comes on it is a request: heads are bounded in time, in bytes and in fields.

uvicorn reads a head for as long, and as much of it, as anybody sends; what it takes for a request when it has one is
looked at once more here, as strictly as RFC 9112 wants it where proxies and servers could otherwise disagree.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from smart_assets import observability
from smart_assets.api.edge import SAFE_BY_DEFAULT
from smart_assets.api.problems import MEDIA_TYPE, problem_body
from smart_assets.settings import Settings

logger = logging.getLogger("smart_assets.access")

MAX_HEAD_BYTES = 64 * 1024
"""Of request line and header fields, and of what is neither head nor body. Fifty tags in percent-encoding are 38 KB."""

MAX_HEAD_FIELDS = 100
"""Header fields of one request."""

LINGER_SECONDS = 1.0
"""For a request that is on its way already when the server is asked to stop."""

_LAST_LOOK_SECONDS = 0.01
"""libuv runs timers before it reads, and a process that was held up finds both due."""


class _Refused(Exception):
    """What came is no request that is answered."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


_MALFORMED = _Refused(400, "malformed_request", "what came is not HTTP/1.1 as RFC 9112 writes it")
_TOO_LARGE = _Refused(
    431, "head_too_large", f"a request's head has at most {MAX_HEAD_BYTES} bytes and {MAX_HEAD_FIELDS} fields"
)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, for callers who mean harm. `bounded_protocol` makes the class a server takes.

    A head that is not whole within `stall_seconds` is 408, one that is too large 431 before it is all there; an answer
    nobody reads for so long is broken off. Nothing is ever written into the middle of another answer.

    A server that stops (`leave`) answers what it is asked within `LINGER_SECONDS` on connections it has, and says with
    the answer that it closes: to close on a request that is under way would reset it, and the caller could not know
    whether it was carried out.
    """

    stall_seconds: ClassVar[float]
    _leaving: ClassVar[bool] = False

    @classmethod
    def leave(cls) -> None:
        """Close each connection as soon as nobody is waiting for an answer on it, those still to come included.

        uvicorn's server calls `shutdown` of those there are.
        """
        cls._leaving = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As uvicorn calls it."""
        super().__init__(*arguments, **options)
        self._refusal = _MALFORMED
        self._unused_bytes = 0  # since the last that was of a whole head, or of a body
        self._in_body = False
        self._is_upgrade = False
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    # ── The connection ──────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there: a head has to come."""
        super().connection_made(transport)
        self._expect_head()
        if self._leaving:  # it was accepted before, and is introduced only now
            self._linger()

    def connection_lost(self, exc: Exception | None) -> None:
        """Somebody is gone."""
        self._head_is_there()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes, as they come."""
        self._unused_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._pass_over_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal)
        if self.transport.is_closing():
            self._head_is_there()
        elif self._unused_bytes > MAX_HEAD_BYTES:
            self._refuse(_TOO_LARGE)
        elif not self._is_answering():
            self._expect_head()  # or the rest of a body nobody wants: it has the same time

    def pause_writing(self) -> None:
        """More of an answer is waiting than is read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It is read again."""
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server stops: see `leave`."""
        if self._is_answering():
            self._close_with_answer()
        else:
            self._linger()

    def on_response_complete(self) -> None:
        """An answer is sent."""
        super().on_response_complete()
        if self._leaving and not self._is_answering():
            self._linger()  # where it could not be said with the answer that this was the last

    def _close_with_answer(self) -> None:
        # Not where more of the request is to come: to close on it would reset the answer with it.
        if not self.cycle.response_started and not self.cycle.more_body:
            self.cycle.keep_alive = False

    def _linger(self) -> None:
        self.loop.call_later(LINGER_SECONDS, lambda: self.loop.call_later(_LAST_LOOK_SECONDS, self._close_unless_asked))

    def _close_unless_asked(self) -> None:
        if not self._unused_bytes and not self._is_answering():
            self.transport.close()

    def _is_answering(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.stall_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._late = None
        if not self._unused_bytes:
            self.transport.close()  # nobody has asked for anything
        else:
            detail = f"the request's head was not there within {self.stall_seconds:g} seconds"
            self._refuse(_Refused(408, "head_timeout", detail))

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    # ── What the parser finds ───────────────────────────────────────────────────────────────────────────────────────

    def on_headers_complete(self) -> None:
        """A whole head."""
        self._head_is_there()
        self._unused_bytes = 0
        try:
            self._check_head()
        except _Refused as refusal:
            self._refusal = refusal
            raise  # stops the parser
        super().on_headers_complete()
        self._in_body = True
        # What a chunked body's trailer says is no header: it would overwrite what was looked at already.
        self.headers = []
        self._is_upgrade = self.parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._unused_bytes = 0
        if self._in_body:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        if self._is_upgrade:
            return  # the parser passes over its body, which is still to come
        self._in_body = False
        self._head_is_there()  # the next one has its own time
        super().on_message_complete()
        if self._leaving:
            self._close_with_answer()

    def _check_head(self) -> None:
        """Raises _Refused where the head is larger than allowed, or names no host, or more than one."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEAD_FIELDS:
            raise _TOO_LARGE
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _Refused(400, "malformed_request", "a request names one Host")
        if b"#" in self.url:
            raise _MALFORMED
        if not self.url.startswith((b"/", b"*")):  # a proxy's form: what it names goes before the Host
            _, _, rest = self.url.partition(b"://")
            if not hosts or rest.partition(b"/")[0].lower() != hosts[0].lower():
                raise _Refused(400, "malformed_request", "the request's target and its Host are not the same")

    def _pass_over_upgrade(self, rest: bytes) -> None:
        """Take a request that offers an upgrade as if it did not: the last of its connection.

        The parser takes what follows for another protocol's, so another one reads the body, which is all it tells.
        """
        self.cycle.keep_alive = False
        if self._is_upgrade:
            self._is_upgrade = False
            framing = (
                b"%s: %s\r\n" % field
                for field in self.scope["headers"]
                if field[0] in {b"content-length", b"transfer-encoding"}
            )
            self.parser = httptools.HttpRequestParser(_BodyCallbacks(self))
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
            self.data_received(rest)

    # ── Refusing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse(self, refusal: _Refused) -> None:
        """Say why, where it can be told from an answer, and close; requests that came before get their answers."""
        self._head_is_there()
        if self._in_body:
            # It is the body of the last request that is broken.
            if self.cycle.response_started or self.pipeline:
                self.transport.close()
                return
        elif self._is_answering():
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self.transport.write(_answer(refusal))
        self.transport.close()


class _BodyCallbacks:
    """The parser's callbacks for who knows the head already."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete


def bounded_protocol(settings: Settings) -> type[BoundedProtocol]:
    """The protocol for a server with these settings."""
    return type("Protocol", (BoundedProtocol,), {"stall_seconds": settings.body_timeout_seconds})


def _answer(refusal: _Refused) -> bytes:
    request_id = secrets.token_hex(8)
    token = observability.request_id.set(request_id)
    logger.info("no request", extra={"status": refusal.status, "code": refusal.code})
    observability.request_id.reset(token)
    observability.labelled(observability.REQUESTS, "other", "unmatched", refusal.status).inc()
    body = json.dumps(problem_body(refusal.code, str(refusal), request_id, status=refusal.status)).encode()
    fields = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": request_id,
    }
    fields |= {name.decode(): value.decode() for name, value in SAFE_BY_DEFAULT.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return STATUS_LINE[refusal.status] + head.encode() + b"\r\n" + body
