"""What the tests of the store have in common: a project with people and items in it."""

from tutelage.core.words import Message, Prompt, Response
from tutelage.store.accounts import create_person
from tutelage.store.db import Database
from tutelage.store.feedback import Answers, Item, Settings, add_items, create_project

PLAIN = Settings(overlap=1, overlap_share=0.0, gold_share=0.0, lease_seconds=60.0)  # one judgement an item


def asked(text: str = "Hi") -> Prompt:
    return Prompt(messages=(Message(role="user", text=text),))


def pair(number: int = 0, **more) -> Item:
    """A pair: model m1 says "a", model m2 says "b"."""
    prompt = asked(f"question {number}")
    return Item(kind="pair", prompt=prompt, responses=tuple(
        Response(prompt_id=prompt.id, text=text, policy=policy) for text, policy in (("a", "m1"), ("b", "m2"))), **more)


def project(db: Database, *, items: int | list[Item] = 3, people: int = 2, settings: Settings = PLAIN, rubric: str = "pairwise") -> None:
    """Project "p" with items, and people ann-0, ann-1, ..."""
    create_project(db, "p", rubric=rubric, settings=settings, actor="boss", now=0)
    for number in range(people):
        create_person(db, f"ann-{number}", "annotator", actor="boss", now=0)
    add_items(db, "p", items if isinstance(items, list) else [pair(number) for number in range(items)], actor="boss", now=0)


def left(strength: int = 1) -> Answers:
    return Answers(values={"preference": -strength}, seconds=2.0)
