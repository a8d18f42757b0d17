"""Immutable data snapshots: `data/<name>@<digest8>/` with train, val and test, the quarantine and a manifest.

The digest is that of the content (kind, the three splits and the quarantine), so the same rows have the same name
wherever and whenever they were imported.  `load_rows` is the one place where a recipe's data name is resolved.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.core.errors import DamagedError, UserError, nearest
from tutelage.core.files import canonical_json, read_json, read_jsonl, sha256_bytes, sha256_file
from tutelage.data import starter
from tutelage.data.reading import Quarantined, Reading, reasons_line
from tutelage.data.record_file import RecordFile
from tutelage.data.records import KINDS, Kept, RowError, as_kind
from tutelage.data.split import SHARES, split_of

SPLITS = ("train", "val", "test")
FILES = (*(f"{split}.jsonl" for split in SPLITS), "quarantine.jsonl")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot on disk.  Its rows are read when asked for, one at a time."""

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:  # with the digest: "hh@1a2b3c4d"
        return self.path.name

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.manifest["counts"])

    def rows(self, split: str) -> RecordFile:
        """The records of "train", "val" or "test"; they stay on disk."""
        if split not in SPLITS:
            raise UserError(f"{self.name} has no split {split!r}{nearest(split, SPLITS)}")
        return RecordFile(self.path / f"{split}.jsonl", KINDS[self.kind].from_dict)

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """{"file", "line", "reason", "raw"} of every record that was not taken."""
        return read_jsonl(self.path / "quarantine.jsonl")

    def verify(self) -> None:
        """DamagedError naming the first file that is missing or differs from its checksum, or a changed manifest."""
        for file, facts in self.manifest["files"].items():
            path = self.path / file
            if not path.exists():
                raise DamagedError(f"{path}: is missing from the snapshot; import the source again")
            if sha256_file(path) != facts["sha256"]:
                raise DamagedError(
                    f"{path}: does not match the checksum in its manifest; it was changed after the import "
                    "(snapshots are never edited: import again to get a new one)"
                )
        if content_digest(self.kind, self.manifest["files"]) != self.digest:
            raise DamagedError(
                f"{self.path / 'manifest.json'}: its digest does not match its files; import the source again"
            )


def content_digest(kind: str, files: dict[str, dict[str, Any]]) -> str:
    """SHA-256 over the kind and the checksums of the four files."""
    return sha256_bytes(canonical_json({"kind": kind, **{file: files[file]["sha256"] for file in FILES}}).encode())


def open_snapshot(path_or_name: str | Path, workspace: Path | str | None = None) -> Snapshot:
    """A snapshot by its folder, by `name@digest` or by `name` alone (then the newest of that name)."""
    found = _find(path_or_name, workspace)
    if found is None:
        known = _names(workspace)
        raise UserError(
            f"no snapshot {str(path_or_name)!r}{f' in {workspace}' if workspace else ''}"
            f"{nearest(str(path_or_name), known) if known else '; import a file first: tutelage data import FILE'}"
        )
    return _opened(found)


def _opened(folder: Path) -> Snapshot:
    manifest = read_json(folder / "manifest.json")
    missing = [key for key in ("kind", "digest", "counts", "files") if key not in manifest]
    if missing or manifest["kind"] not in KINDS:
        raise DamagedError(
            f"{folder / 'manifest.json'}: not a snapshot's manifest (missing or unknown: {', '.join(missing) or 'kind'})"
        )
    return Snapshot(folder, manifest)


def _find(path_or_name: str | Path, workspace: Path | str | None) -> Path | None:
    path = Path(path_or_name)
    if (path / "manifest.json").exists():
        return path
    if workspace is None or len(path.parts) != 1:
        return None
    data = Path(workspace) / "data"
    if (data / path / "manifest.json").exists():
        return data / path
    same = [
        each
        for each in data.glob("*@*")
        if each.name.rpartition("@")[0] == str(path_or_name) and (each / "manifest.json").exists()
    ]
    return max(same, key=lambda each: (str(read_json(each / "manifest.json").get("created")), each.name), default=None)


def _names(workspace: Path | str | None) -> list[str]:
    """Snapshots of a workspace, without their digests."""
    found = (Path(workspace) / "data").glob("*@*") if workspace else ()
    return sorted({each.name.rpartition("@")[0] for each in found})


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Rows(NamedTuple):
    kind: str
    splits: dict[str, Sequence[Kept]]  # "train", "val", "test"


def _tell_nobody(line: str) -> None:
    pass


def load_rows(
    name: str | Path,
    workspace: Path | str | None = None,
    *,
    kind: str | None = None,
    seed: int = 0,
    shares: dict[str, float] | None = None,
    tell: Callable[[str], None] = _tell_nobody,
) -> Rows:
    """The rows behind a recipe's data name, by split: those of a snapshot stay on disk, others are in memory.

    Names: `starter:instructions|preferences|evaluation`; a snapshot (folder, `name@digest` or `name`, looked up in the
    workspace); a file or folder; `hf:NAME`.  `kind` asks for another noun of the same content ("examples" of a
    preference file: its chosen answers).  `tell` receives a line about what could not be taken.
    """
    text = str(name)
    if text.startswith("feedback:"):
        raise UserError(
            f"{text}: only training recipes and respond read a project's judgements by name; give a snapshot of them, as "
            "`tutelage feedback snapshot` prints it"
        )
    if text.startswith("starter:"):
        found, records = starter.load(text.removeprefix("starter:"))
        if found == "prompts":
            splits = {"train": [], "val": [], "test": list(records)}
        else:
            splits = _split(records, seed=seed, shares=shares or {"train": 0.9, "val": 0.1, "test": 0.0})
        return _in_kind(Rows(found, splits), kind, tell)
    if not text.startswith("hf:"):
        if (folder := _find(name, workspace)) is not None:
            snapshot = _opened(folder)
            snapshot.verify()
            return _in_kind(Rows(snapshot.kind, {split: snapshot.rows(split) for split in SPLITS}), kind, tell)
        if not Path(text).exists():
            known = _names(workspace)
            raise UserError(
                f"data {text!r}: neither a file, nor a folder, nor a snapshot{nearest(text, known) if known else ''}; "
                f"a recipe names a snapshot, a file, hf:NAME or starter:{'|'.join(starter.NAMES)}"
            )
    reading = Reading([text], as_kind=kind)
    records = [item for item in reading if not isinstance(item, Quarantined)]
    if reading.quarantined:
        tell(
            f"{text}: {reading.kept} records kept, {reading.quarantined} quarantined "
            f"({reasons_line(reading.reasons)}); `tutelage data import {text}` writes them to a file"
        )
    return Rows(reading.kind, _split(records, seed=seed, shares=shares or SHARES))


def _split(records: list[Kept], *, seed: int, shares: dict[str, float]) -> dict[str, list[Kept]]:
    splits: dict[str, list[Kept]] = {split: [] for split in SPLITS}
    for record in records:
        splits[split_of(record.group, seed=seed, shares=shares)].append(record)
    return splits


def _in_kind(rows: Rows, kind: str | None, tell: Callable[[str], None]) -> Rows:
    """The rows as another kind; what cannot be turned is counted and told."""
    if kind is None or kind == rows.kind:
        return rows
    failed: list[str] = []
    splits: dict[str, list[Kept]] = {}
    for split, records in rows.splits.items():
        splits[split] = []
        for record in records:
            try:
                splits[split] += as_kind(record, kind)
            except RowError as error:
                failed.append(str(error))
    if failed and not any(splits.values()):
        raise UserError(f"no {rows.kind} could be read as {kind}: {failed[0]}")
    if failed:
        tell(
            f"{len(failed)} of the {rows.kind} could not be read as {kind} and were left out, the first because: {failed[0]}"
        )
    return Rows(kind, splits)
