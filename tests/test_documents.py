"""What the documents say is there, is there."""

from __future__ import annotations

import re
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
