"""Four sizes of one image: CPU time of our engine beside sharp's, and how much both look like the original.

Ours is `imaging.render` as the rendering workers run it; sharp makes each size from the original. Both have one thread,
no cache, the same quality and effort, and read and write files on the same core.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks import peers, photographs
from benchmarks.likeness import to_lanczos
from benchmarks.machine import NotThere
from benchmarks.peers import Engine
from benchmarks.photographs import Photograph
from benchmarks.rounds import CPU, MILLISECONDS, Case, Outcome, Run
from benchmarks.table import Row, Series, Target, difference, figure, ratio, together

TITLE = "Four sizes of one image (1600, 800, 400, 160), quality 80"
SUBTITLE = "CPU time, one thread, against sharp, each size from the original; SSIM to Pillow's Lanczos"

SIZES = (1600, 800, 400, 160)
_SOURCES = {"12 MP JPEG": photographs.PHONE, "6 MP JPEG": photographs.CAMERA, "3 MP PNG": photographs.SCREEN}
_FORMATS = {"jpeg": Target(0.7, at_most=True), "webp": Target(0.87, at_most=True)}
_WORST = Target(1.03, at_most=True)
_LIKENESS = Target(-0.005)


def measure(run: Run) -> Outcome:
    """Every source in every format, by both."""
    folder = run.new_folder("files")
    with ExitStack() as stack:
        ours = stack.enter_context(peers.our_engine(on=run.cores.server))
        try:
            sharp: Engine | str = stack.enter_context(peers.sharp(on=run.cores.server))
        except NotThere as error:
            sharp = str(error)
        contests = [
            _Contest(run, folder, name, photograph, format_, ours, sharp)
            for format_ in _FORMATS
            for name, photograph in _SOURCES.items()
        ]
        cases = [case for contest in contests for case in contest.cases]
        one_of_each = [case for contest in contests[:: len(_SOURCES)] for case in contest.cases]
        run.take_turns(cases, warm_up=one_of_each, rounds=1 if run.quick else run.rounds)
        rows = [row for format_ in _FORMATS for row in _rows(run, format_, contests)]
    return Outcome(rows, [series for case in cases for series in case.all_series()])


class _Contest:
    """One source and format."""

    def __init__(
        self, run: Run, folder: Path, name: str, photograph: Photograph, format_: str, ours: Engine, sharp: Engine | str
    ) -> None:
        self.format, self.name = format_, f"{name} to {format_.upper() if format_ == 'jpeg' else 'WebP'}"
        self.source = photograph.write(folder)
        self._files: dict[str, list[str]] = {}
        self.ours = self._case("ours", ours, folder)
        self.sharp = sharp if isinstance(sharp, str) else self._case("sharp", sharp, folder)

    @property
    def cases(self) -> list[Case]:
        """Whoever is there."""
        return [self.ours] if isinstance(self.sharp, str) else [self.sharp, self.ours]

    def likeness(self, who: str) -> list[float]:
        """How much what `who` made looks like the source, size by size."""
        return to_lanczos(self._files[who], self.source)

    def _case(self, who: str, engine: Engine, folder: Path) -> Case:
        def measure() -> dict[str, float]:
            for file in self._files.get(who, []):
                Path(file).unlink()
            made = engine.make(self.source, SIZES, self.format, folder)
            self._files[who] = made["files"]
            return {CPU: made["cpu_ms"], MILLISECONDS: made["wall_ms"]}

        return Case(f"{who}, {self.name}", measure)


def _rows(run: Run, format_: str, contests: list[_Contest]) -> list[Row]:
    """A format's lines of the table."""
    of_format = [contest for contest in contests if contest.format == format_]
    name = of_format[0].name.rpartition(" ")[2]
    ours = [contest.ours.series(CPU) for contest in of_format]
    missing = next((contest.sharp for contest in of_format if isinstance(contest.sharp, str)), "")
    if missing:
        alone = [figure(contest.name, series, None) for contest, series in zip(of_format, ours, strict=True)]
        return [*alone, Row(f"{name}, geometric mean : sharp", _FORMATS[format_], missing=missing)]
    theirs = [contest.sharp.series(CPU) for contest in of_format if isinstance(contest.sharp, Case)]
    rows = [
        ratio(f"{contest.name} : sharp", mine, other, _WORST)
        for contest, mine, other in zip(of_format, ours, theirs, strict=True)
    ]
    means = together("ours", ours), together("sharp", theirs)
    rows.append(ratio(f"{name}, geometric mean : sharp", *means, _FORMATS[format_]))
    run.say(f"likeness: {name}")
    pairs = [
        (mine, other)
        for contest in of_format
        for mine, other in zip(contest.likeness("ours"), contest.likeness("sharp"), strict=True)
    ]
    mine, other = min(pairs, key=lambda pair: pair[0] - pair[1])
    rows.append(
        difference(
            f"{name}, SSIM where it is worst, less sharp's",
            Series("ours", "", (mine,)),
            Series("sharp", "", (other,)),
            _LIKENESS,
        )
    )
    return rows
