"""Live chats: who answers in a project, and the conversations that people have.

A chat is an item of kind `chat` in a person's hands.  Each turn of it is an item of its own (`queue.add_turn`): the
conversation so far with what the person typed as its prompt, the answers as its responses, for this person alone.  Its id
is the chat's lease and the number of the turn, so nothing else has to be kept: a conversation is read back from its turns,
and a turn that is sent twice is there once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import select

from tutelage.core.words import Message, Prompt
from tutelage.store import tables
from tutelage.store.chat_settings import MOST_TURNS
from tutelage.store.db import Database
from tutelage.store.feedback import chance
from tutelage.store.queue import Handed, handed, turn_id
from tutelage.store.rubrics import Rubric

# What tells which of two answers is better, the plainest first.
TELLING = ("pair", "rank", "rating", "good_bad", "safe_unsafe")


class Conversation(NamedTuple):
    """A chat as far as it has come."""

    turns: int
    last: Handed | None  # the newest turn
    messages: tuple[Message, ...]  # what was said up to where the person speaks next; without the answers still to be judged

    @property
    def waits(self) -> bool:
        """The newest answers have to be judged, or skipped, before it goes on."""
        return self.last is not None and self.last.lease.state == "open"


def conversation(db: Database, chat: Handed) -> Conversation:
    """What was said in a chat so far, read from its turns."""
    leases = tables.leases
    numbers = {turn_id(chat.lease.id, number): number for number in range(MOST_TURNS)}
    with db.read() as conn:
        rows = conn.execute(select(leases.c.id, leases.c.item).where(
            leases.c.item.in_(list(numbers)), leases.c.person == chat.lease.person)).all()
    if not rows:
        return Conversation(0, None, opening(chat.item.prompt))
    newest = max(rows, key=lambda row: numbers[row.item])
    last = handed(db, newest.id, chat.lease.person)
    said = last.item.prompt.messages
    if last.lease.state != "open":
        text = last.shown[goes_on(last, _values(db, last))].text
        said = (*said, Message(role="assistant", text=text))
    return Conversation(numbers[newest.item] + 1, last, said)


def opening(prompt: Prompt | None) -> tuple[Message, ...]:
    """What stands before the first turn: an item's system message and earlier turns, without its last one, the task."""
    if prompt is None:
        return ()
    return prompt.messages[:-1] if prompt.messages[-1].role == "user" else prompt.messages


def task(prompt: Prompt | None) -> str:
    """What an item asks the person to try or to talk about: its last turn, which is not sent to anybody."""
    return prompt.messages[-1].text if prompt is not None and prompt.messages[-1].role == "user" else ""


def goes_on(turn: Handed, values: Mapping[str, Any]) -> int:
    """Position, as shown, of the answer with which the conversation goes on: the better one.

    Where no judgement tells (a tie, both bad, skipped) it is drawn, by the turn's id: the same whenever it is asked.
    """
    return best(turn.rubric, values, drawn=int(chance("goes on", turn.item.id) * len(turn.shown)))


def best(rubric: Rubric, values: Mapping[str, Any], *, drawn: int) -> int:
    """Position of the answer that a form says is best, or `drawn`.

    >>> from tutelage.store.rubrics import BUILT_IN
    >>> best(BUILT_IN["pairwise"], {"preference": 2}, drawn=0), best(BUILT_IN["pairwise"], {"preference": 0}, drawn=0)
    (1, 0)
    """
    for kind in TELLING:
        for question in rubric.questions:
            value = values.get(question.name) if question.kind == kind else None
            scores = _scores(kind, value)
            if scores and max(scores) > min(scores):
                return drawn if scores[drawn] == max(scores) else scores.index(max(scores))
    return drawn


def _scores(kind: str, value: Any) -> Sequence[float]:
    """One number an answer, more is better; none where nothing was said."""
    if value is None or isinstance(value, str):  # both bad
        return ()
    if kind == "pair":
        return (-value, value)
    if kind == "rank":
        return [-rank for rank in value]
    if kind == "safe_unsafe":
        return [not each["unsafe"] for each in value]
    return value


def _values(db: Database, turn: Handed) -> dict[str, Any]:
    """The judgement of a turn that stands; nothing where it was skipped, or erased."""
    said = tables.submissions
    with db.read() as conn:
        content = conn.execute(
            select(tables.contents.c.content).join(said, said.c.seq == tables.contents.c.seq)
            .where(said.c.lease == turn.lease.id, said.c.round == turn.lease.round, said.c.follows.is_(None))).scalar()
    return json.loads(content)["answers"] if content and turn.lease.state == "done" else {}
