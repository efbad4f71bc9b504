"""What the documents say is there, is there."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", ["reliability", "security"])
def test_every_test_named_as_a_proof_exists(document: str) -> None:
    text = (ROOT / f"docs/{document}.md").read_text(encoding="utf-8")
    proofs = re.findall(r"`([a-z_/]+\.py)(?:::(\w+))?`", text)
    assert len(proofs) > 20
    for file, test in proofs:
        path = ROOT / "tests" / file
        assert path.exists(), file
        assert not test or re.search(rf"(def|class) {test}\b", path.read_text(encoding="utf-8")), test


def test_every_threat_names_its_proof() -> None:
    rows = re.findall(r"^\|(.+)\|$", (ROOT / "docs/security.md").read_text(encoding="utf-8"), re.MULTILINE)
    threats = [row for row in rows if not re.match(r" (threat|---)", row)]
    assert len(threats) > 20
    assert [row for row in threats if ".py" not in row.rpartition("|")[2]] == []


def test_the_capacity_model_has_its_figures_from_what_was_measured() -> None:
    measured = dict(
        re.findall(r"^\| (.+?) \| (.+) \|$", (ROOT / "docs/performance.md").read_text("utf-8"), re.MULTILINE)
    )
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    figures = dict(re.findall(r"^\| ([\d.]+) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE))
    assert len(figures) > 6
    for figure, row in figures.items():
        assert f"{figure} ms CPU" in measured[row], row
    for row in (
        "upload of 21 KB, CPU of two : one",
        "delivery of 21 KB, CPU of two : one",
        "list a page, 1,000,000 : 1,000",
    ):
        factor = measured[row].split(" | ")[2].removesuffix("\N{MULTIPLICATION SIGN}")
        assert f" {factor} times" in page, row
    examples = re.findall(r"^\| (\d+) \| [^|]+ \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(examples) == 5
    for uploads, each, busy, to_have in examples:
        assert each in figures
        assert float(busy) == pytest.approx(int(uploads) * float(each) / 1000, abs=0.06)
        assert int(to_have) == math.ceil(int(uploads) * float(each) / 1000 / 0.7)


def test_every_layer_is_in_the_picture_of_the_layers() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.partition("## The layers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    layers = [layer.split(" | ") for layer in contract["layers"]]
    place = {name: number for number, layer in enumerate(layers) for name in layer}
    assert [place[name] for name in told] == sorted(place[name] for name in told)
    assert place.keys() - set(told) <= set(layers[-1])
