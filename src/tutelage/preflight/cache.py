"""What a check found is kept under the digest of everything that it looked at, so that the next one takes no time.

    <workspace>/.cache/check/<digest>.json

Large weight files are told apart by size and time of change, everything else by its content: a digest of weights would take
longer than the rest of the check.
"""

from pathlib import Path
from typing import Any, NamedTuple

from tutelage import __version__
from tutelage.core.config import to_dict
from tutelage.core.errors import UserError
from tutelage.core.files import keyed_file, read_json, sha256_file, write_json
from tutelage.models.load import obtain
from tutelage.preflight.findings import Finding
from tutelage.preflight.memory import Needs
from tutelage.preflight.setup import judge_names
from tutelage.training.rl import function_file

VERSION = 2  # raised when a check changes what it says
SMALL = 16_000_000  # bytes: files up to here are told apart by content


class Known(NamedTuple):
    findings: list[Finding]  # without those of memory: what is free differs from minute to minute
    needs: Needs | None


def place(workspace: Path, command: str, config: Any, data_id: str) -> Path:
    """The file that holds, or will hold, what a check of this found."""
    named = {key: fingerprint(name) for key, name in {"model": config.model, **judge_names(config)}.items()}
    return keyed_file(workspace / ".cache" / "check", [VERSION, __version__, command, to_dict(config), data_id, named])


def fingerprint(name: Any) -> Any:
    """What stands behind the name of a model, a reward function or a rule."""
    if not isinstance(name, str) or not name or name.startswith("rule:"):
        return name
    if file := function_file(name):
        return sha256_file(file) if file.is_file() else name
    try:
        folder = obtain(name)
    except UserError:
        return name  # loading it will say what is wrong
    return {path.name: _of_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _of_file(path: Path) -> Any:
    facts = path.stat()
    return sha256_file(path) if facts.st_size <= SMALL else [facts.st_size, facts.st_mtime_ns]


def recall(file: Path) -> Known | None:
    """None where nothing is kept, or what is kept cannot be read."""
    if not file.is_file():
        return None
    try:
        kept = read_json(file)
        return Known([Finding(**each) for each in kept["findings"]], Needs(*kept["needs"]) if kept["needs"] else None)
    except (UserError, KeyError, TypeError, AssertionError):
        return None  # of another version, or damaged: look anew


def remember(file: Path, known: Known) -> None:
    write_json(file, {"findings": [finding.to_dict() for finding in known.findings], "needs": known.needs})
