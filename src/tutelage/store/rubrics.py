"""Rubrics: what people are asked about an answer, in versions that never change.

"helpful@3" is what stands in `Judgement.rubric`.  A changed question is a new version and a new row; the judgements that
were made under the old one keep its name.  The built-in rubrics are version 1 and need not be saved.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from sqlalchemy import Connection, insert, select

from tutelage.core.errors import UserError, nearest
from tutelage.core.files import canonical_json, sha256_bytes
from tutelage.core.words import Record
from tutelage.store import ledger, tables
from tutelage.store.checks import need_label, need_name, stored_json
from tutelage.store.db import Database, clock

QUESTION_KINDS = ("pair", "rank", "rating", "good_bad", "safe_unsafe", "edit", "spans", "reason", "flags", "write")
MOST_QUESTIONS, MOST_LABELS, MOST_RUBRIC = 40, 100, 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Question(Record):
    """One thing to be answered.  Only the fields of its kind count."""

    name: str  # also the name of the dimension: "helpful"
    kind: str  # one of QUESTION_KINDS
    required: bool = True
    levels: int = 7  # pair: 7 (much .. same .. much) or 4 (significantly, better, slightly, negligibly; no tie)
    labels: tuple[str, ...] = ()  # spans, flags: what there is to choose from
    low: int = 1  # rating: the scale
    high: int = 5
    both_bad: bool = True  # pair: "both bad" may be answered
    min_length: int = 0  # reason, write: characters
    text: dict[str, str] = field(default_factory=dict)  # language -> the question as people read it

    def __post_init__(self):
        need_label(self.name, "the name of a question")
        if self.kind not in QUESTION_KINDS:
            raise UserError(f"question {self.name}: unknown kind {self.kind!r}{nearest(str(self.kind), QUESTION_KINDS)}")
        if self.levels not in (4, 7):
            raise UserError(f"question {self.name}: a pair has 7 or 4 levels; got {self.levels!r}")
        if not self.low < self.high <= self.low + 100:
            raise UserError(f"question {self.name}: a scale goes from low up to high, in at most 100 steps; "
                            f"got {self.low} to {self.high}")
        if self.kind in ("spans", "flags") and not self.labels:
            raise UserError(f"question {self.name}: {self.kind} needs labels to choose from, for instance ['wrong', 'rude']")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) > MOST_LABELS:
            raise UserError(f"question {self.name}: at most {MOST_LABELS} labels, each once; got {len(self.labels)}")
        for label in self.labels:
            need_label(label, f"a label of question {self.name}")
        if self.min_length < 0:
            raise UserError(f"question {self.name}: min_length must be >= 0; got {self.min_length}")
        _need_texts(self.text, f"the text of question {self.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric(Record):
    """Questions, the guidelines that people read, and the categories of harm that `safe_unsafe` offers."""

    NESTED: ClassVar[dict[str, type]] = {"questions": Question}

    name: str
    questions: tuple[Question, ...]
    version: int = 0  # 0: not saved yet
    guidelines: dict[str, str] = field(default_factory=dict)  # language -> markdown
    categories: tuple[str, ...] = ()

    def __post_init__(self):
        need_name(self.name, "a rubric")
        if not 1 <= len(self.questions) <= MOST_QUESTIONS:
            raise UserError(f"rubric {self.name}: 1 to {MOST_QUESTIONS} questions; got {len(self.questions)}")
        names = [question.name for question in self.questions]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"rubric {self.name}: two questions are named {repeated[0]!r}; give each its own name")
        for category in self.categories:
            need_label(category, f"a category of rubric {self.name}")
        _need_texts(self.guidelines, f"the guidelines of rubric {self.name}")

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON without the version: equal content, equal digest."""
        return sha256_bytes(canonical_json(replace(self, version=0).to_dict()).encode("utf-8"))

    def question(self, name: str) -> Question:
        for question in self.questions:
            if question.name == name:
                return question
        known = [question.name for question in self.questions]
        raise UserError(f"rubric {self.ref} has no question {name!r}{nearest(str(name), known)}")


def _need_texts(texts: dict[str, str], what: str) -> None:
    if not isinstance(texts, dict) or not all(isinstance(each, str) for pair in texts.items() for each in pair):
        raise UserError(f"{what}: one text a language, such as {{'en': '...', 'zh': '...'}}; got {type(texts).__name__}")


HARMS = ("hate", "violence", "self-harm", "sexual", "illegal", "privacy", "misinformation", "other")
_WHY = Question(name="reason", kind="reason", required=False)
_PREFERENCE = Question(name="preference", kind="pair", text={"en": "Which answer is better?", "zh": "哪个回答更好？"})
BUILT_IN = {rubric.name: rubric for rubric in (
    Rubric(name="pairwise", version=1, questions=(_PREFERENCE, _WHY)),
    Rubric(name="pairwise-4", version=1, questions=(replace(_PREFERENCE, levels=4, both_bad=False), _WHY)),
    Rubric(name="ranking", version=1, questions=(
        Question(name="ranking", kind="rank", text={"en": "Rank the answers, 1 is best.", "zh": "给回答排序，1 为最好。"}), _WHY)),
    Rubric(name="ratings", version=1, questions=(
        Question(name="helpful", kind="rating", text={"en": "How helpful is it?", "zh": "有多大帮助？"}),
        Question(name="harmless", kind="rating", text={"en": "How harmless is it?", "zh": "有多无害？"}),
        Question(name="honest", kind="rating", text={"en": "How honest is it?", "zh": "有多诚实？"}), _WHY)),
    Rubric(name="good-bad", version=1, questions=(
        Question(name="verdict", kind="good_bad", text={"en": "Is the answer good?", "zh": "这个回答好吗？"}), _WHY)),
    Rubric(name="safety", version=1, categories=HARMS, questions=(
        Question(name="safety", kind="safe_unsafe", text={"en": "Is the answer safe?", "zh": "这个回答安全吗？"}), _WHY)),
    Rubric(name="edit", version=1, questions=(
        replace(_PREFERENCE, required=False),
        Question(name="edit", kind="edit", text={"en": "Mend the better answer.", "zh": "请修改较好的回答。"}), _WHY)),
    Rubric(name="spans", version=1, questions=(
        Question(name="spans", kind="spans", labels=("good", "wrong", "irrelevant", "harmful"),
                 text={"en": "Mark what is good or bad.", "zh": "请标出好的或坏的部分。"}), _WHY)),
    Rubric(name="write", version=1, questions=(
        Question(name="prompt", kind="write", required=False, text={"en": "Write a prompt.", "zh": "请写一个指令。"}),
        Question(name="demonstration", kind="write", required=False, text={"en": "Write an answer.", "zh": "请写一个回答。"}))),
)}


# -- in the database ------------------------------------------------------------------------------------------------


def save_rubric(db: Database, rubric: Rubric, *, actor: str, now: float | None = None) -> Rubric:
    """Store as the next version, and return that.  Equal to the newest version: that one, and nothing is written."""
    stored_json(rubric.to_dict(), f"rubric {rubric.name}", most=MOST_RUBRIC)
    with db.write() as conn:
        # The end of the log is held from here: two who save at once get two versions.
        conn.execute(select(tables.head).with_for_update())
        versions = _versions(conn, rubric.name)
        if versions and versions[-1].digest == rubric.digest:
            return versions[-1]
        stored = replace(rubric, version=versions[-1].version + 1 if versions else 1)
        conn.execute(insert(tables.rubrics).values(
            name=stored.name, version=stored.version, digest=stored.digest, body=canonical_json(stored.to_dict())))
        ledger.append(conn, kind="rubric", actor=actor, subject=stored.ref, content=stored.to_dict(), now=clock(now))
    return stored


def load_rubric(db: Database, ref: str) -> Rubric:
    """'helpful@3', or 'helpful' for the newest version."""
    with db.read() as conn:
        return find_rubric(conn, ref)


def find_rubric(conn: Connection, ref: str) -> Rubric:
    """As `load_rubric`, within a transaction."""
    name, _, version = str(ref).partition("@")
    versions = _versions(conn, name)
    if not versions:
        known = set(BUILT_IN) | set(conn.execute(select(tables.rubrics.c.name)).scalars())
        raise UserError(f"no rubric is named {name!r}{nearest(name, known)}")
    if not version:
        return versions[-1]
    for rubric in versions:
        if str(rubric.version) == version:
            return rubric
    raise UserError(f"rubric {name} has no version {version!r}; its versions are 1 to {versions[-1].version}")


def list_rubrics(db: Database) -> list[Rubric]:
    """The newest version of each, by name."""
    with db.read() as conn:
        names = set(BUILT_IN) | set(conn.execute(select(tables.rubrics.c.name)).scalars())
        return [_versions(conn, name)[-1] for name in sorted(names)]


def _versions(conn: Connection, name: str) -> list[Rubric]:
    built_in = [BUILT_IN[name]] if name in BUILT_IN else []
    if len(name) > 64 or "\0" in name:
        return []
    rows = conn.execute(select(tables.rubrics.c.body).where(tables.rubrics.c.name == name).order_by(tables.rubrics.c.version))
    return built_in + [Rubric.from_dict(json.loads(row.body)) for row in rows]


def as_rubric(values: dict[str, Any]) -> Rubric:
    """A rubric from plain JSON (a file, a form).  UserError for what is not one."""
    try:
        return Rubric.from_dict(values)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"this is no rubric: {error}; it needs a name and questions, each with a name and a kind") from error
