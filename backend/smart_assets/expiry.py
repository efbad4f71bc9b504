"""When a signed URL stops working: rounded down to a window, so calls within it return the same string."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

_LONGEST_WINDOW_SECONDS = 3600


def expiry_window(now: float, expiry_seconds: int) -> int:
    """When a URL signed at `now` for `expiry_seconds` expires, in Unix milliseconds.

    Never later than asked, and earlier by less than a window: a tenth of `expiry_seconds` (whole seconds from ten
    seconds up), at most an hour.
    """
    window_ms = min(expiry_seconds // 10 * 1000 or expiry_seconds * 100, _LONGEST_WINDOW_SECONDS * 1000)
    return int(now * 1000 + expiry_seconds * 1000) // window_ms * window_ms


@dataclass(frozen=True)
class Validity:
    """From when until when a storage's own URL is good, in whole Unix seconds: vendors know no smaller ones."""

    begins: int
    expires: int

    @classmethod
    def of(cls, now: float, expiry_seconds: int, *, not_after: float | None = None) -> Self:
        """Good at `now`, for at most `expiry_seconds`; the same for all calls within a window.

        It begins so long before `now` that it spans `expiry_seconds`. `not_after` (Unix seconds) ends it earlier, at
        that second.
        """
        window = min(expiry_seconds // 10 or 1, _LONGEST_WINDOW_SECONDS)
        expires = math.floor(now + expiry_seconds) // window * window
        if not_after is not None:
            expires = min(expires, math.ceil(not_after))
        return cls(expires - expiry_seconds, expires)

    @property
    def seconds(self) -> int:
        """How long it lasts, from its beginning."""
        return self.expires - self.begins

    def ending_by(self, moment: float) -> Self:
        """As long, but not past `moment` (Unix seconds): when the credentials behind it end."""
        expires = min(self.expires, math.floor(moment))
        return type(self)(expires - self.seconds, expires)
