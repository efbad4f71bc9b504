"""Images fetched from where a caller says they are.

A server that fetches what callers name can be made to ask what nobody else may: itself, its neighbours, a cloud's
metadata (server-side request forgery). So every address a name resolves to is looked at when the connection is made,
and the connection goes to an address that was looked at: a name that means something else a moment later (DNS
rebinding) changes nothing. At each redirect all of it is done again. No proxy is used, and nothing of the caller's
request goes along.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpcore
from anyio import to_thread

from smart_assets.assets.spool import Spool
from smart_assets.errors import BodyTooLarge, Busy, InvalidParameter, SourceUnavailable
from smart_assets.settings import ImportSettings, IPNetwork

MAX_URL_LENGTH: Final = 2048
_CONNECT_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 10.0
_HEADERS: Final = [
    (b"User-Agent", b"smart-assets"),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
]
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OK: Final = 200
_PORTS: Final = {"https": 443, "http": 80}
_UNFIT: Final = re.compile(r"[\x00-\x20\x7f\\]")
_HOST: Final = re.compile(r"[a-z0-9_.-]+", re.ASCII | re.IGNORECASE)
_SAFE: Final = "/%:@!$&'()*+,;=~?-._"

# Not global by the registries, or a way into another network, whatever this Python's tables say of them.
# https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-special-registry
_SPECIAL: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/3",
            "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/63", "2001::/23", "2002::/16",
            "3fff::/20", "5f00::/16", "fc00::/6", "fe80::/9", "ff00::/8",
        ),
    )
)  # fmt: skip

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Count = Callable[[int], Awaitable[None]]
Resolve = Callable[[str, int], Awaitable[list[IPAddress]]]


@dataclass(frozen=True)
class Fetched:
    """What came with the bytes: the answer's Content-Disposition, and the last part of the path it came from."""

    disposition: bytes
    last_segment: str


class Importer:
    """Fetches images for uploads; one for the process."""

    def __init__(self, settings: ImportSettings, resolve: Resolve | None = None) -> None:
        """`resolve` gives every address of a name; the system's resolver, unless said. Nothing is kept open."""
        self._settings = settings
        self._resolve = resolve or _resolve
        self._turns = asyncio.Semaphore(settings.at_once)

    def check(self, url: str) -> str:
        """The URL as it is asked for; InvalidParameter at ("body", "source_url") where it never will be."""
        if len(url) > MAX_URL_LENGTH or _UNFIT.search(url):
            raise _invalid(f"is no URL, or longer than {MAX_URL_LENGTH} characters")
        try:
            parts = urlsplit(url)
            host, port = _ascii_host(parts.hostname or ""), parts.port
        except ValueError:
            raise _invalid("is no URL") from None
        schemes = ("https", "http") if self._settings.allow_http else ("https",)
        if parts.scheme not in schemes:
            raise _invalid(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        if parts.username is not None or parts.password is not None:
            raise _invalid("must hold no user name and no password")
        if host is None:
            raise _invalid("names no host")
        port = port or _PORTS[parts.scheme]
        if port not in self._settings.ports:
            allowed = ", ".join(map(str, self._settings.ports))
            raise _invalid(f"names the port {port}; allowed: {allowed}")
        path = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=_SAFE)
        return f"{parts.scheme}://{host}:{port}{path}"

    async def fetch(self, url: str, spool: Spool, *, max_bytes: int, count: Count | None = None) -> Fetched:
        """Fill `spool` with what is at `url`, and finish it. `count` is told of the bytes as they come.

        Raises InvalidParameter where the URL leads to where nobody may ask, SourceUnavailable where nothing can be had
        there now, BodyTooLarge, NoSpace, and Busy where too many are fetched already.
        """
        url = self.check(url)
        try:
            async with asyncio.timeout(self._settings.wait_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Busy("too many images are being imported; try again") from None
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await self._follow(url, spool, max_bytes, count)
        except (TimeoutError, httpcore.TimeoutException):
            raise _unavailable("did not send it in time") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise _unavailable("broke the connection, or cannot be reached") from error
        finally:
            self._turns.release()

    async def _follow(self, url: str, spool: Spool, max_bytes: int, count: Count | None) -> Fetched:
        # Once for the process, and off the loop: reading the certificates takes as long as ten uploads.
        tls = await to_thread.run_sync(_tls)
        guard = _Guard(self._settings.allowed_networks, self._resolve)
        for _ in range(self._settings.max_redirects + 1):
            # A pool for each: nothing that one server says may live on for the next.
            async with (
                httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=guard) as pool,
                pool.stream("GET", url, headers=_HEADERS, extensions={"timeout": _TIMEOUTS}) as answer,
            ):
                headers = {name.lower(): value for name, value in answer.headers}
                if answer.status in _REDIRECTS and b"location" in headers:
                    url = self.check(urljoin(url, headers[b"location"].decode("latin-1")))
                    continue
                if answer.status != _OK:
                    raise _unavailable(f"answered {answer.status}")
                if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                    raise _unavailable("sent it compressed, which was not asked for")
                if _length(headers.get(b"content-length")) > max_bytes:
                    raise BodyTooLarge(f"the file is larger than the limit of {max_bytes} bytes")
                async for chunk in answer.aiter_stream():
                    await spool.write(chunk)
                    if count is not None:
                        await count(len(chunk))
                await spool.finish()
                return Fetched(headers.get(b"content-disposition", b""), unquote(urlsplit(url).path.rpartition("/")[2]))
        raise _unavailable(f"led to more than {self._settings.max_redirects} other addresses")


_TIMEOUTS: Final = {"connect": _CONNECT_SECONDS, "read": _SILENCE_SECONDS, "write": _SILENCE_SECONDS}


@cache
def _tls() -> ssl.SSLContext:
    """What certificates are held against."""
    return httpcore.default_ssl_context()


class _Guard(httpcore.AsyncNetworkBackend):
    """Connects to public addresses, and to those of networks the operator allows."""

    def __init__(self, allowed: Sequence[IPNetwork], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not all(is_allowed(address, self._allowed) for address in addresses):
            # Not which one, nor what is there: a caller could map a network by asking.
            raise _invalid("leads to an address that is not public")
        for number, address in enumerate(addresses, 1):
            try:
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise _unavailable("cannot be found")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise _invalid("leads to no network")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _ascii_host(host: str) -> str | None:
    """A host as it stands in a URL that is asked for; None where it is none."""
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host)}]"
        except ValueError:
            return None
    try:
        # What looks alike becomes the same here, and may turn into characters that no name has.
        name = host.encode("idna").decode()
    except UnicodeError:
        return None
    return name if _HOST.fullmatch(name) else None


async def _resolve(host: str, port: int) -> list[IPAddress]:
    """Every address of a name, each once, in the resolver's order."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _unavailable("cannot be found") from None
    return list(dict.fromkeys(ipaddress.ip_address(str(where[0])) for *_, where in found))


def is_allowed(address: IPAddress, networks: Sequence[IPNetwork] = ()) -> bool:
    """Whether an address is on the public internet, or in one of the `networks`."""
    if any(address in network for network in networks):
        return True
    special = address.is_multicast or any(address in network for network in _SPECIAL)
    return address.is_global and not special


def _length(header: bytes | None) -> int:
    try:
        return int(header or b"0")
    except ValueError:
        return 0


def _invalid(message: str) -> InvalidParameter:
    return InvalidParameter.at("body", "source_url", message=message)


def _unavailable(message: str) -> SourceUnavailable:
    return SourceUnavailable.at("body", "source_url", message=message)
