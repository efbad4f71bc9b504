"""Images fetched from where a caller says they are: from the public internet, and from nowhere else."""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from smart_assets.assets.importing import Importer, IPAddress, is_allowed
from smart_assets.assets.spool import Spool
from smart_assets.errors import BodyTooLarge, Busy, InvalidParameter, SourceUnavailable
from smart_assets.settings import ImportSettings
from smart_assets.threads import Threads
from tests import images
from tests.conftest import Service, StartService, problem_of

LOOPBACK = "127.0.0.0/8"
HOLIDAY = images.jpeg(40, 30)


def ok(content: bytes = HOLIDAY, *headers: str) -> bytes:
    head = ["HTTP/1.1 200 OK", "Content-Type: image/jpeg", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + content


def elsewhere(url: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


@dataclass
class Site:
    """A server of somebody's: what it answers at each path, and what it was asked."""

    port: int = 0
    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    silent: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"allow_http": True, "ports": (self.port,), "allowed_networks": (ipaddress.ip_network(LOOPBACK),)}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            writer.write(self.answers.get(head.split()[1], b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
            await writer.drain()
            if head.split()[1].startswith("/stalls"):
                await self.silent.wait()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def site(context: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    there = Site()
    server = await asyncio.start_server(there.serve, "127.0.0.1", 0, ssl=context)
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        there.silent.set()
        server.close()
        await server.wait_closed()


@pytest.fixture
async def theirs() -> AsyncIterator[Site]:
    async with site() as there:
        yield there


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, 10_000_000, Threads("test"))


async def fetch(there: Site, spool: Spool, path: str = "/a.jpg", **settings: Any) -> tuple[bytes | Path, Any]:
    importer = Importer(ImportSettings(**{**there.settings, **settings}))
    fetched = await importer.fetch(there.url(path), spool, max_bytes=1_000_000)
    return spool.source, fetched


# ── Addresses ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "8.8.8.8", "2606:4700::1111", "2a00:1450:4001::200e"])
def test_the_public_internet_may_be_asked(address: str) -> None:
    assert is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1",
        "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1",
        "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
        "fec0::1", "ff02::1",
    ],
)  # fmt: skip
def test_nothing_else_may(address: str) -> None:
    assert not is_allowed(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_address_in_the_clothes_of_another_is_refused(address: ipaddress.IPv4Address) -> None:
    for disguise in (f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}"):
        assert not is_allowed(ipaddress.ip_address(disguise))


def test_a_network_may_be_allowed() -> None:
    networks = (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8"))
    assert is_allowed(ipaddress.ip_address("10.1.2.3"), networks)
    assert is_allowed(ipaddress.ip_address("fd00::1"), networks)
    assert not is_allowed(ipaddress.ip_address("10.2.0.1"), networks)


@pytest.mark.parametrize(
    "url",
    [
        "", "a.jpg", "//example.com/a.jpg", "http://example.com/", "ftp://example.com/", "file:///etc/passwd",
        "gopher://example.com/", "https://", "https:///a", "https://user@example.com/", "https://user:pw@example.com/",
        "https://example.com:22/", "https://example.com:x/", "https://example.com:99999/", "https://exa mple.com/",
        "https://example.com\\@127.0.0.1/", "https://example.com/\r\nHost: x", "https://[::1/", "https://..../",
        "https://example.com/" + "a" * 2048, "javascript:alert(1)", "https://a\0b/",
    ],
)  # fmt: skip
def test_what_is_no_url_for_images_is_refused_before_anybody_is_asked(url: str) -> None:
    with pytest.raises(InvalidParameter):
        Importer(ImportSettings()).check(url)


def test_a_url_is_asked_for_as_servers_expect_it() -> None:
    check = Importer(ImportSettings()).check
    assert check("https://Bücher.example/ä%20b.jpg?q=é#top") == (
        "https://xn--bcher-kva.example:443/%C3%A4%20b.jpg?q=%C3%A9"
    )
    assert check("https://[2606:4700::1111]") == "https://[2606:4700::1111]:443/"


@given(st.text(max_size=60))
def test_whatever_is_sent_is_a_url_or_refused(text: str) -> None:
    try:
        url = Importer(ImportSettings()).check(f"https://{text}")
    except InvalidParameter:
        return
    assert url.isascii()
    assert url.isprintable()
    assert " " not in url


# ── Where connections go ────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_address_that_is_not_public_is_refused(theirs: Site, spool: Spool) -> None:
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433"):
        importer = Importer(ImportSettings(allow_http=True, ports=(theirs.port,)))
        with pytest.raises(InvalidParameter, match=r"not public|cannot be found"):
            await importer.fetch(theirs.url("/a.jpg", host), spool, max_bytes=1000)
    assert theirs.asked == []


async def test_one_address_of_many_that_is_not_public_is_one_too_many(theirs: Site, spool: Spool) -> None:
    async def resolve(_host: str, _port: int) -> list[IPAddress]:
        return [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("10.0.0.1")]

    importer = Importer(ImportSettings(**theirs.settings), resolve)
    with pytest.raises(InvalidParameter, match="not public"):
        await importer.fetch(theirs.url("/a.jpg", "example.com"), spool, max_bytes=1000)
    assert theirs.asked == []


async def test_a_name_that_means_something_else_a_moment_later_changes_nothing(theirs: Site, spool: Spool) -> None:
    """The connection goes to the address that was looked at: the name is resolved once for it."""
    theirs.answers["/a.jpg"] = ok()
    meanings = [["127.0.0.1"], ["10.0.0.1"]]

    async def resolve(_host: str, _port: int) -> list[IPAddress]:
        return [ipaddress.ip_address(address) for address in meanings.pop(0)]

    importer = Importer(ImportSettings(**theirs.settings), resolve)
    await importer.fetch(theirs.url("/a.jpg", "rebinding.example"), spool, max_bytes=1_000_000)
    assert spool.source == HOLIDAY
    assert meanings == [["10.0.0.1"]]
    assert f"Host: rebinding.example:{theirs.port}" in theirs.asked[0]


async def test_a_redirect_is_looked_at_like_the_first_address(theirs: Site, spool: Spool) -> None:
    theirs.answers["/a.jpg"] = elsewhere("http://10.0.0.1/latest/meta-data/")
    with pytest.raises(InvalidParameter, match=r"port|not public"):
        await fetch(theirs, spool)
    theirs.answers["/a.jpg"] = elsewhere(f"http://169.254.169.254:{theirs.port}/latest/meta-data/")
    with pytest.raises(InvalidParameter, match="not public"):
        await fetch(theirs, spool)
    theirs.answers["/a.jpg"] = elsewhere("file:///etc/passwd")
    with pytest.raises(InvalidParameter, match="must begin with"):
        await fetch(theirs, spool)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(theirs: Site, spool: Spool, status: int) -> None:
    theirs.answers |= {"/a.jpg": elsewhere("/moved/b%20c.jpg?x=1", status), "/moved/b%20c.jpg?x=1": ok()}
    source, fetched = await fetch(theirs, spool)
    assert (source, fetched.last_segment) == (HOLIDAY, "b c.jpg")


async def test_redirects_end(theirs: Site, spool: Spool) -> None:
    theirs.answers["/a.jpg"] = elsewhere("/a.jpg")
    with pytest.raises(SourceUnavailable, match="more than 2"):
        await fetch(theirs, spool, max_redirects=2)
    assert len(theirs.asked) == 3


async def test_nothing_of_the_caller_goes_along(theirs: Site, spool: Spool) -> None:
    theirs.answers |= {
        "/a.jpg": elsewhere("/b.jpg").replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n"),
        "/b.jpg": ok(),
    }
    await fetch(theirs, spool)
    for head in theirs.asked:
        names = {line.partition(":")[0].lower() for line in head.splitlines()[1:] if line}
        assert names == {"host", "user-agent", "accept", "accept-encoding", "connection"}


async def test_a_certificate_nobody_vouches_for_is_refused(tmp_path: Path, spool: Spool) -> None:
    async with site(_self_signed(tmp_path)) as there:
        there.answers["/a.jpg"] = ok()
        importer = Importer(ImportSettings(**there.settings))
        with pytest.raises(SourceUnavailable):
            await importer.fetch(there.url("/a.jpg", scheme="https"), spool, max_bytes=1_000_000)
        assert there.asked == []


def _self_signed(folder: Path) -> ssl.SSLContext:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem = folder / "site.pem"
    pem.write_bytes(
        key.private_bytes(encoding, form, serialization.NoEncryption()) + certificate.public_bytes(encoding)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


# ── What comes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "answered 302"),
        (ok(HOLIDAY, "Content-Encoding: gzip"), "compressed"),
        (ok()[:-10], "broke"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "broke"),
        (b"", "broke"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "broke"),
    ],
)
async def test_what_cannot_be_had_is_said(theirs: Site, spool: Spool, answer: bytes, error: str) -> None:
    theirs.answers["/a.jpg"] = answer
    with pytest.raises(SourceUnavailable, match=error):
        await fetch(theirs, spool)


def chunked(content: bytes) -> bytes:
    size = f"{len(content):x}".encode()
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + content + b"\r\n0\r\n\r\n"


async def test_more_than_may_be_uploaded_is_too_large(theirs: Site, tmp_path: Path) -> None:
    theirs.answers |= {"/said": ok(bytes(1001)), "/unsaid": chunked(bytes(1001)), "/fits": chunked(bytes(1000))}
    importer = Importer(ImportSettings(**theirs.settings))
    for path in ("/said", "/unsaid"):
        with pytest.raises(BodyTooLarge):
            await importer.fetch(theirs.url(path), Spool(tmp_path, 1000, Threads("test")), max_bytes=1000)
    fits = Spool(tmp_path, 1000, Threads("test"))
    await importer.fetch(theirs.url("/fits"), fits, max_bytes=1000)
    assert fits.size == 1000


async def test_a_server_that_stalls_is_given_up(theirs: Site, spool: Spool) -> None:
    theirs.answers["/stalls"] = ok()[:-10]
    with pytest.raises(SourceUnavailable, match="in time"):
        await fetch(theirs, spool, "/stalls", timeout_seconds=0.2)


async def test_more_at_once_than_there_is_room_for_are_busy(theirs: Site, spool: Spool, tmp_path: Path) -> None:
    theirs.answers["/stalls"] = ok()[:-10]
    importer = Importer(ImportSettings(**theirs.settings, at_once=1, wait_seconds=0))
    first = asyncio.create_task(importer.fetch(theirs.url("/stalls"), spool, max_bytes=1_000_000))
    while not theirs.asked:
        await asyncio.sleep(0)
    with pytest.raises(Busy):
        await importer.fetch(theirs.url("/a.jpg"), Spool(tmp_path, 1000, Threads("test")), max_bytes=1000)
    theirs.silent.set()
    with pytest.raises(SourceUnavailable):
        await first


# ── Over HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────

Start = Callable[..., Any]


@pytest.fixture
async def service(start_service: StartService, theirs: Site) -> AsyncIterator[Service]:
    async with start_service(imports=ImportSettings(**theirs.settings)) as running:
        yield running


async def post(service: Service, url: str, key: str | None = None, **members: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return await service.client.post("/api/v1/assets", json={"source_url": url, **members}, headers=headers)


async def test_an_import_is_an_upload(service: Service, theirs: Site) -> None:
    theirs.answers["/x/holiday%20photo.jpg?w=1"] = ok()
    answer = await post(service, theirs.url("/x/holiday photo.jpg?w=1").replace(" ", "%20"), metadata={"a": 1})
    assert answer.status_code == 201, answer.text
    asset = answer.json()
    assert (asset["filename"], asset["metadata"], asset["size_bytes"]) == ("holiday photo.jpg", {"a": 1}, len(HOLIDAY))
    assert (await service.client.get(asset["url"])).content == HOLIDAY
    assert service.temporary_files() == []


async def test_the_name_is_the_callers_else_the_servers_else_the_paths(service: Service, theirs: Site) -> None:
    theirs.answers["/a.jpg"] = ok(HOLIDAY, 'Content-Disposition: attachment; filename="../b.jpg"')
    assert (await post(service, theirs.url("/a.jpg"))).json()["filename"] == "../b.jpg"
    assert (await post(service, theirs.url("/a.jpg"), filename="c.jpg")).json()["filename"] == "c.jpg"


async def test_what_is_no_image_is_refused_and_leaves_nothing(service: Service, theirs: Site) -> None:
    theirs.answers |= {"/page": ok(b"<!doctype html><p>hello</p>"), "/empty": ok(b"")}
    problem_of(await post(service, theirs.url("/page")), 415, "unsupported_image")
    problem_of(await post(service, theirs.url("/empty")), 422, "invalid_parameter")
    problem = problem_of(await post(service, theirs.url("/nowhere")), 422, "invalid_parameter")
    assert problem["errors"] == [{"loc": ["body", "source_url"], "message": "answered 404"}]
    assert await service.leaves_nothing()


async def test_a_retry_under_a_key_asks_nobody_again(service: Service, theirs: Site) -> None:
    theirs.answers["/a.jpg"] = ok()
    first = await post(service, theirs.url("/a.jpg"), "key")
    again = await post(service, theirs.url("/a.jpg"), "key")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert len(theirs.asked) == 1
    problem_of(await post(service, theirs.url("/b.jpg"), "key"), 409, "idempotency_conflict")


async def test_what_could_not_be_had_may_be_tried_again_under_the_same_key(service: Service, theirs: Site) -> None:
    problem_of(await post(service, theirs.url("/a.jpg"), "key"), 422, "invalid_parameter")
    theirs.answers["/a.jpg"] = ok()
    assert (await post(service, theirs.url("/a.jpg"), "key")).status_code == 201


async def test_by_default_nothing_on_this_machine_is_asked(start_service: StartService, theirs: Site) -> None:
    async with start_service() as running:
        for url in (theirs.url("/a.jpg"), "https://localhost/a.jpg", "https://169.254.169.254/latest/meta-data/"):
            problem_of(await post(running, url), 422, "invalid_parameter")
    assert theirs.asked == []
