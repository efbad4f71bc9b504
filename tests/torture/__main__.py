"""`make torture`: every named step, then random kills.

python -m tests.torture --kills 300 --seed 7 --processes 2 --storage s3 --database postgres
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.torture.harness import Grounds, Tally
from tests.torture.places import Folder, Place
from tests.torture.steps import STEPS


def main() -> int:
    """Say what was found; 1 where that is anything."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description="Kill the service, and see what is left."
    )
    parser.add_argument("--kills", type=int, default=300, help="random kills, after every named step (default: 300)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the random kills")
    parser.add_argument(
        "--processes",
        type=int,
        choices=[1, 2],
        default=1,
        help="1: a new process finishes what the killed one left; 2: another one that shares its data directory does",
    )
    parser.add_argument("--storage", choices=["local", "s3"], default="local")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite", help="where the catalogue is")
    parser.add_argument("--yards", type=int, default=4, help="data directories at once (default: 4)")
    parser.add_argument("--steps", default="", help="only steps whose names contain this")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)

    tally, began = Tally(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    steps = [step for step in STEPS if step.is_on(options.storage) and options.steps in step.name]
    with ExitStack() as stack:
        place: Callable[[Path], Place] = Folder
        if options.storage == "s3":
            from tests.torture.bucket import Bucket, s3_server

            server = stack.enter_context(s3_server())
            place = lambda _: Bucket(server)  # noqa: E731
        database: Callable[[], str | None] = lambda: None  # noqa: E731
        if options.database == "postgres":
            from tests.live.postgres import postgres_server

            postgres = stack.enter_context(postgres_server())
            database = lambda: postgres.new_database(empty=True)  # noqa: E731
        two = options.processes == 2

        async def torture() -> None:
            await Grounds(folder / "steps", options.yards, place, two, database).play(tally, steps)
            print(f"{len(tally.reached)} steps: {tally}", flush=True)
            await Grounds(folder / "storms", options.yards, place, two, database).storm(
                tally, options.kills, options.seed
            )

        asyncio.run(torture())
    print(f"{tally} (in {time.monotonic() - began:.0f} s; all was settled {tally.slowest:.1f} s after a death at most)")
    for finding in tally.findings:
        print(f"  {finding}")
    if tally.findings:
        print(f"  what is left lies in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
