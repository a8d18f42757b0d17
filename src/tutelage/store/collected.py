"""Reading what people said: judgements, comparisons, texts, checks against gold, progress, disagreements.

What stands is a question of a moment: a judgement that was withdrawn later stood before.  `upto` is a row of the log, so a
snapshot is one number, and reading it again gives the same.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import and_, func, or_, select

from tutelage.core.words import Judgement, Prompt
from tutelage.store import tables
from tutelage.store.db import Database, clock
from tutelage.store.feedback import CHUNK, find_project, iter_items
from tutelage.store.queue import iso
from tutelage.store.rubrics import find_rubric

items, leases, submissions, contents = tables.items, tables.leases, tables.submissions, tables.contents


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """One submission with everything that is known of it."""

    submission: str
    seq: int  # its row in the log
    item: str
    project: str
    person: str
    at: float
    seconds: float | None  # active time
    lease: str
    purpose: str  # judge, adjudicate, turn
    special: bool  # of a gold or attention item
    follows: str | None  # set: this one withdraws that one
    rubric: str
    order: tuple[int, ...]  # in which the item's responses were shown
    values: dict[str, Any]  # as given, in the order shown; empty for a withdrawal
    judgements: tuple[Judgement, ...]


class Comparison(NamedTuple):
    """A pair, told by the models behind it: what the win rate by people is computed from."""

    item: str
    group: str  # of the prompt: the unit of splitting
    person: str
    left: str  # policies, as shown
    right: str
    outcome: float  # > 0: right was better, by 0.5..3; < 0: left; 0: a tie
    both_bad: bool
    left_length: int  # code points
    right_length: int
    arm: str
    seconds: float | None
    at: float
    adjudication: bool


class Written(NamedTuple):
    """What a person wrote."""

    item: str
    person: str
    prompt: Prompt | None  # the one that was given, or written
    demonstration: str | None
    at: str


class GoldCheck(NamedTuple):
    item: str
    person: str
    right: bool
    attention: bool
    at: float


class PersonProgress(NamedTuple):
    judged: int
    skipped: int
    seconds: float  # active, as far as it was measured
    last_at: float


class BatchProgress(NamedTuple):
    judged: int
    wanted: int


class Progress(NamedTuple):
    """Ordinary items and their judgements that stand; gold and attention items apart; adjudication outside."""

    items: int
    wanted: int  # judgements
    judged: int
    complete: int  # items with all their judgements
    open_leases: int
    skipped: int
    withdrawn: int
    gold_items: int
    gold_judged: int
    people: dict[str, PersonProgress]
    batches: dict[int, BatchProgress]


class Disagreement(NamedTuple):
    """An item about which people differ on a question."""

    item: str
    question: str
    values: dict[str, tuple[float, ...]]  # person -> one value a response, in the item's own order
    adjudicated: bool


# -- judgements -----------------------------------------------------------------------------------------------------


def collected(db: Database, project: str, *, upto: int | None = None, withdrawn: bool = False, special: bool | None = None,
              person: str | None = None, least: int = 0) -> Iterator[Collected]:
    """Submissions that stand as of row `upto` of the log, in its order; `withdrawn`: those taken back, and the takings back, too.

    What was erased is left out.  special: only of gold and attention items, or only of the others; person: only theirs;
    least: only of items with so many judgements.
    """
    later = submissions.alias()
    found = (select(submissions, contents.c.content, leases.c.purpose, items.c.special)
             .join(contents, contents.c.seq == submissions.c.seq).join(leases, leases.c.id == submissions.c.lease)
             .join(items, items.c.id == submissions.c.item)
             .where(submissions.c.project == project, contents.c.content.is_not(None)).order_by(submissions.c.seq).limit(CHUNK))
    upto = (1 << 62) if upto is None else upto
    if special is not None:
        found = found.where(items.c.special == special)
    if person is not None:
        found = found.where(submissions.c.person == person)
    if least:
        found = found.where(items.c.done >= least)
    if not withdrawn:
        found = found.where(submissions.c.follows.is_(None), ~select(later.c.id).where(
            later.c.follows == submissions.c.id, later.c.seq <= upto).exists())
    after = 0
    while True:
        with db.read() as conn:
            find_project(conn, project)
            rows = conn.execute(found.where(submissions.c.seq > after, submissions.c.seq <= upto)).mappings().all()
        for row in rows:
            said = json.loads(row["content"])
            yield Collected(
                submission=row["id"], order=tuple(said.get("order", ())), rubric=said.get("rubric", ""), values=said.get("answers", {}),
                judgements=tuple(Judgement.from_dict(each) for each in said["judgements"]),
                **{name: row[name] for name in
                   ("seq", "item", "project", "person", "at", "seconds", "lease", "purpose", "special", "follows")})
        if not rows:
            return
        after = rows[-1]["seq"]


def judgements(db: Database, project: str, *, upto: int | None = None, withdrawn: bool = False,
               gold: bool = False) -> Iterator[Judgement]:
    """Judgements that stand; with `withdrawn` all, and the withdrawals (flag "withdrawn", `follows`); with `gold` of gold items too."""
    for each in collected(db, project, upto=upto, withdrawn=withdrawn):
        if gold or not each.special:
            yield from each.judgements


def comparisons(db: Database, project: str, *, upto: int | None = None) -> list[Comparison]:
    """Pairs that stand, gold left out: which policy stood where, and who was better."""
    known = {item.id: item for item in iter_items(db, project) if item.kind == "pair"}
    out = []
    for each in collected(db, project, upto=upto):
        item = known.get(each.item)
        if item is None or each.special:
            continue
        left, right = (item.responses[place] for place in each.order)
        out += [Comparison(
            item=item.id, group=item.prompt.group, person=each.person, left=left.policy, right=right.policy,
            outcome=said.values[1] - said.values[0], both_bad="both-bad" in said.flags, left_length=len(left.text),
            right_length=len(right.text), arm=item.arm, seconds=each.seconds, at=each.at, adjudication=each.purpose == "adjudicate")
            for said in each.judgements if said.kind == "pair"]
    return out


def written(db: Database, project: str, *, upto: int | None = None) -> list[Written]:
    """Prompts and demonstrations that people wrote: rubrics with `write` questions of these names."""
    known = {item.id: item for item in iter_items(db, project)}
    out = []
    for each in collected(db, project, upto=upto):
        item = known.get(each.item)
        if item is None or item.kind not in ("prompt", "demonstration"):
            continue
        prompt = item.prompt
        if item.kind == "prompt":
            tags = (f"lang:{item.language}",) if item.language else ()
            turn = {"role": "user", "text": each.values["prompt"]}
            given = prompt.to_dict()["messages"] if prompt else []
            prompt = Prompt.from_dict({"messages": [*given, turn], "tags": list(tags), "source": f"human:{each.person}"})
        out.append(Written(item.id, each.person, prompt, each.values.get("demonstration"), iso(each.at)))
    return out


# -- how good and how far -------------------------------------------------------------------------------------------


def gold_checks(db: Database, project: str, *, upto: int | None = None, person: str | None = None) -> list[GoldCheck]:
    """Answers to gold and attention items (of one person), right or wrong.

    Gold is met when every expected question is answered to the same side (pair), with the same best (rank), within 1
    (rating), with the same verdicts (good_bad, safe_unsafe), or with the same text, flags or labels.  Attention: exactly.
    """
    known = {item.id: item for item in iter_items(db, project, special=True) if item.gold is not None}
    kinds_of: dict[str, dict[str, str]] = {}  # rubric -> question -> kind
    out = []
    for each in collected(db, project, upto=upto, special=True, person=person):
        item = known.get(each.item)
        if item is None or each.purpose != "judge":
            continue
        if each.rubric not in kinds_of:
            with db.read() as conn:
                kinds_of[each.rubric] = {question.name: question.kind for question in find_rubric(conn, each.rubric).questions}
        kinds = kinds_of[each.rubric]
        same = all(_meets(kinds.get(name, ""), expected, _unshown(kinds.get(name, ""), each.values.get(name), each.order),
                          exactly=item.attention) for name, expected in item.gold.items() if expected is not None)
        out.append(GoldCheck(item.id, each.person, same, item.attention, each.at))
    return out


def gold_counts(db: Database, project: str, *, upto: int | None = None) -> dict[str, tuple[int, int]]:
    """Person -> how many gold items they answered as expected, and how many in all."""
    counts: dict[str, tuple[int, int]] = {}
    for check in gold_checks(db, project, upto=upto):
        right, n = counts.get(check.person, (0, 0))
        counts[check.person] = (right + check.right, n + 1)
    return dict(sorted(counts.items()))


def _unshown(kind: str, value: Any, order: tuple[int, ...]) -> Any:
    """A value in the item's own order of responses."""
    if kind == "pair" and not isinstance(value, str) and value is not None:
        return value if order == (0, 1) else -value
    if kind in ("rank", "rating", "good_bad", "safe_unsafe") and value is not None:
        out = [None] * len(value)
        for place, each in zip(order, value, strict=True):
            out[place] = each
        return out
    if kind == "spans" and value is not None:
        return sorted(({**each, "response": order[each["response"]]} for each in value), key=lambda span: sorted(span.items(), key=str))
    if kind == "edit" and value is not None:
        return {**value, "response": order[value["response"]]}
    return value


def _meets(kind: str, expected: Any, value: Any, *, exactly: bool) -> bool:
    if kind == "safe_unsafe" and value is not None:
        plain = lambda rows: [(row["unsafe"], sorted(row.get("categories", ())) if exactly else ()) for row in rows]
        return plain(expected) == plain(value)
    if kind == "spans" and value is not None:
        return _unshown(kind, expected, tuple(range(100))) == value
    if exactly or value is None or isinstance(value, str) or isinstance(expected, str):
        return expected == value
    if kind == "pair":
        return (expected > 0) - (expected < 0) == (value > 0) - (value < 0)
    if kind == "rank":
        return [each == min(expected) for each in expected] == [each == min(value) for each in value]
    if kind == "rating":
        return all(abs(a - b) <= 1 for a, b in zip(expected, value, strict=True))
    return expected == value


def progress(db: Database, project: str, *, now: float | None = None) -> Progress:
    """How far a project is."""
    now = clock(now)
    with db.read() as conn:
        find_project(conn, project)
        by_batch = conn.execute(
            select(items.c.batch, items.c.special, func.count(), func.sum(items.c.overlap), func.sum(items.c.done),
                   func.count().filter(items.c.done >= items.c.overlap))
            .where(items.c.project == project).group_by(items.c.batch, items.c.special).order_by(items.c.batch)).all()
        states = dict(conn.execute(
            select(leases.c.state, func.count()).where(leases.c.project == project, leases.c.purpose != "adjudicate", or_(
                leases.c.state != "open", leases.c.expires > now)).group_by(leases.c.state)).tuples().all())
        skipped = dict(conn.execute(select(leases.c.person, func.count()).where(
            leases.c.project == project, leases.c.state == "skipped").group_by(leases.c.person)).tuples().all())
        stands = and_(submissions.c.lease == leases.c.id, submissions.c.round == leases.c.round, submissions.c.follows.is_(None),
                      leases.c.state == "done")
        said = conn.execute(
            select(submissions.c.person, func.count(), func.coalesce(func.sum(submissions.c.seconds), 0.0), func.max(submissions.c.at))
            .join(leases, stands).where(submissions.c.project == project).group_by(submissions.c.person)).all()
        withdrawn = conn.execute(select(func.count(submissions.c.follows)).where(submissions.c.project == project)).scalar_one()
    ordinary, special = [row for row in by_batch if not row[1]], [row for row in by_batch if row[1]]
    people = {name: PersonProgress(0, count, 0.0, 0.0) for name, count in skipped.items()}
    people |= {name: PersonProgress(count, skipped.get(name, 0), float(seconds), at) for name, count, seconds, at in said}
    return Progress(
        items=sum(row[2] for row in ordinary), wanted=int(sum(row[3] for row in ordinary)), judged=int(sum(row[4] for row in ordinary)),
        complete=sum(row[5] for row in ordinary), open_leases=states.get("open", 0), skipped=states.get("skipped", 0),
        withdrawn=withdrawn, gold_items=sum(row[2] for row in special), gold_judged=int(sum(row[4] for row in special)),
        people=dict(sorted(people.items())), batches={row[0]: BatchProgress(int(row[4]), int(row[3])) for row in ordinary})


def disagreements(db: Database, project: str) -> list[Disagreement]:
    """Items about which people differ: other sides (pair), another best (rank), 2 or more apart (rating), other verdicts.

    The ones that are not settled yet come first; a gold item is not for adjudication.
    """
    said: dict[tuple[str, str], dict[str, Any]] = {}
    settled = set()
    for each in collected(db, project, special=False, least=2):  # one judgement differs from nothing
        if each.purpose == "adjudicate":
            settled.add(each.item)
        if each.purpose != "judge":
            continue
        for name, (kind, values) in _values(each).items():
            said.setdefault((each.item, name), {})[each.person] = (kind, values)
    out = [Disagreement(item, name, {person: values for person, (_, values) in answers.items()}, item in settled)
           for (item, name), answers in said.items() if len({_verdict(kind, values) for kind, values in answers.values()}) > 1
           and not _close(answers)]
    return sorted(out, key=lambda each: each.adjudicated)


def _values(each: Collected) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Question -> (kind, values in the item's own order), for the questions that have values."""
    out: dict[str, tuple[str, tuple[float, ...]]] = {}
    for said in each.judgements:
        if said.values and said.dimensions:
            name = said.dimensions[0].name
            before = out.get(name, ("", ()))[1]  # safe_unsafe: a judgement a response
            out[name] = (said.kind, before + said.values)
    return {name: (kind, tuple(_unshown("rank", values, each.order))) for name, (kind, values) in out.items()}


def _verdict(kind: str, values: tuple[float, ...]) -> tuple:
    if kind == "pair":
        return ((values[0] > values[1]) - (values[0] < values[1]),)
    if kind == "rank":
        return tuple(value == min(values) for value in values)
    return values


def _close(answers: dict[str, Any]) -> bool:
    """Ratings that lie within one step of one another are no disagreement."""
    kinds = {kind for kind, _ in answers.values()}
    columns = zip(*(values for _, values in answers.values()), strict=True)
    return kinds == {"rating"} and all(max(column) - min(column) < 2 for column in columns)
