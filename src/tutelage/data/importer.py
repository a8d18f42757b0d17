"""Import files into an immutable snapshot: read, convert, clean, split, write, rename.

Everything streams; a snapshot is built in a temporary folder and renamed into place, so that a half-written
one is never seen.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage import __version__
from tutelage.core.errors import UserError
from tutelage.core.files import fsync_folder, sha256_file, write_json
from tutelage.core.protocols import Progress, silent
from tutelage.data.raw import excerpt
from tutelage.data.reading import Quarantined, Reading, source_name, stem
from tutelage.data.snapshot import FILES, SPLITS, Snapshot, content_digest, now, open_snapshot
from tutelage.data.split import SHARES, check_shares, split_of


def import_data(
    source: str | Path | list[str | Path],
    *,
    workspace: Path | str,
    name: str | None = None,
    format: str | None = None,
    field_map: dict[str, str] | None = None,
    license: str = "",
    splits: dict[str, float] | None = None,
    seed: int = 0,
    clean: Any = None,
    as_kind: str | None = None,
    progress: Progress = silent,
) -> Snapshot:
    """Read one or more sources (files, folders, `hf:NAME`) into `workspace/data/<name>@<digest8>/`; returns the snapshot.

    A broken record lands in the quarantine with file, line and reason.  `clean` is a Cleaner, or any function
    from a record to a record or to something with `step` and `reason`.  Importing the same content again returns the
    snapshot that is there.  UserError for a source that is broken as a whole; nothing is left behind then.
    """
    shares = dict(splits or SHARES)
    check_shares(shares)
    sources = list(source) if isinstance(source, (list, tuple)) else [source]
    if not sources:
        raise UserError("nothing to import: give at least one file, folder or hf:NAME")
    reading = Reading(sources, format=format, field_map=field_map, license=license, as_kind=as_kind, progress=progress)
    name = checked_name(name or stem(source_name(sources[0])).removeprefix("hf:"))
    data = Path(workspace) / "data"
    building = data / f".importing-{uuid.uuid4().hex[:8]}"
    try:
        building.mkdir(parents=True)
        counts = _write(reading, building, clean=clean, shares=shares, seed=seed)
        if not sum(counts[split] for split in SPLITS):
            raise UserError(f"{source_name(sources[0])}: cleaning dropped every record; loosen its steps")
        files = {
            file: {"sha256": sha256_file(building / file), "bytes": (building / file).stat().st_size} for file in FILES
        }
        digest = content_digest(reading.kind, files)
        manifest = _manifest(
            reading, name, digest, files, counts, clean=clean, shares=shares, seed=seed, license=license
        )
        write_json(building / "manifest.json", manifest)
        final = data / f"{name}@{digest[:8]}"
        if not final.exists():
            with contextlib.suppress(FileExistsError):
                building.rename(final)  # atomic: two imports of the same at once leave one snapshot
            fsync_folder(data)
    except OSError as error:
        raise UserError(
            f"cannot write the snapshot under {data}: {error.strerror or error}; nothing was left behind. Free some space or "
            "choose another workspace, then import again"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_snapshot(final)


def checked_name(name: str) -> str:
    """A folder name: letters, digits, dot, dash and underscore; anything else becomes an underscore."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._")
    if not plain:
        raise UserError(f"a snapshot needs a name of letters or digits; got {name!r}")
    return plain[:80]


def _write(reading: Reading, folder: Path, *, clean: Any, shares: dict[str, float], seed: int) -> dict[str, int]:
    named = hasattr(clean, "apply")  # a Cleaner takes a record's place, so that later reasons can name it
    apply: Callable[..., Any] | None = getattr(clean, "apply", clean)
    hide = getattr(clean, "hide", str)  # personal data that a Cleaner redacts must not come back through the quarantine
    counts = dict.fromkeys((*SPLITS, "quarantine"), 0)
    with contextlib.ExitStack() as stack:
        out = {
            key: stack.enter_context(open(folder / f"{key}.jsonl", "w", encoding="utf-8", newline="\n"))
            for key in counts
        }

        def write(key: str, row: dict[str, Any]) -> None:
            out[key].write(json.dumps(row, ensure_ascii=False) + "\n")
            counts[key] += 1

        for item in reading:
            if isinstance(item, Quarantined):
                write("quarantine", item.to_dict())
                continue
            place = {"name": f"{reading.source}, line {reading.line}"} if named else {}
            result = apply(item, **place) if apply else item
            if hasattr(result, "reason") and hasattr(result, "step"):
                reason = f"clean:{result.step}: {result.reason}"
                reading.count(f"clean:{result.step}")  # the step alone: a reason that names records is one of its kind
                write(
                    "quarantine",
                    Quarantined(
                        reading.source, reading.line, reason, excerpt(hide(json.dumps(item.to_dict(), ensure_ascii=False)))
                    ).to_dict(),
                )
            else:
                write(split_of(result.group, seed=seed, shares=shares), result.to_dict())
        for file in out.values():
            file.flush()
            os.fsync(file.fileno())
    return counts


def _manifest(
    reading: Reading,
    name: str,
    digest: str,
    files: dict,
    counts: dict[str, int],
    *,
    clean: Any,
    shares: dict[str, float],
    seed: int,
    license: str,
) -> dict[str, Any]:
    steps = list(getattr(clean, "steps", ()) or ([getattr(clean, "__name__", "custom")] if clean else []))
    return {
        "manifest": 1,
        "name": name,
        "digest": digest,
        "kind": reading.kind,
        "counts": {split: counts[split] for split in SPLITS},
        "quarantined": {"total": counts["quarantine"], "by_reason": dict(reading.reasons.most_common())},
        "sources": [asdict(facts) for facts in reading.files],
        "field_map": reading.field_map,
        "license": license,
        "steps": ["read", "convert", *(f"clean:{step}" for step in steps), "split"],
        "clean": clean.report() if hasattr(clean, "report") else None,
        "splits": shares,
        "seed": seed,
        "versions": {"tutelage": __version__, "python": platform.python_version()},
        "files": files,
        "created": now(),
    }


def summary(snapshot: Snapshot) -> list[str]:
    """What an import did, as lines for a person: counts by split, and every reason why something was left out."""
    manifest, counts = snapshot.manifest, snapshot.counts
    lines = [
        f"{snapshot.name}: {sum(counts.values())} {snapshot.kind} ({', '.join(f'{split} {counts[split]}' for split in SPLITS)})"
    ]
    for facts in manifest["sources"]:
        took = f"{facts['rows']} rows, {facts['kept']} records, {facts['quarantined']} quarantined"
        lines.append(f"  {facts['name']}: format {facts['format']}, {took}")
    lines += [f"  {count} quarantined: {reason}" for reason, count in manifest["quarantined"]["by_reason"].items()]
    return lines


__all__ = ["checked_name", "import_data", "summary"]
