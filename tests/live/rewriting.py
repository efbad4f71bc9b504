"""A proxy before an HTTP server that changes what it carries, as a test says: a clock, a header, an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


@dataclass
class Rewriting:
    """What is changed, and where the proxy is."""

    address: str = ""
    ahead_seconds: float = 0
    """By how much the server's clock seems to be ahead."""
    refuses_header: str = ""
    """Requests that have it are refused."""
    refusal: tuple[int, str] = (501, "NotImplemented")
    """With this status and this code."""
    gives_again: dict[str, bytes] = field(default_factory=dict)
    """By path: what a GET was once given is given for ever, whoever asks; where `remembers` is set."""
    remembers: bool = False


@contextmanager
def rewriting(upstream: str) -> Iterator[Rewriting]:
    """The proxy as long as the context. The host's name goes up as the client said it: signatures hold."""
    changes = Rewriting()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _carry(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            if changes.refuses_header and self.headers.get(changes.refuses_header):
                status, code = changes.refusal
                self._answer(
                    status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode()
                )
                return
            if changes.remembers and self.command == "GET" and path in changes.gives_again:
                self._answer(200, {}, changes.gives_again[path])
                return
            connection = HTTPConnection(urlsplit(upstream).netloc, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _HOP_BY_HOP | {"expect"}:
                        connection.putheader(name, value)
                connection.endheaders(body)
                response = connection.getresponse()
                data = response.read()
                headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
                if self.command == "GET" and response.status == 200 and "?" in self.path:
                    changes.gives_again[path] = data
                self._answer(response.status, headers, data)
            finally:
                connection.close()

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            now = formatdate(usegmt=True)
            given = parsedate_to_datetime(headers.get("Date", now)).timestamp()
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            rest = {name: value for name, value in headers.items() if name not in {"Date", "Content-Length"}}
            self.send_response_only(status)
            self.send_header("Date", formatdate(given + changes.ahead_seconds, usegmt=True))
            for name, value in rest.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _carry  # noqa: N815 - the names the base class asks for

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    changes.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield changes
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
