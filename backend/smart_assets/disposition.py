"""`Content-Disposition` for filenames of any kind (RFC 6266, RFC 8187)."""

from __future__ import annotations

from urllib.parse import quote

MAX_CHARACTERS = 200
_MAX_EXTENSION = 16


def content_disposition(filename: str | None) -> str:
    """`inline`, with the filename where there is one: in ASCII for the old, in UTF-8 for everybody else.

    Whatever the filename holds, the header is one line of ASCII of a moderate length, the name stays within its quotes,
    and it names no directory (RFC 6266, section 4.3).
    """
    filename = cut_filename((filename or "").replace("\\", "/").rpartition("/")[2], MAX_CHARACTERS)
    if filename in {"", ".", ".."}:
        return "inline"
    plain = "".join(char if " " <= char <= "~" and char not in '"\\%' else "_" for char in filename)
    if plain == filename:
        return f'inline; filename="{plain}"'
    # RFC 8187's attr-char, of which quote() leaves these as they are besides letters and digits.
    encoded = quote(filename, safe="!#$&+.^_`|~-", errors="replace")
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def cut_filename(name: str, most: int) -> str:
    """`name` in at most so many characters; its extension stays."""
    if len(name) <= most:
        return name
    stem, dot, extension = name.rpartition(".")
    kept = f"{dot}{extension}" if stem and len(extension) <= _MAX_EXTENSION else ""
    return name[: most - len(kept)].rstrip() + kept
