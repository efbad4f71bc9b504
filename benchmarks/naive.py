"""What uploads and downloads are measured against: the ten lines everybody writes first, and Starlette's static files.

No check, no hash, no catalogue, no fsync: `UploadFile`, read, write in a thread.
"""

import os
from pathlib import Path
from uuid import uuid4

from anyio import to_thread
from fastapi import FastAPI, UploadFile
from fastapi.staticfiles import StaticFiles

folder = Path(os.environ["NAIVE_FOLDER"])
app = FastAPI()


@app.post("/upload")
async def upload(file: UploadFile) -> dict[str, str | int]:
    """Store a file under a random name."""
    content = await file.read()
    path = folder / f"{uuid4()}.jpg"
    await to_thread.run_sync(path.write_bytes, content)
    return {"name": path.name, "size": len(content)}


app.mount("/static", StaticFiles(directory=folder))
