"""What a report is made of, as JSON, so that it can be written again: in another language, or by a later version.

Every record carries the name of its type under "type"; only the types below are read back.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tutelage.core.errors import DamagedError
from tutelage.core.files import read_json, write_json
from tutelage.core.words import Message, Prompt, Response, Sampling
from tutelage.evals.inputs import ReportInput, RewardModelCard
from tutelage.evals.safety import SafetyScores
from tutelage.evals.tasks import TaskScore
from tutelage.evals.winrate import Verdict, WinRate
from tutelage.stats.calibration import ReliabilityRow
from tutelage.stats.intervals import Interval

NAME = "report.json"
TYPES = {
    kind.__name__: kind
    for kind in (
        ReportInput,
        RewardModelCard,
        SafetyScores,
        TaskScore,
        Verdict,
        WinRate,
        ReliabilityRow,
        Interval,
        Prompt,
        Response,
        Message,
        Sampling,
    )
}


def save_input(report: ReportInput, path: Path | str) -> None:
    """Write the input of a report, atomically."""
    write_json(path, _encode(report))


def load_input(path: Path | str) -> ReportInput:
    """Read it back.  DamagedError where the file holds something else."""
    try:
        report = _decode(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is not the input of a report, or of another version: {error}") from error
    if not isinstance(report, ReportInput):
        raise DamagedError(f"{path} is not the input of a report; it holds {type(report).__name__}")
    return report


def _encode(value: Any) -> Any:
    if type(value).__name__ in TYPES:
        own = {item.name: getattr(value, item.name) for item in fields(value)}
        if isinstance(value, Response):
            own.update(token_ids=None, logps=None)  # a report shows words; the ids stand in the file of answers
        return {"type": type(value).__name__, **{name: _encode(each) for name, each in own.items()}}
    if isinstance(value, Mapping):
        return {str(key): _encode(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_encode(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(each) for each in value)
    if not isinstance(value, dict):
        return value
    if "type" not in value or value["type"] not in TYPES:
        return {key: _decode(each) for key, each in value.items()}
    kind = TYPES[value["type"]]
    own = {key: _decode(each) for key, each in value.items() if key != "type"}
    if kind is SafetyScores:
        own["refused"] = frozenset(own["refused"])
    return kind(**own)
