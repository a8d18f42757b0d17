"""Raw rows: what every reader of files yields, and the limits that they keep."""

from dataclasses import dataclass
from typing import Any

MAX_RECORD_BYTES = (
    64 << 20
)  # one record; longer ones are broken, so that a file without line ends cannot fill the memory
MAX_OBJECT_BYTES = 1 << 30  # a JSON object that must be read whole
BOMB_BYTES, BOMB_RATIO = 64 << 20, 400  # compressed files beyond both are refused; real text stays under 40 : 1


@dataclass(frozen=True, slots=True)
class Row:
    line: int
    value: Any
    split: str | None = None  # the split that the file itself names, if it does


@dataclass(frozen=True, slots=True)
class Broken:
    line: int
    reason: str
    raw: str  # excerpt


def excerpt(raw: bytes | str, limit: int = 2048) -> str:
    """At most `limit` bytes of UTF-8."""
    data = raw if isinstance(raw, bytes) else raw.encode("utf-8", "replace")
    return data[:limit].decode("utf-8", "replace" if isinstance(raw, bytes) else "ignore")
