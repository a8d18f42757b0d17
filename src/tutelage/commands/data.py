"""`tutelage data import|inspect|annotate|split`: from files to snapshots, and a look at what is in them.  No torch here."""

import shutil
import tempfile
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tutelage.core.errors import ConfigError, UserError, nearest
from tutelage.core.files import write_jsonl
from tutelage.core.protocols import Progress, silent
from tutelage.data.clean import KEY_FILE, CleanConfig, Cleaner
from tutelage.data.importer import import_data
from tutelage.data.reading import source_name
from tutelage.data.snapshot import SPLITS, Snapshot, load_rows, open_snapshot
from tutelage.recipes import find_workspace
from tutelage.terminal import Terminal

SHOWN = 400  # characters of a text that `inspect` prints

# import


def parse_shares(text: str) -> dict[str, float]:
    """Shares of train, val and test from percent.

    >>> parse_shares("80/10/10")
    {'train': 0.8, 'val': 0.1, 'test': 0.1}
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or any(number < 0 for number in numbers) or abs(sum(numbers) - 100) > 1e-6:
        raise UserError(f"--split {text!r}: wanted three percentages that make 100, for instance 90/5/5")
    return dict(zip(SPLITS, (round(number / 100, 10) for number in numbers), strict=True))


def parse_map(words: Sequence[str]) -> dict[str, str]:
    """`ours=theirs` pairs."""
    out: dict[str, str] = {}
    for word in words:
        ours, equals, theirs = word.partition("=")
        if not (equals and ours and theirs):
            raise UserError(f"--map {word!r}: wanted OURS=THEIRS, for instance prompt=question")
        out[ours] = theirs
    return out


def parse_clean(text: str) -> CleanConfig | None:
    """The steps of `--clean`; None for `none`.  ConfigError with every fault at once.

    >>> config = parse_clean("unicode,near=0.9,pii,languages=en+zh")
    >>> config.unicode, config.exact_duplicates, config.near_duplicates, config.pii, config.languages
    (True, False, 0.9, 'redact', ('en', 'zh'))
    """
    if text.strip() in ("", "none"):
        return None
    faults: list[str] = []
    values: dict[str, Any] = {"unicode": False, "exact_duplicates": False}
    for word in filter(None, map(str.strip, text.split(","))):
        name, _, value = word.partition("=")
        if name not in STEPS:
            faults.append(f'unknown step "{name}"{nearest(name, STEPS)}')
            continue
        key, read, default = STEPS[name]
        if not value and default is None:
            faults.append(f"{name} needs a value: {name}={EXAMPLES[name]}")
            continue
        try:
            values[key] = read(value) if value else default
        except ValueError:
            faults.append(f"{name}={value}: wanted for instance {name}={EXAMPLES.get(name, 'true')}")
    try:
        config = CleanConfig(**values)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults, where="--clean")
    return config


def _switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(value)
    return value == "true"


STEPS: dict[
    str, tuple[str, Callable[[str], Any], Any]
] = {  # our word -> key of CleanConfig, how a value is read, what none means
    "unicode": ("unicode", _switch, True),
    "exact": ("exact_duplicates", _switch, True),
    "near": ("near_duplicates", float, True),
    "min_chars": ("min_chars", int, None),
    "max_chars": ("max_chars", int, None),
    "languages": ("languages", lambda value: tuple(value.split("+")), None),
    "tag_language": ("tag_language", _switch, True),
    "toxicity": ("toxicity", str, "flag"),
    "pii": ("pii", str, "redact"),
    "contamination": ("contamination", str, None),
}
EXAMPLES = {
    "near": "0.8",
    "min_chars": "5",
    "max_chars": "8000",
    "languages": "en+zh",
    "contamination": "evaluation.jsonl",
}


def import_files(
    files: Sequence[str], *, workspace: Path, clean: CleanConfig | None, progress: Progress = silent, **more: Any
) -> Snapshot:
    """`import_data` with cleaning.  The key that undoes PII redaction goes to the workspace's keys/, apart from the data."""
    if clean is None:
        return import_data(list(files), workspace=workspace, progress=progress, **more)
    scratch = workspace / "data" / f".cleaning-{uuid.uuid4().hex[:8]}"
    try:
        scratch.mkdir(parents=True)
        with Cleaner(clean, index_folder=scratch) as cleaner:
            snapshot = import_data(list(files), workspace=workspace, clean=cleaner, progress=progress, **more)
        key = scratch / KEY_FILE
        if key.exists() and key.stat().st_size:
            target = key_path(workspace, snapshot)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            key.chmod(0o600)
            shutil.move(key, target)
        return snapshot
    except OSError as error:
        raise UserError(
            f"cannot write under {workspace}: {error.strerror or error}; free some space, or choose another --workspace"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def key_path(workspace: Path, snapshot: Snapshot) -> Path:
    return workspace / "keys" / f"{snapshot.name}.{KEY_FILE}"


def _import(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    shares, fields, clean = parse_shares(args.split), parse_map(args.map), parse_clean(args.clean)
    with terminal.progress() as progress:
        snapshot = import_files(
            args.files,
            workspace=workspace,
            clean=clean,
            progress=progress,
            name=args.name,
            format=args.format,
            field_map=fields,
            license=args.license,
            splits=shares,
            seed=args.seed,
            as_kind=args.as_kind,
        )
    _show_snapshot(snapshot, terminal)
    key = key_path(workspace, snapshot)
    if key.exists():
        terminal.warn(f"{key} undoes the redaction of personal data: keep it away from the data")
    terminal.next_steps(f"tutelage data inspect {snapshot.name}", *_trains(snapshot))
    terminal.result(_facts(snapshot))
    return 0


def _trains(snapshot: Snapshot) -> list[str]:
    command = {"examples": "sft", "preferences": "reward", "labels": "classify", "prompts": "rl"}[snapshot.kind]
    return [f"tutelage {command} data={snapshot.name}"]


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    manifest = snapshot.manifest
    return {
        "snapshot": snapshot.name,
        "path": str(snapshot.path),
        "kind": snapshot.kind,
        "counts": snapshot.counts,
        "quarantined": manifest["quarantined"],
        "sources": manifest["sources"],
        "clean": manifest["clean"],
        "digest": snapshot.digest,
    }


def _show_snapshot(snapshot: Snapshot, terminal: Terminal) -> None:
    manifest = snapshot.manifest
    terminal.say(f"Snapshot {snapshot.path}", style="bold green")
    counts = ", ".join(f"{split} {count}" for split, count in snapshot.counts.items())
    terminal.say(f"  {sum(snapshot.counts.values())} {snapshot.kind}: {counts}")
    for facts in manifest["sources"]:
        lost = f", {facts['quarantined']} quarantined" if facts["quarantined"] else ""
        terminal.say(f"  {facts['name']}: {facts['format']}, {facts['rows']} rows, {facts['kept']} records{lost}")
    if manifest["clean"]:
        terminal.say()
        terminal.table(
            ["cleaning step", "seen", "changed", "dropped", "flagged"],
            right=(1, 2, 3, 4),
            rows=[
                (step, *(facts[key] for key in ("seen", "changed", "dropped", "flagged")))
                for step, facts in manifest["clean"].items()
            ],
        )
    show_quarantine(manifest["quarantined"]["by_reason"], snapshot.path / "quarantine.jsonl", terminal)


def show_quarantine(reasons: dict[str, int], where: Path | None, terminal: Terminal) -> None:
    if not reasons:
        return
    terminal.say()
    terminal.say(f"  {sum(reasons.values())} quarantined{f', in {where}' if where else ''}:", style="yellow")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        terminal.say(f"  {count:>7}  {reason}")


# split


def find_snapshot(name: str, workspace: Path) -> Snapshot | None:
    """A snapshot by name or folder; None where the name means something else."""
    if name.startswith(("starter:", "hf:")) or (Path(name).exists() and not (Path(name) / "manifest.json").exists()):
        return None
    try:
        return open_snapshot(name, workspace)
    except UserError:
        if Path(name).exists() or "@" in name:
            raise
        return None


@contextmanager
def as_files(name: str, workspace: Path, tell: Callable[[str], None]) -> Iterator[list[str]]:
    """Files that hold the records of a data name: its own, or written for the moment."""
    snapshot = find_snapshot(name, workspace)
    if snapshot is not None:
        snapshot.verify()
        yield [str(snapshot.path / f"{split}.jsonl") for split in SPLITS if snapshot.counts[split]]
    elif name.startswith("starter:"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name.replace(':', '-')}.jsonl"
            rows = load_rows(name, workspace, tell=tell)
            write_jsonl(path, (record.to_dict() for split in SPLITS for record in rows.splits[split]))
            yield [str(path)]
    else:
        yield [name]


def _split(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    shares = parse_shares(args.split)
    name = args.name or f"{base_name(args.data)}-split"
    with as_files(args.data, workspace, terminal.note) as files:
        snapshot = import_data(files, workspace=workspace, name=name, splits=shares, seed=args.seed)
    _show_snapshot(snapshot, terminal)
    terminal.next_steps(*_trains(snapshot))
    terminal.result(_facts(snapshot))
    return 0


def base_name(data: str) -> str:
    """A name for what is made of this data.

    >>> base_name("starter:instructions"), base_name("mine@1a2b3c4d"), base_name("folder/mine.jsonl.gz")
    ('starter-instructions', 'mine', 'mine')
    """
    if data.startswith(("starter:", "hf:")):
        return data.removeprefix("hf:").replace(":", "-").replace("/", "-")
    return source_name(data).partition("@")[0].partition(".")[0]


ACTIONS = {"import": _import, "split": _split}


def run(args: Namespace, terminal: Terminal) -> int:
    return ACTIONS[args.action](args, terminal)
