"""`tutelage feedback ask|import|export|report|plan|snapshot|verify`: people's judgements from the command line.  No torch here."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tutelage.commands import feedback_export, feedback_plan, feedback_report
from tutelage.commands.data import parse_map, parse_shares, show_quarantine
from tutelage.commands.database import PREFIX, database_address
from tutelage.commands.feedback_data import KIND, freeze, opened
from tutelage.commands.feedback_import import Peek, imported, kind_for, peek, to_ask
from tutelage.core.errors import UserError
from tutelage.core.files import write_jsonl
from tutelage.data.reading import Quarantined, Reading, reason_key, stem
from tutelage.recipes import find_workspace
from tutelage.store.db import Database
from tutelage.store.feedback import Project, Settings, add_items, create_project, list_projects
from tutelage.store.imported import Imported, Stored, add_judgements, add_people
from tutelage.store.ledger import note, verify
from tutelage.store.rubrics import Rubric, load_rubric
from tutelage.terminal import Terminal


def run(args: Namespace, terminal: Terminal) -> int:
    return ACTIONS[args.action](args, terminal)


def find_or_make(db: Database, args: Namespace, *, rubric: str, settings: Settings) -> tuple[Project, bool]:
    """The project, and whether it was made.  UserError where it is there with another rubric than was asked for."""
    there = next((project for project in list_projects(db) if project.name == args.project), None)
    if there is None:
        return create_project(db, args.project, rubric=args.rubric or rubric, title=args.title, settings=settings, actor=args.actor), True
    if args.rubric and load_rubric(db, args.rubric).ref != there.rubric:
        raise UserError(f"project {there.name} asks by {there.rubric}, not {args.rubric}; leave --rubric out, or make another project")
    return there, False


# -- ask ------------------------------------------------------------------------------------------------------------


def _ask(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    settings = {name: value for name, value in (("overlap", args.overlap), ("overlap_share", args.share)) if value is not None}
    with opened(args.database, workspace, make=True) as db:
        wanted = args.rubric or next((p.rubric for p in list_projects(db) if p.name == args.project), "pairwise")
        # Read before the project is made: a file that gives nothing leaves nothing behind.
        asking = to_ask(args.files, kind=args.kind or kind_for(load_rubric(db, wanted)), batch=args.batch)
        project, made = find_or_make(db, args, rubric="pairwise", settings=Settings(**settings))
        if settings and not made:
            raise UserError(f"project {project.name} is there already, with its own overlap; leave --overlap and --share out")
        added = add_items(db, project.name, asking.items, actor=args.actor)
    kinds = asking.items[0].kind
    terminal.say(f"Project {project.name} ({project.rubric}): {added.new} new items of kind {kinds}"
                 + (f", {added.known} were there already" if added.known else ""), style="green")
    for why, count in asking.skipped.items():
        terminal.note(f"  left out: {count} {why}")
    terminal.next_steps("tutelage web", f"tutelage feedback report --project {project.name}")
    terminal.result({"project": project.name, "rubric": project.rubric, "made": made, "new": added.new, "known": added.known,
                     "kind": kinds, "left_out": asking.skipped, "database": _shown_address(args, workspace)})
    return 0


def _shown_address(args: Namespace, workspace: Path) -> str:
    """Without a password."""
    address = database_address(args.database, workspace)
    return address if "@" not in address else address.partition("://")[0] + "://..." + address.rpartition("@")[2]


# -- import ---------------------------------------------------------------------------------------------------------


def _import(args: Namespace, terminal: Terminal) -> int:
    workspace, fields = find_workspace(args.workspace), parse_map(args.map)
    facts: list[dict[str, Any]] = []
    with opened(args.database, workspace, make=True) as db:
        for file in args.files:
            found = peek(file, args.format) if not Path(file).is_dir() else Peek("", "")
            reading = None if found.format else Reading([file], format=args.format, field_map=fields)
            first, rest = _begun(file, found, reading, db, args)
            project, _ = find_or_make(db, args, rubric=first, settings=Settings(overlap_share=0.0))
            rubric = load_rubric(db, project.rubric)
            quarantined: list[Quarantined] = []
            good = list(_sorted_out(rest(rubric), quarantined))
            people = add_people(db, [vote.person for vote in good], actor=args.actor)
            stored = add_judgements(db, project.name, good, actor=args.actor, source=Path(file).name)
            quarantined += [_refused(vote, reason) for vote, reason in stored.refused]
            if stored.new:
                note(db, kind="import", actor=args.actor, subject=project.name, content={
                    "file": Path(file).name, "new": stored.new, "known": stored.known, "quarantined": len(quarantined)})
            facts.append(_told(file, project, stored, good, people, quarantined, workspace, terminal))
    if not any(each["new"] or each["known"] for each in facts):
        raise UserError(f"nothing was imported into {args.project}: no row of {', '.join(map(str, args.files))} could be taken; "
                        "the quarantine says why")
    terminal.next_steps(f"tutelage feedback report --project {args.project}", f"tutelage feedback snapshot --project {args.project}")
    terminal.result({"project": args.project, "files": facts})
    return 0


def _begun(file: str, found: Peek, reading: Reading | None, db: Database, args: Namespace) -> tuple[str, Callable[[Rubric], Any]]:
    """The rubric for a project that is to be made, and what reads the file by a rubric."""
    if reading is None:
        name = found.rubric
        try:
            load_rubric(db, name)
        except UserError:
            name = "pairwise"  # the file's rubric is not known here
        return name, lambda rubric: imported(file, rubric, project=args.project, reading=None, format=found.format)
    rows = iter(reading)
    head = next(rows, None)  # after this the kind is known
    chained = _Again(reading, head, rows)
    return ("good-bad" if reading.kind == "labels" else "pairwise"), lambda rubric: imported(
        file, rubric, project=args.project, reading=chained, format="")


class _Again:
    """A Reading whose first row was looked at."""

    def __init__(self, reading: Reading, head: Any, rows: Any):
        self.reading, self.head, self.rows = reading, head, rows
        self.place = (reading.source, reading.line)

    @property
    def source(self) -> str:
        return self.reading.source

    @property
    def line(self) -> int:
        return self.place[1] if self.place else self.reading.line

    def __iter__(self):
        if self.head is not None:
            yield self.head
        self.place = None
        yield from self.rows


def _sorted_out(rows: Any, quarantined: list[Quarantined]) -> Iterator[Imported]:
    for row in rows:
        if isinstance(row, Quarantined):
            quarantined.append(row)
        else:
            yield row


def _refused(vote: Imported, reason: str) -> Quarantined:
    name, _, line = vote.where.rpartition(", line ")
    told = f"{reason}: {vote.person}" if reason.startswith("judged twice") else f"not by the rubric: {reason}"
    return Quarantined(name, int(line or 0), told, "")


def _told(file: str, project: Project, stored: Stored, good: list[Imported], people: list[str], quarantined: list[Quarantined],
          workspace: Path, terminal: Terminal) -> dict[str, Any]:
    items = len({vote.item.id for vote in good})
    everybody = len({vote.person for vote in good})
    terminal.say(f"{Path(file).name}: {stored.new} judgements of {everybody} people on {items} items into {project.name} ({project.rubric})"
                 + (f", {stored.known} were there already" if stored.known else ""), style="green")
    where = None
    if quarantined:
        where = workspace / "data" / f"quarantine-feedback-{project.name}-{stem(Path(file).name)}.jsonl"
        write_jsonl(where, (each.to_dict() for each in quarantined))
    reasons: dict[str, int] = {}
    for each in quarantined:
        reasons[reason_key(each.reason)] = reasons.get(reason_key(each.reason), 0) + 1
    show_quarantine(reasons, where, terminal)
    return {"file": Path(file).name, "new": stored.new, "known": stored.known, "items": items, "people": everybody, "new_people": people,
            "quarantined": reasons, "quarantine": str(where) if where else None}


# -- snapshot, verify -----------------------------------------------------------------------------------------------


def _snapshot(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    with opened(args.database, workspace) as db:
        frozen = freeze(db, args.project, workspace=workspace, upto=args.upto, reliability=args.reliability,
                        splits=parse_shares(args.split), seed=args.seed)
        if not frozen.snapshots:
            raise UserError(f"the judgements of {args.project} give no rows yet")
        note(db, kind="export", actor=args.actor, subject=args.project, content={
            "snapshots": {name: each.name for name, each in frozen.snapshots.items()}, "upto": frozen.seq})
    terminal.say(f"{args.project} as of row {frozen.seq} of the log", style="bold green")
    terminal.table(["data set", "rows", "train", "val", "test", "snapshot"], right=(1, 2, 3, 4), rows=[
        (name, sum(each.counts.values()), *(each.counts[split] for split in ("train", "val", "test")), each.name)
        for name, each in frozen.snapshots.items()])
    for why, count in frozen.left_out.items():
        terminal.note(f"  left out: {count} {why}")
    trains = {"preferences": "reward", "examples": "sft", "safety": "cost"}
    terminal.next_steps(*(f"tutelage {command} data={PREFIX}{args.project}@{frozen.seq}" for name, command in trains.items()
                          if name in frozen.snapshots))
    terminal.result({"project": args.project, "row": frozen.seq, "left_out": frozen.left_out, "snapshots": {
        name: {"snapshot": each.name, "kind": KIND.get(name, "labels"), "counts": each.counts, "digest": each.digest}
        for name, each in frozen.snapshots.items()}})
    return 0


def _verify(args: Namespace, terminal: Terminal) -> int:
    anchor = None
    if args.anchor:
        row, _, digest = args.anchor.partition(":")
        if not row.isdigit() or not digest:
            raise UserError(f"--anchor {args.anchor}: wanted ROW:HASH, as an earlier verification printed it")
        anchor = (int(row), digest)
    with opened(args.database, find_workspace(args.workspace)) as db:
        verdict = verify(db, anchor=anchor)
    if verdict.ok:
        terminal.say(f"The log holds: {verdict.rows} rows, {verdict.erased} of them with erased content", style="green")
        terminal.say(f"Keep this elsewhere, for the next time: --anchor {verdict.seq}:{verdict.hash}")
    else:
        terminal.say(f"The log does not hold: {verdict.wrong}", style="red")
    terminal.result({**verdict._asdict(), "anchor": f"{verdict.seq}:{verdict.hash}"})
    return 0 if verdict.ok else 1


ACTIONS: dict[str, Callable[[Namespace, Terminal], int]] = {
    "ask": _ask, "import": _import, "export": feedback_export.run, "report": feedback_report.run, "plan": feedback_plan.run,
    "snapshot": _snapshot, "verify": _verify,
}
