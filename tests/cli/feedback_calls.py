"""Calling `tutelage feedback` in this process, and projects small enough to count by hand."""

import calling
from calling import Done, write_lines

from tutelage.core.words import Message, Prompt, Response
from tutelage.store.feedback import Item

__all__ = ["Done", "call", "item", "question", "write_lines"]


def call(*words) -> Done:
    return calling.call("feedback", *words)


def question(text: str, **more) -> Prompt:
    return Prompt(messages=(Message(role="user", text=text),), **more)


def item(text: str, *answers: str, kind: str = "pair", models=("m1", "m2", "m3", "m4"), **more) -> Item:
    prompt = question(text)
    return Item(kind=kind, prompt=prompt, responses=tuple(
        Response(prompt_id=prompt.id, text=answer, policy=model) for answer, model in zip(answers, models, strict=False)), **more)
