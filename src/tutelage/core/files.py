"""Atomic writes, digests and JSON lines: how every room puts bytes on disk.

A file is written beside its final name, flushed to the disk and renamed, so that a reader sees the old file or the
new one and never half of one.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tutelage.core.errors import UserError


def records_digest(records: Iterable[Any]) -> str:
    """Eight hex digits over the canonical JSON of records (anything with `to_dict`): a name for what an id does not cover."""
    text = canonical_json([record.to_dict() for record in records])
    return sha256_bytes(text.encode("utf-8", "surrogatepass"))[:8]


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, UTF-8 text as it is."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def keyed_file(folder: Path | str, key: Any) -> Path:
    """The JSON file of a cache folder that is named by the digest of `key`, all that its content depends on."""
    return Path(folder) / f"{sha256_bytes(canonical_json(key).encode('utf-8', 'surrogatepass'))[:32]}.json"


def fsync_folder(folder: Path | str) -> None:
    """Make a rename inside `folder` durable.  Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write `data` to `path` in one step: temporary file, fsync, rename."""
    path = Path(path)
    if isinstance(data, str):
        data = data.encode("utf-8")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was there before is intact. "
            "Free some space or choose a folder that you may write to, then run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error


def write_jsonl(path: Path | str, rows: Iterable[Any]) -> int:
    """Write rows as JSON lines, atomically and in constant memory; returns how many."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from error
    finally:  # rows may come from a reader that fails half way
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return count


def read_jsonl(path: Path | str) -> Iterator[Any]:
    """Rows of one of our own JSON-lines files (trusted shape; foreign files go through `data`)."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}); the file was changed or cut off") from error
