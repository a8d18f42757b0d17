"""Calling `tutelage feedback` in this process, and projects small enough to count by hand."""

import contextlib
import io
import json
from typing import NamedTuple

from tutelage.commands import arguments, feedback
from tutelage.commands.feedback_arguments import add_feedback
from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response
from tutelage.store.feedback import Item
from tutelage.terminal import Terminal, fail


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def call(*words) -> Done:
    """Run `tutelage feedback ...`, as cli.py would."""
    top = arguments._Parser(prog="tutelage")
    add_feedback(top.add_subparsers(dest="command", parser_class=arguments._Parser), arguments._command, arguments._Parser)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            args = top.parse_args(["feedback", *map(str, words)])
            code = feedback.run(args, Terminal(json_only=args.json))
        except UserError as error:
            fail(str(error), json_only="--json" in words)
            code = 2
    return Done(code, out.getvalue(), err.getvalue())


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def question(text: str, **more) -> Prompt:
    return Prompt(messages=(Message(role="user", text=text),), **more)


def item(text: str, *answers: str, kind: str = "pair", models=("m1", "m2", "m3", "m4"), **more) -> Item:
    prompt = question(text)
    return Item(kind=kind, prompt=prompt, responses=tuple(
        Response(prompt_id=prompt.id, text=answer, policy=model) for answer, model in zip(answers, models, strict=False)), **more)
