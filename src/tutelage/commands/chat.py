"""`tutelage chat`: talk to a model, its answer shown as it is drawn; reads lines where there is no terminal."""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tutelage.commands.engines import model_name, open_engine, sampling_of
from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response, Sampling
from tutelage.recipes import find_workspace
from tutelage.remote.openai_client import OpenAIEngine
from tutelage.rollout.local import LocalEngine
from tutelage.terminal import Terminal

HELP = "/reset forgets the conversation, /system TEXT sets a system message, /quit leaves (so does Ctrl-D)"
# The engine looks at a response's text after every token where a stop string is asked for.  One that no model writes, and
# that is longer than any answer, has it show us the whole text so far.
NEVER = "\0" * 8192


class Streaming(LocalEngine):
    """An engine that tells a listener what an answer says so far, after every token."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.listener: Callable[[str], None] | None = None

    def _text(self, token_ids: Sequence[int]) -> str:
        ended = bool(token_ids) and token_ids[-1] in self.ends
        text = super()._text(token_ids[:-1] if ended else token_ids)
        if self.listener is not None:
            self.listener(text)
        return text

    def stream(self, prompt: Prompt, sampling: Sampling, listener: Callable[[str], None]) -> Response:
        """One answer; `listener` gets each new piece of its text."""
        told = ""

        def tell(text: str) -> None:
            nonlocal told
            text = text.lstrip()
            whole = text.rstrip("\ufffd")  # a character whose bytes have not all been drawn
            if whole.startswith(told) and len(whole) > len(told):
                listener(whole[len(told) :])
                told = whole

        self.listener = tell
        try:
            response = next(iter(self.respond([(prompt, replace(sampling, n=1, stop=(NEVER,)))])))
        finally:
            self.listener = None
        # What was told is what the answer begins with, unless later bytes changed how earlier ones are read.
        text = response.text.lstrip()
        listener(text[len(told) :] if text.startswith(told) else f"\n{text}")
        return response


class Conversation:
    """What has been said; `system` stands first."""

    def __init__(self, system: str | None = None):
        self.system, self.turns = system, []

    def ask(self, text: str) -> Prompt:
        opening = [Message(role="system", text=self.system)] if self.system else []
        self.turns.append(Message(role="user", text=text))
        return Prompt(messages=(*opening, *self.turns))

    def answered(self, text: str) -> None:
        self.turns.append(Message(role="assistant", text=text.strip()))

    def take_back(self) -> None:
        self.turns.pop()


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    name = model_name(args.model, workspace)
    sampling = sampling_of(args)
    with terminal.progress() as progress:
        engine = open_engine(name, workspace, dtype=args.dtype, device=args.device, kind=Streaming, progress=progress)
    talks = sys.stdin.isatty() and not args.json
    if talks:
        terminal.note(f"{engine.policy}: {HELP}")
    talk, rows = Conversation(args.system), []
    while (line := _read(talks)) is not None:
        if line.startswith("/"):
            if line == "/quit":
                break
            _command(line, talk, terminal)
        elif line:
            rows.append(_turn(engine, talk, line, replace(sampling, step=len(rows)), terminal))
    terminal.result({"model": name, "turns": rows})
    return 0


def _read(talks: bool) -> str | None:
    """The next line, without its end; None where there are no more."""
    try:
        return input("\n> " if talks else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError:
        return ""


def _command(line: str, talk: Conversation, terminal: Terminal) -> None:
    word, _, rest = line.partition(" ")
    if word == "/reset":
        talk.turns.clear()
        terminal.note("forgotten")
    elif word == "/system":
        talk.system = rest.strip() or None
        terminal.note("system message set" if talk.system else "system message taken away")
    else:
        terminal.note(HELP)


def tell(engine: Streaming | OpenAIEngine, prompt: Prompt, sampling: Sampling, show: Callable[[str], None]) -> Response:
    """One answer, whose pieces `show` gets as they come."""
    if isinstance(engine, Streaming):
        return engine.stream(prompt, sampling, show)
    pieces = engine.stream(prompt, sampling)
    while True:
        try:
            show(next(pieces))
        except StopIteration as end:
            return end.value


def _turn(
    engine: Streaming | OpenAIEngine, talk: Conversation, line: str, sampling: Sampling, terminal: Terminal
) -> dict[str, Any]:
    out = terminal.console.file

    def show(piece: str) -> None:
        out.write(piece)
        out.flush()

    try:
        response = tell(engine, talk.ask(line), sampling, show)
    except KeyboardInterrupt:  # Ctrl-C ends this answer, not the conversation
        talk.take_back()
        terminal.note(" (stopped; this turn is forgotten)")
        return {"user": line, "assistant": None, "finish": "stopped"}
    except UserError as error:  # of an address: where a person talks, the conversation can go on
        if not sys.stdin.isatty():
            raise
        talk.take_back()
        terminal.warn(f"{error}; this turn is forgotten")
        return {"user": line, "assistant": None, "finish": "error"}
    if response.finish == "error":
        talk.take_back()
        filtered = ", or its filter held the answer back" if isinstance(engine, OpenAIEngine) else ""
        terminal.warn(f"the conversation is longer than the model's context{filtered}; /reset forgets it")
    else:
        terminal.say(" ..." if response.is_truncated() else "")
        talk.answered(response.text)
    return {"user": line, "assistant": response.text.strip(), "finish": response.finish}
