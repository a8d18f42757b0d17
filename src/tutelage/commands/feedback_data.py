"""From a project of judgements to rows for training: which database, what is folded, and `feedback:P[@ROW]` in recipes.

Splits go by the hash of a row's group, as everywhere (data/split.py).  The group is that of the conversation's first
question, so that two turns of one chat, a pair and an edit of the same prompt, and the same prompt in two files stand on one side.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.commands.database import PREFIX, database_address
from tutelage.core.errors import UserError
from tutelage.core.files import read_json, write_jsonl
from tutelage.core.words import Prompt
from tutelage.data.importer import import_data
from tutelage.data.records import group_of
from tutelage.data.snapshot import Snapshot, open_snapshot
from tutelage.store.collected import gold_counts
from tutelage.store.db import Database, open_database
from tutelage.store.feedback import load_project
from tutelage.store.figures import rater_model, votes_of
from tutelage.store.ledger import last_seq
from tutelage.store.preferences import Folded, fold_project

# What a training command reads of a project: the first of these that there is.
WANTED = {
    "sft": ("examples",), "reward": ("preferences", "ratings"), "cost": ("safety",), "prefer": ("preferences",),
    "rl": ("prompts",), "classify": ("labels",),
}
KIND = {"preferences": "preferences", "examples": "examples", "labels": "labels", "safety": "labels", "prompts": "prompts"}


@contextmanager
def opened(given: str | None, workspace: Path, *, make: bool = False):
    """The database.  Without `make`, a file that is not there is an error and not a new database."""
    address = database_address(given, workspace)
    if not make and "://" not in address and not Path(address).is_file():
        raise UserError(f"no database at {address}; `tutelage feedback ask` and `import` make one, --database names another")
    db = open_database(address)
    try:
        yield db
    finally:
        db.close()


def conversation(prompt: Prompt) -> str:
    """The unit of splitting: what the prompt says it is, else its first question."""
    return prompt.group if prompt.group != prompt.id else group_of(prompt.messages)


def folded(db: Database, project: str, *, upto: int | None = None, reliability: str = "none") -> Folded:
    load_project(db, project)
    return fold_project(db, project, upto=upto, reliability=reliabilities(db, project, reliability, upto=upto), group_of=conversation)


def reliabilities(db: Database, project: str, how: str, *, upto: int | None = None) -> dict[str, float] | None:
    """Person -> accuracy: by agreement with the others (one-coin), or on gold items (mean of the posterior)."""
    if how == "none":
        return None
    if how == "gold":
        counts = gold_counts(db, project, upto=upto)
        if not counts:
            raise UserError(f"nobody in {project} has judged a gold item; use --reliability overlap or none")
        return {person: (right + 1) / (n + 2) for person, (right, n) in counts.items()}
    model = rater_model(votes_of(db, project, upto=upto))
    if model is None:
        raise UserError(f"the judgements of {project} do not overlap, or are all the same: nothing tells who is reliable; "
                        "use --reliability none")
    return model.accuracy


# -- snapshots ------------------------------------------------------------------------------------------------------


class Frozen(NamedTuple):
    seq: int  # row of the log
    snapshots: dict[str, Snapshot]  # data set -> snapshot; empty data sets have none
    left_out: dict[str, int]


def data_sets(rows: Folded) -> dict[str, list]:
    """The data sets that are not empty, by name; ratings one a question."""
    plain = {name: getattr(rows, name) for name in KIND}
    return {name: found for name, found in {**plain, **{f"ratings-{q}": r for q, r in rows.ratings.items()}}.items() if found}


def freeze(db: Database, project: str, *, workspace: Path, upto: int | None = None, only: str | None = None,
           reliability: str = "none", **more: Any) -> Frozen:
    """Write each data set (or `only` one) as an immutable snapshot of the workspace.  `more` goes to `import_data`."""
    seq = last_seq(db) if upto is None else upto
    rows = folded(db, project, upto=seq, reliability=reliability)
    found = {name: records for name, records in data_sets(rows).items() if only in (None, name)}
    out = {}
    for name, records in found.items():
        with tempfile.TemporaryDirectory() as folder:
            # The file's name stands in the manifest: project, row of the log, data set.
            path = Path(folder) / f"feedback-{project}@{seq}-{name}.jsonl"
            write_jsonl(path, (record.to_dict() for record in records))
            out[name] = import_data(path, workspace=workspace, name=f"{project}-{name}", format=_format_of(name), **more)
    return Frozen(seq, out, dict(rows.left_out))


def _format_of(data_set: str) -> str:
    return f"native-{KIND.get(data_set, 'labels')}"


# -- recipes --------------------------------------------------------------------------------------------------------


def frozen_name(name: str, workspace: Path, *, command: str, method: str = "",
                tell: Callable[[str], None] = lambda line: None) -> str:
    """The snapshot that `feedback:P[@ROW]` means, made where it does not stand yet.

    Freezing first makes the name in the run's configuration immutable: a run that is resumed sees the rows it began with,
    whatever people have said since.  The split's seed is 0 whatever the recipe's is: what SFT and the reward model learn
    from stands on the same side of both.
    """
    project, row = parse(str(name))
    if command not in WANTED:
        raise UserError(f"{name}: {command} reads a file; write one with: tutelage feedback export --project {project} --format spans "
                        "--out FILE.jsonl")
    wanted = ("labels", "preferences") if (command, method) == ("prefer", "kto") else WANTED[command]
    if row is not None and (known := _frozen_before(workspace, project, row, wanted)):
        return known
    with opened(None, workspace) as db:
        seq = last_seq(db) if row is None else row
        if row is not None and row > last_seq(db):
            raise UserError(f"{name}: the log ends at row {last_seq(db)}")
        sets = data_sets(folded(db, project, upto=seq))
        chosen = next((each for want in wanted for each in sets if each == want or each.startswith(f"{want}-")), None)
        if chosen is None:
            there = ", ".join(f"{len(records)} {each}" for each, records in sets.items()) or "nothing yet"
            raise UserError(f"{name}: {command} needs {' or '.join(wanted)}, and the judgements give {there}")
        others = [each for each in sets if each.startswith("ratings-") and each != chosen and chosen.startswith("ratings-")]
        snapshot = freeze(db, project, workspace=workspace, upto=seq, only=chosen).snapshots[chosen]
    tell(f"{name}: {chosen} as of row {seq} of the log, frozen as {snapshot.name}"
         + (f"; other ratings: {', '.join(others)}, see `tutelage feedback snapshot`" if others else ""))
    return snapshot.name


def parse(name: str) -> tuple[str, int | None]:
    """Project and row of `feedback:P[@ROW]`.

    >>> parse("feedback:duel"), parse("feedback:duel@412")
    (('duel', None), ('duel', 412))
    """
    project, at, row = name.removeprefix(PREFIX).partition("@")
    if not project or (at and not re.fullmatch(r"[1-9]\d{0,17}", row)):
        raise UserError(f"{name}: wanted feedback:PROJECT, or feedback:PROJECT@ROW with a row of the log, "
                        "as `tutelage feedback snapshot` prints it")
    return project, int(row) if at else None


def _frozen_before(workspace: Path, project: str, row: int, wanted: tuple[str, ...]) -> str | None:
    """A snapshot of just this row that lies in the workspace: no database is needed."""
    for want in wanted:
        for folder in sorted((workspace / "data").glob(f"{project}-{want}*@*")):
            if not (folder / "manifest.json").is_file():
                continue
            name = folder.name.rpartition("@")[0].removeprefix(f"{project}-")
            source: Mapping[str, Any] = read_json(folder / "manifest.json")["sources"][0]
            if source["name"] == f"feedback-{project}@{row}-{name}.jsonl":
                return open_snapshot(folder.name, workspace).name
    return None


