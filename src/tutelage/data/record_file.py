"""Records of a JSON-lines file that stay on disk: a million take little more memory than ten."""

import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tutelage.core.by_number import ByNumber
from tutelage.core.errors import DamagedError
from tutelage.data.records import Kept


class RecordFile(ByNumber[Kept]):
    """The records of a file that nobody changes, read when they are asked for.  Held in memory is where each line begins, 8 bytes a
    record.  DamagedError naming file and record for a line that is none."""

    noun = "record"

    def __init__(self, path: Path | str, parse: Callable[[Any], Kept]):
        self.path, self.parse = Path(path), parse
        self._begins = array("q")
        at = 0
        with open(self.path, "rb") as file:
            for line in file:
                if line.strip():
                    self._begins.append(at)
                at += len(line)

    def __len__(self) -> int:
        return len(self._begins)

    def __iter__(self) -> Iterator[Kept]:
        with open(self.path, "rb") as file:
            number = 0
            for line in file:
                if line.strip():
                    yield self._record(number, line)
                    number += 1

    def __eq__(self, other: object) -> bool:
        """Whether another sequence, on disk or not, holds equal records in the same order."""
        if not isinstance(other, (RecordFile, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None

    def read(self, number: int) -> Kept:
        with open(self.path, "rb") as file:
            file.seek(self._begins[number])
            return self._record(number, file.readline())

    def _record(self, number: int, line: bytes) -> Kept:
        try:
            return self.parse(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedError(f"{self.path}, record {number + 1}: {error}; the snapshot was changed, import the source again") from error
