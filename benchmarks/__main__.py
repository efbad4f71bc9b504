"""How fast the service is, beside what it is measured against, on this machine.

    make bench                           everything, ten minutes at most once it is set up
    make bench-quick                     a minute, for a change in hand
    python -m benchmarks [FAMILY …]      some of it

Each server is pinned to one core, the load to another. Contestants take turns within each round, so that a machine
whose speed drifts drifts for all of them; what counts is the median of what the rounds say. Nothing is cached between
requests or switched off: the service asks for keys, hashes, checks, syncs and catalogues as it does for anybody.

Results are kept in benchmarks/results and in docs/performance.md where there were five rounds or more. Files are kept
in the environment's folder while it runs (a few gigabytes), because a temporary folder may be memory, which
takes no time to sync.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import load, machine, results
from benchmarks.families import FAMILIES, QUICK, Family
from benchmarks.machine import ENVIRONMENT, NotThere
from benchmarks.rounds import Run
from benchmarks.table import plain

ROUNDS, QUICK_ROUNDS = 5, 3


def main() -> None:
    """Run it."""
    arguments = _arguments()
    if arguments.redraw:
        results.show(FAMILIES)
        return
    try:
        cores = machine.cores()
        load.program()
    except NotThere as error:
        sys.exit(f"this cannot measure here: there is no {error}")
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    families = arguments.family or (QUICK if arguments.quick else list(FAMILIES))
    begin, run = time.monotonic(), Run(cores, rounds, quick=arguments.quick)
    machine.versions()  # of the checkout as it is now, before results are written
    # One folder for all, removed at the end: so many files removed would slow down the next family's.
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=ENVIRONMENT, ignore_cleanup_errors=True) as folder:
        for name in families:
            run.family, run.folder = name, Path(folder) / name
            run.folder.mkdir()
            _measure(run, FAMILIES[name])
    print(f"{time.monotonic() - begin:.0f} s")


def _measure(run: Run, family: Family) -> None:
    """One family: measured, printed, kept."""
    outcome = family.measure(run)
    run.done()
    found = outcome.to_json()
    print(f"\n{family.TITLE}\n{family.SUBTITLE}\n\n{plain(results.rows_of(found))}\n", flush=True)
    if run.quick or run.rounds < ROUNDS:
        return
    about = {
        "title": family.TITLE,
        "subtitle": family.SUBTITLE,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": run.rounds,
        "machine": machine.describe(run.folder),
        "versions": machine.versions(),
    }
    results.keep(run.family, about | found)
    results.show(FAMILIES)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", nargs="*", help=f"what to measure, of {', '.join(FAMILIES)}; all unless said")
    parser.add_argument("--quick", action="store_true", help=f"fewer rounds and contestants; of {', '.join(QUICK)}")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} unless this says otherwise; {QUICK_ROUNDS} where quick")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: plots and tables of what is kept")
    arguments = parser.parse_args()
    if unknown := set(arguments.family) - set(FAMILIES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    return arguments


if __name__ == "__main__":
    main()
