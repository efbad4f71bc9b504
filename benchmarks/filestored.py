"""What uploads are measured against: filestore's own quick start, every file under a name of its own."""

import os
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from fastapi import Depends, FastAPI
from filestore import (  # type: ignore[import-not-found,unused-ignore]
    FileStore,
    LocalEngine,
    Store,
    StoreConfig,
)

engine = LocalEngine(base_dir=Path(os.environ["FILESTORE_FOLDER"]))
config = StoreConfig(filename=lambda *_: f"{uuid4()}.jpg")
app = FastAPI()


@app.post("/upload")
async def upload(
    store: Annotated[Store, Depends(FileStore("file", required=True, engine=engine, config=config))],
) -> Store:
    """Store a file."""
    return store
