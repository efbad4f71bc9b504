"""The service's engine alone: sizes to order, as its rendering workers make them, and what that took.

    python -m benchmarks.engine

Orders and answers are lines of JSON; see `peers.Engine`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from smart_assets.formats import ImageFormat
from smart_assets.imaging.info import ImageInfo, Limits
from smart_assets.imaging.jobs import RenderJob, Rendition
from smart_assets.imaging.probe import probe
from smart_assets.imaging.render import render
from smart_assets.imaging.sizes import RenderOptions, Size
from smart_assets.settings import Settings


def make(order: dict[str, Any], info: ImageInfo) -> dict[str, Any]:
    """One job through the code that a rendering worker runs."""
    job = RenderJob(
        Path(order["source"]),
        info,
        tuple(Size(width, None) for width in order["sizes"]),
        RenderOptions(format=ImageFormat(order["format"]), quality=80),
        order.get("placeholder", False),
        Path(order["into"]),
    )
    wall, cpu = time.perf_counter(), time.process_time()
    result = render(job)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    files = [str(made.path) for made in result.renditions if isinstance(made, Rendition)]
    return {"cpu_ms": 1000 * cpu, "wall_ms": 1000 * wall, "files": files}


def main() -> None:
    """Until there are no more orders."""
    limits = Limits.from_settings(Settings())
    for line in sys.stdin:
        order = json.loads(line)
        # An upload is probed whether sizes are asked for or not.
        info = probe(Path(order["source"]), limits)
        sys.stdout.write(json.dumps(make(order, info)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
