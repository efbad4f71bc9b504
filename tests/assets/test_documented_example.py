"""The example of docs/library.md, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.images import IMAGES

DOCUMENT = Path(__file__).parents[2] / "docs/library.md"

# Neither the service's framework nor its catalogue nor its engine may be needed.
BLOCKED = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "pyvips", "PIL")


def test_the_documented_example_runs_without_the_service(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes(IMAGES["jpeg"]())
    block = f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"
    ran = subprocess.run(
        [sys.executable, "-c", block + code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert said[0] == f"stored {len(IMAGES['jpeg']())} bytes"
    assert said[1] == "dimensions (320, 240)"
    assert said[2].endswith("data/assets/private/trip/hôtel & beach.jpg")
    assert said[3:] == [f"read {len(IMAGES['jpeg']())} bytes", "removed True"]
    assert not [path for path in (tmp_path / "data/assets").rglob("*") if path.is_file()]
