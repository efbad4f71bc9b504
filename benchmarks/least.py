"""The least code that does what an upload promises: how near to the naive endpoint can one come at all?

The form's bytes kept as they come; then, in one hop to a thread: hash, look at the header, note the intent, write,
sync, link, sync the directory, note that it is ready. Two commits with SQLite's `synchronous=FULL`. No key, no limit,
no metadata, no batch, no repair after a crash, no error anybody could read.
"""

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from uuid import uuid4

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import ImageFile
from python_multipart.multipart import MultipartParser, parse_options_header

folder = Path(os.environ["LEAST_FOLDER"])
files = folder / "files"
files.mkdir(exist_ok=True)
directory = os.open(files, os.O_RDONLY | os.O_DIRECTORY)
database = sqlite3.connect(folder / "catalogue.sqlite3", check_same_thread=False, isolation_level=None)
for statement in (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "CREATE TABLE assets (id TEXT PRIMARY KEY, state TEXT, size INTEGER, sha256 TEXT, width INTEGER, height INTEGER)",
):
    database.execute(statement)
writing = Lock()
app = FastAPI()

Chunk = bytes | memoryview


def _commit(statement: str, values: Sequence[object]) -> None:
    with writing:
        database.execute("BEGIN IMMEDIATE")
        database.execute(statement, values)
        database.execute("COMMIT")


def _store(chunks: Sequence[Chunk]) -> dict[str, str | int]:
    digest, header = hashlib.sha256(), ImageFile.Parser()
    for chunk in chunks:
        digest.update(chunk)
    header.feed(bytes(chunks[0]))
    if header.image is None:
        raise ValueError("not an image")
    name, size = f"{uuid4()}.jpg", sum(map(len, chunks))
    _commit(
        "INSERT INTO assets VALUES (?, 'pending', ?, ?, ?, ?)", (name, size, digest.hexdigest(), *header.image.size)
    )
    descriptor, temporary = tempfile.mkstemp(dir=folder)
    try:
        os.writev(descriptor, chunks)
        os.fsync(descriptor)
        os.link(temporary, files / name)
        os.fsync(directory)
    finally:
        os.unlink(temporary)  # noqa: PTH108 - this file is about what is least
        os.close(descriptor)
    _commit("UPDATE assets SET state = 'ready' WHERE id = ?", (name,))
    return {"name": name, "size": size}


@app.post("/upload")
async def upload(request: Request) -> JSONResponse:
    """Store a file under a random name."""
    chunks: list[Chunk] = []

    def take(data: bytes, start: int, end: int) -> None:
        chunks.append(memoryview(data)[start:end])

    _, options = parse_options_header(request.headers["content-type"])
    parser = MultipartParser(options[b"boundary"], {"on_part_data": take})
    async for piece in request.stream():
        parser.write(piece)
    return JSONResponse(await to_thread.run_sync(_store, chunks), 201)
