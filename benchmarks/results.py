"""What is kept of a run: for each family a JSON file with every sample and a plot; and the table in the documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.plot import svg
from benchmarks.table import Row, markdown

RESULTS = Path(__file__).parent / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def keep(name: str, result: dict[str, Any]) -> None:
    """Write a family's result."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(_short_lists(text) + "\n", encoding="utf-8")


def show(names: Iterable[str]) -> None:
    """Draw the plots, and write the document's tables, of what is kept of these families."""
    results = kept(names)
    for name, result in results.items():
        picture = svg(result["title"], result["subtitle"], rows_of(result))
        (RESULTS / f"{name}.svg").write_text(picture, encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(document(text, results), encoding="utf-8")


def rows_of(result: dict[str, Any]) -> list[Row]:
    """The rows of a result that was kept."""
    return [Row.from_json(row) for row in result["rows"]]


def kept(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The latest result of each family that was ever measured."""
    found = {}
    for name in names:
        path = RESULTS / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def tables(results: dict[str, dict[str, Any]]) -> str:
    """For the document: each family's table and plot, and what it was measured on."""
    parts = []
    for name, result in results.items():
        machine, versions = result["machine"], result["versions"]
        about = (
            f"{result['when'][:10]}, commit {versions.get('commit', 'unknown')}, {result['rounds']} rounds; "
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['file_system']}."
        )
        plot = f"![{result['title']}](../benchmarks/results/{name}.svg)"
        heading = f"### {result['title']}"
        parts.append(
            "\n\n".join([heading, f"{result['subtitle'].capitalize()}.", markdown(rows_of(result)), plot, about])
        )
    return "\n\n".join(parts)


def document(text: str, results: dict[str, dict[str, Any]]) -> str:
    """A document with these results between its marks, in place of those that were there."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}"


def _short_lists(text: str) -> str:
    """Lists of numbers on one line each."""
    return re.sub(r"\[[\d\s.,eE+-]*\]", lambda found: " ".join(found[0].split()), text)
