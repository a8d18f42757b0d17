"""Rows of tokens on disk, so that preparing and holding them takes as much memory for a million rows as for ten.

A row is its token ids (int32) and weights (float64) one after the other; what is held in memory is where each ends, 8 bytes a row.
The file has no name (or is deleted when closed, where the system cannot do that), so nothing is left behind by a run that is killed.
"""

import hashlib
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path

from tutelage.core.by_number import ByNumber
from tutelage.text.mask import Row

BYTES = array("i").itemsize + array("d").itemsize  # of a token


class RowFile(ByNumber[Row]):
    """Rows that are added at the end and read by number."""

    noun = "row"

    def __init__(self, folder: Path | str | None = None):
        """`folder`: where the room is taken, and it must exist (None: where the system has its temporary files)."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with this object
        self._ends = array("q", [0])

    def extend(self, rows: Iterable[Row]) -> None:
        self._file.seek(self._ends[-1])
        for row in rows:
            if len(row.token_ids) != len(row.weights):
                raise ValueError(f"a row has {len(row.token_ids)} tokens and {len(row.weights)} weights")
            self._file.write(array("i", row.token_ids).tobytes() + array("d", row.weights).tobytes())
            self._ends.append(self._ends[-1] + BYTES * len(row.token_ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def digest(self) -> str:
        """SHA-256 over all rows in their order."""
        found = hashlib.sha256(self._ends.tobytes())
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            found.update(block)
        return found.hexdigest()

    def read(self, number: int) -> Row:
        begin, end = self._ends[number], self._ends[number + 1]
        self._file.seek(begin)
        data, count = self._file.read(end - begin), (end - begin) // BYTES
        token_ids, weights = array("i"), array("d")
        token_ids.frombytes(data[:count * token_ids.itemsize])
        weights.frombytes(data[count * token_ids.itemsize:])
        return Row(token_ids.tolist(), weights.tolist())
