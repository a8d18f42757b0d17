"""Exact and near duplicates, with the index on disk: memory stays flat however many texts come.

Near duplicates: MinHash (Broder 1997) over shingles of three units, a unit being a word, or one character of Chinese,
Japanese or Korean; locality-sensitive hashing in bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
ch. 3) finds candidates, and the Jaccard similarity estimated from the signatures decides.

Departures from the textbook:
1. The permutations are multiply-shift hashes of 64-bit shingle hashes (Dietzfelbinger et al. 1997), not tables.
2. A stored signature keeps 16 bits of each minimum (b-bit MinHash, Li and Koenig 2010): two unequal minima agree by
   chance once in 65,536, which moves an estimate by 0.00002.
3. Only texts that were not duplicates are stored, so a chain of small edits does not drift away from its first text.
4. At most 1,000 candidates are looked at for one text, the earliest first.
"""

import re
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.core.errors import UserError

_UNITS = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\u3041-\u30fa\uac00-\ud7a3\U00020000-\U0002fa1f]"
                    r"|[^\W_\u3400-\u4dbf\u4e00-\u9fff\u3041-\u30fa\uac00-\ud7a3\U00020000-\U0002fa1f]+")
_SHINGLE = 3  # units
_MOST_CANDIDATES = 1_000
_COMMIT_EVERY = 1_000  # adds
_RECALL = 0.98  # probability that a pair exactly at the threshold becomes a candidate
_SCHEMA = """
create table if not exists settings (name text primary key, value text not null) without rowid;
create table if not exists exact (digest blob primary key, key text not null) without rowid;
create table if not exists documents (id integer primary key, key text not null, signatures blob not null);
create table if not exists bands
    (hash integer not null, document integer not null, primary key (hash, document)) without rowid;
"""


def units(text: str) -> list[str]:
    """Words in lower case, and single characters where a script writes no spaces.  Punctuation and spaces fall away.

    >>> units("Hello, 世界 2 times")
    ['hello', '世', '界', '2', 'times']
    """
    return _UNITS.findall(text.lower())


def shingle_hashes(words: Sequence[str], *, width: int = _SHINGLE) -> np.ndarray:
    """One uint64 a run of `width` units, in order, the same on every machine; a shorter text is one shingle."""
    if not words:
        return np.zeros(1, dtype=np.uint64)
    hashes = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words], dtype=np.uint64)
    width = min(width, len(hashes))
    mixed = np.zeros(len(hashes) - width + 1, dtype=np.uint64)
    for offset in range(width):  # order matters: each step scrambles what came before
        mixed = _scramble(mixed + hashes[offset:offset + len(mixed)])
    return mixed


def _scramble(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class MinHasher:
    """Signatures of texts; the fraction of equal places estimates the Jaccard similarity of their shingles."""

    def __init__(self, num_perm: int, *, seed: int = 1):
        draw = np.random.default_rng(seed)
        self._factors = draw.integers(1, 2**63, num_perm, dtype=np.uint64) * np.uint64(2) + np.uint64(1)  # odd
        self._shifts = draw.integers(0, 2**63, num_perm, dtype=np.uint64)

    def signature(self, text: str) -> np.ndarray:
        """uint32, one minimum a permutation."""
        minima = None
        hashes = np.unique(shingle_hashes(units(text)))
        for start in range(0, len(hashes), 4_096):  # a book in one message must not take a gigabyte
            block = hashes[start:start + 4_096, None] * self._factors + self._shifts
            least = (block >> np.uint64(32)).min(axis=0)
            minima = least if minima is None else np.minimum(minima, least)
        return minima.astype(np.uint32)


def bands_for(threshold: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows): the longest rows with which a pair at the threshold is still found with probability 0.98.

    A pair of similarity s shares a band with probability 1 - (1 - s**rows)**bands.

    >>> bands_for(0.8, 128)
    (18, 7)
    """
    for rows in range(num_perm, 0, -1):
        bands = num_perm // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return num_perm, 1


class Index:
    """A SQLite file that other indexes share.  It holds digests, signatures and keys, never a text."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = off")  # it can be built again from the data
            self._db.execute("pragma cache_size = -16000")  # KiB
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise UserError(f"cannot use {self.path} as an index of duplicates: {error}; "
                            "delete it or choose another index folder") from error
        self._pending = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self._commit()
        self._db.close()

    def _write(self, statement: str, rows: list[tuple]) -> None:
        if not self._db.in_transaction:
            self._db.execute("begin")
        self._db.executemany(statement, rows)

    def _added(self) -> None:
        self._pending += 1
        if self._pending >= _COMMIT_EVERY:
            self._commit()

    def _commit(self) -> None:
        if self._db.in_transaction:
            self._db.execute("commit")
        self._pending = 0


class ExactIndex(Index):
    """Digests of what came before."""

    def add(self, key: str, digest: str) -> str | None:
        """The key that first brought this digest (hexadecimal), or None when it is new."""
        row = self._db.execute("select key from exact where digest = ?", (bytes.fromhex(digest),)).fetchone()
        if row is not None:
            return row[0]
        self._write("insert into exact values (?, ?)", [(bytes.fromhex(digest), key)])
        self._added()
        return None


class NearDuplicateIndex(Index):
    """Texts that came before, by MinHash signature."""

    def __init__(self, path: Path | str, threshold: float, num_perm: int = 128):
        if not 0 < threshold <= 1:
            raise UserError(f"near-duplicate threshold must be above 0 and at most 1; got {threshold}; try 0.8")
        super().__init__(path)
        self.threshold, self.num_perm = threshold, num_perm
        self.bands, self.rows = bands_for(threshold, num_perm)
        self._hasher = MinHasher(num_perm)
        self._band_salt = _scramble(np.arange(self.bands, dtype=np.uint64))
        self._same_settings()

    def _same_settings(self) -> None:
        """An index that is continued must have been built with the same numbers."""
        wanted = f"threshold {self.threshold}, {self.num_perm} permutations"
        row = self._db.execute("select value from settings where name = 'near'").fetchone()
        if row is None:
            self._db.execute("insert into settings values ('near', ?)", (wanted,))
        elif row[0] != wanted:
            self._db.close()
            raise UserError(f"{self.path} was built with {row[0]}, not with {wanted}; give a fresh index folder")

    def add(self, key: str, text: str, *, parts: Sequence[str] = ()) -> str | None:
        """The key of the earliest near-duplicate, or None: then `text` is remembered under `key`.

        With `parts` (question, answer, ...) every part must be a near-duplicate of its counterpart, so that one long
        question with two different answers is not taken for a duplicate.
        """
        whole = self._hasher.signature(text)
        compared = [self._hasher.signature(part) for part in parts] if parts else [whole]
        stored = np.stack(compared).astype(np.uint16)  # keeps the low 16 bits
        hashes = self._band_hashes(whole)
        for document, earlier in self._candidates(hashes):
            if earlier.size != stored.size:
                continue
            similarity = (earlier.reshape(stored.shape) == stored).mean(axis=1)  # one a part
            if (similarity >= self.threshold).all():
                return self._db.execute("select key from documents where id = ?", (document,)).fetchone()[0]
        self._write("insert into documents (key, signatures) values (?, ?)", [(key, stored.tobytes())])
        document = self._db.execute("select last_insert_rowid()").fetchone()[0]
        self._write("insert or ignore into bands values (?, ?)", [(value, document) for value in hashes])
        self._added()
        return None

    def _band_hashes(self, signature: np.ndarray) -> list[int]:
        rows = signature[:self.bands * self.rows].reshape(self.bands, self.rows).astype(np.uint64)
        mixed = self._band_salt
        for column in range(self.rows):
            mixed = _scramble(mixed + rows[:, column])
        return mixed.astype(np.int64).tolist()  # SQLite integers are signed

    def _candidates(self, hashes: list[int]) -> list[tuple[int, np.ndarray]]:
        marks = ",".join("?" * len(hashes))
        rows = self._db.execute(
            f"select id, signatures from documents where id in (select document from bands where hash in ({marks})) "
            f"order by id limit {_MOST_CANDIDATES}", hashes)
        return [(document, np.frombuffer(blob, dtype=np.uint16)) for document, blob in rows]
