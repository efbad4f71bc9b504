"""What stands in `docs/cli.md` is what the commands say."""

from __future__ import annotations

from pathlib import Path

from tests import transcripts

DOCUMENT = Path(__file__).parent.parent / "docs" / "cli.md"


def test_the_document_is_what_the_commands_say() -> None:
    assert transcripts.written() == DOCUMENT.read_text(encoding="utf-8"), "run: make docs"
