"""A run's folder: resolved configuration, metrics, and checkpoints that are whole or absent.

    runs/<run>/config.yaml  manifest.json  metrics.jsonl  checkpoints/<step>/{files..., SHA256.json}  final/

A checkpoint is written into a hidden folder, flushed, its digests written last, and renamed: a kill at any moment leaves
the one before it untouched.  Opening verifies every digest; a damaged one is named and the one before it is used.
"""

import contextlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tutelage.core.errors import DamagedError, UserError
from tutelage.core.files import fsync_folder, read_json, read_jsonl, sha256_file, write_atomic, write_json

DIGESTS = "SHA256.json"
CLOCK_FIELDS = ("time", "seconds", "tokens_per_second", "samples_per_second", "rss_gb")  # differ between equal runs


class Run:
    """One run's folder.  Make it with `begin` or `reopen`."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.id = self.folder.name
        self.checkpoints = self.folder / "checkpoints"
        self.metrics_path = self.folder / "metrics.jsonl"
        self._metrics = None

    # -- metrics -------------------------------------------------------------------------------------------------

    def log(self, row: dict[str, Any]) -> None:
        """Append one row of metrics and hand it to the disk.  The clock fields are added here.  UserError on a full disk."""
        try:
            if self._metrics is None:
                self._metrics = open(self.metrics_path, "a", encoding="utf-8")  # noqa: SIM115 - open for the run's life
            self._metrics.write(json.dumps({**row, "time": round(time.time(), 3)}, ensure_ascii=False) + "\n")
            self._metrics.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # closing tries to write the row once more
                self.close()
            raise self._refused(self.metrics_path, error) from error

    @staticmethod
    def _refused(path: Path, error: OSError) -> UserError:
        return UserError(f"cannot write {path}: {error.strerror or error}; earlier checkpoints are intact. "
                         "Free some space (or choose a folder that you may write to) and resume")

    def metrics(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.metrics_path)) if self.metrics_path.exists() else []

    def metrics_bytes(self) -> int:
        """Length of the metrics file now; a checkpoint keeps it, and `cut_metrics` goes back to it."""
        if self._metrics is not None:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        return self.metrics_path.stat().st_size if self.metrics_path.exists() else 0

    def cut_metrics(self, length: int) -> None:
        """Forget the rows written after the checkpoint that is being resumed, so that none stands there twice."""
        self.close()
        if not self.metrics_path.exists():
            return
        try:
            with open(self.metrics_path, "r+b") as file:
                file.truncate(length)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refused(self.metrics_path, error) from error

    def close(self) -> None:
        file, self._metrics = self._metrics, None
        if file is not None:
            file.close()

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, name: str, write: Callable[[Path], None], *, keep: int = 2) -> Path:
        """Write a checkpoint atomically: `write(folder)` fills it; all but the newest `keep` are pruned afterwards.

        Checkpoints of a later name are pruned too: the run went back behind them because they are damaged, and counting
        them among the newest would prune whole ones in their favour.
        """
        final = self.checkpoints / name
        path = commit_folder(final, write)
        names = self._names()
        upto = names[:names.index(name) + 1]
        for old in [*names[len(upto):], *(upto[:-keep] if keep else [])]:
            shutil.rmtree(self.checkpoints / old)
        return path

    def _names(self) -> list[str]:
        if not self.checkpoints.exists():
            return []
        return sorted(each.name for each in self.checkpoints.iterdir() if each.is_dir() and not each.name.startswith("."))

    def newest(self, *, warn: Callable[[str], None] = lambda text: None) -> Path | None:
        """The newest checkpoint whose digests hold; a damaged one is named through `warn` and passed over."""
        names = self._names()
        for at, name in reversed(list(enumerate(names))):
            try:
                verify_folder(self.checkpoints / name)
                return self.checkpoints / name
            except DamagedError as error:
                warn(f"{error}; " + ("the checkpoint before it is used" if at else "none is before it: the run begins anew"))
        return None

    @property
    def final(self) -> Path:
        return self.folder / "final"

    def finish(self, write: Callable[[Path], None], **manifest: Any) -> Path:
        """Write the run's result to final/ and mark the run as finished; its checkpoints go."""
        if self.final.exists():  # a kill between the rename and the mark
            shutil.rmtree(self.final)
        commit_folder(self.final, write)
        self.mark("finished", **manifest)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        return self.final

    # -- manifest ------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.folder / "manifest.json")

    def mark(self, status: str, **more: Any) -> None:
        """Set status and further fields of the manifest."""
        write_json(self.folder / "manifest.json", {**self.manifest, **more, "status": status})

    def hold_to(self, inputs: Mapping[str, str]) -> None:
        """Keep the digests of what the run is made from, by name; UserError where one is another when the run is resumed.

        A checkpoint holds what is trained; everything else (frozen layers, the reference, the reward) is read anew.
        """
        manifest = self.manifest
        before = manifest.setdefault("inputs", dict(inputs))
        changed = sorted(name for name in {*before, *inputs} if before.get(name) != inputs.get(name))
        if changed:
            raise UserError(f"since the run in {self.folder} was begun, what stands under these names has changed: {', '.join(changed)}; "
                            "the rest of the run would be trained on other ground. Put back what stood there, or begin a new "
                            "run with --run NAME")
        write_json(self.folder / "manifest.json", manifest)

    def finished(self) -> bool:
        return (self.folder / "manifest.json").exists() and self.manifest.get("status") == "finished"


def commit_folder(final: Path, write: Callable[[Path], None]) -> Path:
    """Fill a hidden sibling with `write`, add digests, flush all of it, rename it to `final`."""
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        for stale in final.parent.glob(".*.tmp") if final.parent.exists() else ():  # left by a kill in the middle of a write
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
        temporary.mkdir(parents=True)
        write(temporary)
        digests = {}
        for file in sorted(each for each in temporary.rglob("*") if each.is_file()):
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
            digests[str(file.relative_to(temporary))] = sha256_file(file)
        write_json(temporary / DIGESTS, digests)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        fsync_folder(final.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"cannot write {final}: {error.strerror or error}; earlier checkpoints are intact. "
            "Free some space (or choose a folder that you may write to) and resume"
        ) from error
    except BaseException:  # a UserError of the writer, Ctrl-C: nothing half-written stays to fill the disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def verify_folder(folder: Path) -> dict[str, str]:
    """Digests by file name; DamagedError names the first file that is missing or changed."""
    record = folder / DIGESTS
    if not record.exists():
        raise DamagedError(f"checkpoint {folder} is incomplete: {DIGESTS} is missing")
    try:
        digests = read_json(record)
    except UserError as error:
        raise DamagedError(f"checkpoint {folder} is damaged: {DIGESTS} cannot be read") from error
    for name, digest in digests.items():
        file = folder / name
        if not file.exists():
            raise DamagedError(f"checkpoint {folder} is damaged: {name} is missing")
        try:
            found = sha256_file(file)
        except OSError as error:  # a bad sector
            raise DamagedError(f"checkpoint {folder} is damaged: {name} cannot be read ({error.strerror or error})") from error
        if found != digest:
            raise DamagedError(f"checkpoint {folder} is damaged: {name} does not match its SHA-256")
    return digests


def versions() -> dict[str, str]:
    """Package versions that a result depends on."""
    out = {"python": platform.python_version()}
    for package in ("tutelage", "torch", "transformers", "peft", "safetensors", "numpy"):
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            out[package] = "absent"
    return out


def begin(
    folder: Path | str, *, kind: str, config: dict[str, Any], seed: int, parents: tuple[str, ...] = (), **more: Any
) -> Run:
    """Make the folder of a new run.  UserError when a run stands there already."""
    folder = Path(folder)
    if (folder / "manifest.json").exists():
        raise UserError(f"a run already stands in {folder}; resume it with --resume, or choose another name with --run NAME")
    write_atomic(folder / "config.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False))
    write_json(folder / "manifest.json", {
        "id": folder.name, "kind": kind, "status": "running", "seed": seed, "parents": list(parents),
        "versions": versions(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **more,
    })
    return Run(folder)


def reopen(folder: Path | str, *, kind: str, config: dict[str, Any]) -> Run:
    """Open a run to resume it; UserError where the configuration is not the one that it was begun with."""
    run = Run(Path(folder))
    if not (run.folder / "manifest.json").exists():
        raise UserError(f"no run to resume in {folder}; leave --resume out to begin one")
    if run.manifest["kind"] != kind:
        raise UserError(f"the run in {folder} is of kind {run.manifest['kind']}, not {kind}")
    before = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    changed = _differences(before, config)
    if changed:
        raise UserError(f"the run in {folder} was begun with another configuration ({'; '.join(changed)}); "
                        "resume with the same recipe, or begin a new run with --run NAME")
    if run.finished():
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # a kill between the mark and the last line of `finish`
    return run


def begin_or_reopen(
    folder: Path | str, *, kind: str, config: dict[str, Any], seed: int, resume: bool, parents: tuple[str, ...] = (),
    **more: Any,
) -> Run:
    """`reopen` where `resume` is asked for and a run stands there, else `begin`."""
    if resume and (Path(folder) / "manifest.json").exists():
        return reopen(folder, kind=kind, config=config)
    return begin(folder, kind=kind, config=config, seed=seed, parents=parents, **more)


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        out = []
        for key in sorted(set(before) | set(after)):
            out += _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
        return out
    return [] if before == after else [f"{path}: {before!r} then, {after!r} now"]


def list_runs(workspace: Path | str) -> list[Run]:
    """Runs of a workspace, oldest first."""
    folder = Path(workspace) / "runs"
    found = [Run(each.parent) for each in folder.glob("*/manifest.json")] if folder.exists() else []
    return sorted(found, key=lambda run: (run.manifest.get("started", ""), run.id))
