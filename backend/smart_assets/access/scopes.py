"""What a key may be for."""

from enum import StrEnum


class Scope(StrEnum):
    """One thing a caller may do."""

    READ = "assets:read"
    WRITE = "assets:write"
    DELETE = "assets:delete"
    ADMIN = "admin"
    """Everything, and to everybody's assets."""


EVERY_SCOPE = frozenset(Scope)
