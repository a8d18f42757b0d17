"""Projects, items, and the other nouns of asking people.

An item is what one person judges at a time: a prompt with its responses, or something to write.  A lease hands it to a
person, in an order drawn for that person, until it expires.  What comes back are `Answers`, and `to_judgements` makes the
core's Judgements of them.  The queue is in `queue.py`, reading in `collected.py`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import Connection, func, insert, select, update

from tutelage.core.config import bind, to_dict
from tutelage.core.errors import UserError, nearest
from tutelage.core.files import canonical_json, sha256_bytes
from tutelage.core.words import Judgement, Prompt, Record, Response
from tutelage.store import ledger, tables
from tutelage.store.answers import Answers, check_answers, judgement_rows
from tutelage.store.chat_settings import ChatSettings
from tutelage.store.checks import MOST_ITEM, need_count, need_label, need_name, need_title, stored_json
from tutelage.store.db import Database, clock
from tutelage.store.rubrics import Rubric, find_rubric

RESPONSES_OF = {  # kind of item -> how many responses it shows, from and to
    "pair": (2, 2), "set": (2, 20), "single": (1, 1), "prompt": (0, 0), "demonstration": (0, 0), "chat": (0, 0)}
ITEM_KINDS = tuple(RESPONSES_OF)
EVERYBODY = 1_000_000_000  # overlap of gold and attention items: each person gets each of them
CHUNK = 500  # items added in one transaction: others get their turn in between


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a project hands out its items.  A change holds for what is added or handed out after it."""

    overlap: int = 3  # judgements wanted for the items that are judged more than once
    overlap_share: float = 0.2  # share of items that are, chosen by the hash of their id; the others get one judgement
    gold_share: float = 0.05  # share of what a person gets that is a gold or attention item
    lease_seconds: float = 1800.0
    language: str = ""  # of items that name none: only people with this language get them; empty: everybody
    skill: str = ""  # likewise
    daily_limit: int = 0  # judgements a person and day (UTC); 0: no limit
    shuffle: bool = True  # draw the order of the answers for each person
    reveal: bool = False  # tell which model said what, after the vote
    open: bool = True  # closed: nothing is handed out, what is out may still be sent
    chat: ChatSettings | None = None  # who answers in items of kind `chat`

    def __post_init__(self):
        need_count(self.overlap, "overlap", most=1000)
        if self.overlap < 1:
            raise UserError("overlap must be at least 1; set open to false to stop asking")
        for name in ("overlap_share", "gold_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share from 0 to 1; got {getattr(self, name)}")
        if not 1 <= self.lease_seconds <= 30 * 86400:
            raise UserError(f"lease_seconds is from 1 to {30 * 86400} (30 days); got {self.lease_seconds}")
        need_count(self.daily_limit, "daily_limit")
        for name in ("language", "skill"):
            if getattr(self, name):
                need_label(getattr(self, name), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A body of items that are judged by one rubric."""

    name: str
    title: str
    rubric: str  # "helpful@3": the version in force for what is handed out now
    settings: Settings
    created: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Record):
    """What one person judges at a time."""

    NESTED: ClassVar[dict[str, type]] = {"prompt": Prompt, "responses": Response}

    kind: str  # one of ITEM_KINDS
    prompt: Prompt | None = None  # none for `prompt` (the person writes it); `chat` may begin without
    responses: tuple[Response, ...] = ()
    id: str = ""  # left empty: a hash of project and content, so that the same item is added once
    project: str = ""  # set when it is added
    batch: int = 0  # lower ones are handed out first
    language: str = ""
    skill: str = ""
    harms: tuple[str, ...] = ()  # categories that people may have opted out of
    gold: dict[str, Any] | None = None  # expected values, as in Answers but in the item's own order of responses
    attention: bool = False  # a gold item that shows whether people read at all: it must be met exactly
    overlap: int = 0  # judgements wanted; 0: as the project's settings say
    arm: str = "random"  # or "active": how it was chosen

    def __post_init__(self):
        if self.kind not in ITEM_KINDS:
            raise UserError(f"unknown kind of item {self.kind!r}{nearest(str(self.kind), ITEM_KINDS)}")
        low, high = RESPONSES_OF[self.kind]
        if not low <= len(self.responses) <= high:
            raise UserError(f"an item of kind {self.kind} has {low} to {high} responses; got {len(self.responses)}")
        if len({response.id for response in self.responses}) != len(self.responses):
            raise UserError("two responses of an item have the same id; give each its own index or policy")
        if self.prompt is None and self.kind not in ("prompt", "chat"):
            raise UserError(f"an item of kind {self.kind} needs a prompt")
        if self.attention and not self.gold:
            raise UserError("an attention item needs the expected answer in `gold`")
        if self.arm not in ("random", "active"):
            raise UserError(f"arm is 'random' or 'active'; got {self.arm!r}")
        need_count(self.batch, "batch")
        need_count(self.overlap, "overlap", most=EVERYBODY)
        for label in (*self.harms, *(each for each in (self.language, self.skill, self.id) if each)):
            need_label(label, "a harm category, language, skill or id of an item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """An item in a person's hands."""

    id: str
    item: str
    person: str
    project: str
    order: tuple[int, ...]  # item.responses[order[0]] stands on the left, or first
    rubric: str  # the version shown
    granted: float
    expires: float
    state: str  # open, done, skipped
    round: int  # how often it was handed back by undo
    purpose: str = "judge"  # or adjudicate (outside the overlap), turn (of a chat)


class Added(NamedTuple):
    new: int
    known: int  # already there


def to_judgements(item: Item, lease: Lease, answers: Answers, *, rubric: Rubric, submission: str, at: str) -> tuple[Judgement, ...]:
    """The Judgements of a filled-in form, responses in the order in which they were shown.  See `answers.judgement_rows`."""
    return judgement_rows(rubric, answers, [item.responses[place] for place in lease.order], judge=f"human:{lease.person}", at=at,
                          submission=submission, flags=("adjudication",) if lease.purpose == "adjudicate" else ())


# -- projects -------------------------------------------------------------------------------------------------------


def create_project(db: Database, name: str, *, rubric: str, title: str = "", settings: Settings | None = None, actor: str,
                   now: float | None = None) -> Project:
    """A new project.  `rubric`: "helpful@3", or a name for its newest version."""
    now = clock(now)
    with db.write() as conn:
        asked, settings = find_rubric(conn, rubric), settings or Settings()
        _need_answerable(settings, asked)
        project = Project(name=need_name(name, "a project"), title=need_title(title, "the title of a project"),
                          rubric=asked.ref, settings=settings, created=now)
        conn.execute(select(tables.head).with_for_update())  # two at once: the second sees the first
        if conn.execute(select(tables.projects.c.name).where(tables.projects.c.name == name)).first():
            raise UserError(f"a project {name} is there already; choose another name, or add items to it")
        conn.execute(insert(tables.projects).values(_project_row(project)))
        ledger.append(conn, kind="project", actor=actor, subject=name, content=to_dict(project), now=now)
    return project


def change_project(db: Database, name: str, *, title: str | None = None, rubric: str | None = None,
                   settings: Settings | None = None, actor: str, now: float | None = None) -> Project:
    """Change what is named; the log keeps every state.  Items keep the overlap that they were added with."""
    with db.write() as conn:
        conn.execute(select(tables.head).with_for_update())
        project = find_project(conn, name)
        if title is not None:
            project = replace(project, title=need_title(title, "the title of a project"))
        if rubric is not None:
            project = replace(project, rubric=find_rubric(conn, rubric).ref)
        if settings is not None:
            project = replace(project, settings=settings)
        _need_answerable(project.settings, find_rubric(conn, project.rubric))
        conn.execute(update(tables.projects).where(tables.projects.c.name == name).values(_project_row(project)))
        ledger.append(conn, kind="project", actor=actor, subject=name, content=to_dict(project), now=clock(now))
    return project


def _need_answerable(settings: Settings, rubric: Rubric) -> None:
    """Chats with one checkpoint give one answer a turn: a question about two could never be answered."""
    pair = next((question.name for question in rubric.questions if question.kind == "pair" and question.required), "")
    if settings.chat and not settings.chat.b and pair:
        raise UserError(f"question {pair} of rubric {rubric.ref} compares two answers, and the chat has one checkpoint; "
                        "name a second one (b), or take a rubric about one answer, such as safety, ratings or good-bad")


def load_project(db: Database, name: str) -> Project:
    with db.read() as conn:
        return find_project(conn, name)


def find_project(conn: Connection, name: str) -> Project:
    """As `load_project`, within a transaction."""
    row = conn.execute(select(tables.projects).where(tables.projects.c.name == need_name(name, "a project"))).mappings().first()
    if row is None:
        raise UserError(f"no project is named {name!r}{nearest(name, conn.execute(select(tables.projects.c.name)).scalars())}")
    return _project(row)


def list_projects(db: Database) -> list[Project]:
    with db.read() as conn:
        return [_project(row) for row in conn.execute(select(tables.projects).order_by(tables.projects.c.name)).mappings()]


def _project(row: Any) -> Project:
    return Project(**{**row, "settings": bind(Settings, json.loads(row["settings"]), where=f"settings of {row['name']}")})


def _project_row(project: Project) -> dict[str, Any]:
    return {**to_dict(project), "settings": canonical_json(to_dict(project.settings))}


# -- items ----------------------------------------------------------------------------------------------------------


def add_items(db: Database, project: str, items: Iterable[Item], *, actor: str, now: float | None = None) -> Added:
    """Put items at the end of a project.  Those that are there already are counted and left alone."""
    now, new, known = clock(now), 0, 0
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        added = _add(db, project, chunk, actor, now)
        new, known = new + added, known + len(chunk) - added
    return Added(new, known)


def _add(db: Database, name: str, items: list[Item], actor: str, now: float) -> int:
    with db.write() as conn:
        conn.execute(select(tables.head).with_for_update())  # two who add the same items: the second finds them there
        project = find_project(conn, name)
        rubric = find_rubric(conn, project.rubric)
        ready = {item.id: item for item in (_ready(project, rubric, item) for item in items)}
        there = set(conn.execute(select(tables.items.c.id).where(tables.items.c.id.in_(list(ready)))).scalars())
        insert_items(conn, [item for item in ready.values() if item.id not in there], actor=actor, now=now)
        return len(ready) - len(there)


def _ready(project: Project, rubric: Rubric, item: Item) -> Item:
    """The item as it is stored: with its id, its project, and the overlap, language and skill that hold for it."""
    content = item_content(item)
    stored_json(content, "an item", most=MOST_ITEM)
    if item.kind in ("prompt", "demonstration") and not any(
            question.kind == "write" and question.name == item.kind for question in rubric.questions):
        raise UserError(f"rubric {rubric.ref} has no question of kind write that is named {item.kind}, so nobody could write one; "
                        "take the rubric write, or add that question")
    if item.gold is not None:
        check_answers(rubric, Answers(values=item.gold), kind=item.kind, shown=[each.text for each in item.responses], partly=True)
    key = item.id or sha256_bytes(canonical_json(
        [project.name, item.kind, item.batch, item.gold is not None, content]).encode("utf-8"))[:32]
    settings = project.settings
    overlap = item.overlap or (settings.overlap if chance(key) < settings.overlap_share else 1)
    return replace(item, id=key, project=project.name, overlap=overlap if item.gold is None else EVERYBODY,
                   language=item.language or settings.language, skill=item.skill or settings.skill)


def item_content(item: Item) -> dict[str, Any]:
    """What may have to be erased: the texts."""
    return {"prompt": item.prompt and item.prompt.to_dict(), "responses": [response.to_dict() for response in item.responses]}


def chance(*key: object) -> float:
    """A number from 0 to 1 that is the same for the same key everywhere: a draw that needs no memory."""
    return int(sha256_bytes(canonical_json(key).encode("utf-8"))[:13], 16) / 16**13


def insert_items(conn: Connection, items: list[Item], *, actor: str, now: float) -> None:
    """Store items that are ready, in a transaction that holds the end of the log."""
    if not items:
        return
    place = conn.execute(select(func.max(tables.items.c.place)).where(tables.items.c.project == items[0].project)).scalar() or 0
    seqs = ledger.append_many(conn, [ledger.Note("item", actor, item.id, item_content(item)) for item in items], now=now)
    conn.execute(insert(tables.items), [
        {"id": item.id, "project": item.project, "kind": item.kind, "batch": item.batch, "place": place + at,
         "language": item.language, "skill": item.skill, "gold": None if item.gold is None else canonical_json(item.gold),
         "attention": item.attention, "special": item.gold is not None, "overlap": item.overlap, "done": 0, "full": False,
         "arm": item.arm, "seq": seq}
        for at, (item, seq) in enumerate(zip(items, seqs, strict=True), start=1)])
    if harms := [{"item": item.id, "category": harm} for item in items for harm in set(item.harms)]:
        conn.execute(insert(tables.item_harms), harms)


def load_item(db: Database, item_id: str) -> Item:
    """One item.  UserError when there is none, or when it was erased."""
    with db.read() as conn:
        return find_item(conn, item_id)


def find_item(conn: Connection, item_id: str) -> Item:
    """As `load_item`, within a transaction."""
    row = conn.execute(_items().where(tables.items.c.id == need_label(item_id, "the id of an item"))).mappings().first()
    if row is None:
        raise UserError(f"no item has the id {item_id!r}")
    if row["content"] is None:
        raise UserError(f"item {item_id} was erased")
    return _item(conn, [row])[0]


def iter_items(db: Database, project: str, *, special: bool | None = None) -> Iterator[Item]:
    """Items of a project in the order in which they were added, without those that were erased; `special`: only gold and attention
    items, or only the others."""
    wanted = _items().where(tables.items.c.project == project).order_by(tables.items.c.place).limit(CHUNK)
    if special is not None:
        wanted = wanted.where(tables.items.c.special == special)
    after = 0
    while True:
        with db.read() as conn:
            find_project(conn, project)
            rows = conn.execute(wanted.where(tables.items.c.place > after)).mappings().all()
            page = _item(conn, [row for row in rows if row["content"] is not None])
        yield from page
        if not rows:
            return
        after = rows[-1]["place"]


def _items():
    return select(tables.items, tables.contents.c.content).join(tables.contents, tables.contents.c.seq == tables.items.c.seq)


def _item(conn: Connection, rows: list[Any]) -> list[Item]:
    harms: dict[str, list[str]] = {}
    wanted = tables.item_harms.c.item.in_([row["id"] for row in rows])
    for row in conn.execute(select(tables.item_harms).where(wanted).order_by(tables.item_harms.c.category)):
        harms.setdefault(row.item, []).append(row.category)
    out = []
    for row in rows:
        content = json.loads(row["content"])
        out.append(Item(
            prompt=content["prompt"] and Prompt.from_dict(content["prompt"]), harms=tuple(harms.get(row["id"], ())),
            responses=tuple(Response.from_dict(each) for each in content["responses"]),
            gold=row["gold"] and json.loads(row["gold"]),
            **{name: row[name] for name in
               ("kind", "id", "project", "batch", "language", "skill", "attention", "overlap", "arm")}))
    return out


def erase_item(db: Database, item_id: str, *, actor: str, reason: str, now: float | None = None) -> int:
    """Remove the texts of an item and of all that was said of it, for good; how many rows of the log lost their content.

    The rows, digests and counts stay, and nobody is handed the item again.
    """
    items, leases = tables.items, tables.leases
    with db.write() as conn:
        row = conn.execute(select(items.c.seq).where(items.c.id == item_id).with_for_update(key_share=True)).first()
        if row is None:
            raise UserError(f"no item has the id {item_id!r}")
        conn.execute(update(items).where(items.c.id == item_id).values(full=True, gold=None))
        conn.execute(update(leases).where(leases.c.item == item_id).values(draft=""))
        conn.execute(update(leases).where(leases.c.item == item_id, leases.c.state == "open").values(state="skipped"))
        seqs = conn.execute(select(tables.submissions.c.seq).where(tables.submissions.c.item == item_id)).scalars()
        return ledger.erase_rows(conn, [row.seq, *seqs], actor=actor, reason=reason, now=clock(now))
