"""What the command line shows: lines, tables, live progress with time left, and errors.

In a terminal progress is live (rich); elsewhere it is a line now and then, so that a log file stays readable.  With
--json everything of this goes to standard error, and standard output holds one JSON document and nothing else.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tutelage.core.protocols import Progress as ProgressCallback
from tutelage.core.protocols import silent

PLAIN_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
NAMES = {"train": "training", "rl": "reinforcement learning", "answer": "answering", "respond": "answering"}
LIVE = (
    "reward",
    "score",
    "kl",
    "loss",
    "accuracy",
    "length",
    "eval_loss",
    "eval_accuracy",
    "eval_f1",
)  # shown beside the bar


class Terminal:
    """One command's output.  `resume` is the command that goes on where this one was stopped; "" while there is none."""

    def __init__(self, *, json_only: bool = False):
        self.json_only = json_only
        file = sys.stderr if json_only else sys.stdout
        width = None if file.isatty() else 120  # rich would assume 80 and fold tables in log files
        self.console = Console(file=file, highlight=False, markup=False, emoji=False, width=width)
        self.live = self.console.is_terminal
        self.resume = ""

    # -- lines ---------------------------------------------------------------------------------------------------

    def say(self, text: str = "", *, style: str = "") -> None:
        # soft_wrap: the terminal folds long lines, so that a path stays in one piece to be copied
        self.console.print(Text(text, style=style), soft_wrap=True)

    def note(self, text: str) -> None:
        self.say(text, style="dim")

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}", style="yellow")

    def head(self, text: str) -> None:
        self.say(text, style="bold")

    def next_steps(self, *commands: str) -> None:
        """Commands that make sense now, one a line."""
        self.say("Next:" if commands else "")
        for command in commands:
            self.say(f"  {command}", style="cyan")

    def config(self, values: Mapping[str, Any], *, title: str) -> None:
        """The resolved configuration as compact YAML: a section a line."""
        text = compact_yaml(values)
        self.head(title)
        if self.live:
            self.console.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default", word_wrap=True))
        else:
            self.say(text)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", right: Sequence[int] = ()
    ) -> None:
        """A plain table; `right` are the columns that hold numbers."""
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for at, name in enumerate(columns):
            table.add_column(name, justify="right" if at in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
        self.console.print(table)

    def result(self, facts: Mapping[str, Any]) -> None:
        """The machine-readable result: printed with --json, alone on standard output."""
        if self.json_only:
            print(json.dumps(facts, ensure_ascii=False, indent=2, default=str), flush=True)

    # -- progress ------------------------------------------------------------------------------------------------

    @contextmanager
    def progress(self, *, facts: Callable[[], Mapping[str, Any]] = dict) -> Iterator[ProgressCallback]:
        """A progress callback for the length of a job; `facts` gives the newest figures to show beside it."""
        if self.live:
            with self._bars(facts) as callback:
                yield callback
        else:
            yield PlainProgress(self.say, facts)

    @contextmanager
    def _bars(self, facts: Callable[[], Mapping[str, Any]]) -> Iterator[ProgressCallback]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}", style="dim"),
        )
        with Progress(*columns, console=self.console, speed_estimate_period=120) as bars:
            tasks: dict[str, Any] = {}

            def callback(what: str, done: int, total: int) -> None:
                if what not in tasks:  # what an earlier process did counts as done, not as fast
                    tasks[what] = bars.add_task(NAMES.get(what, what), total=max(total, 1), completed=done, facts="")
                else:
                    bars.update(tasks[what], total=max(total, 1), completed=done, facts=figures(facts()))

            yield callback


class PlainProgress:
    """A line of progress every few seconds, and at the end of each job."""

    def __init__(
        self,
        say: Callable[[str], None],
        facts: Callable[[], Mapping[str, Any]] = dict,
        *,
        every: float = PLAIN_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.say, self.facts, self.every, self.clock = say, facts, every, clock
        self.begun: dict[str, tuple[float, int]] = {}  # job -> when it was first heard of, and how far it was then
        self.last: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self.clock()
        if what not in self.begun:
            self.begun[what], self.last[what] = (now, done), now
            if done < total:
                return
        if now - self.last[what] < self.every and done < total:
            return
        self.last[what] = now
        start, at_start = self.begun[what]
        parts = [f"{NAMES.get(what, what)} {done}/{total}", f"{100 * done / max(total, 1):.0f} %"]
        if done > at_start and done < total:
            parts.append(f"{clock((now - start) * (total - done) / (done - at_start))} left")
        elif done >= total:
            parts.append(f"took {clock(now - start)}")
        self.say("  ".join([*parts, figures(self.facts())]).rstrip())


def clock(seconds: float) -> str:
    """
    >>> clock(5), clock(95), clock(3725)
    ('0:05', '1:35', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def figures(row: Mapping[str, Any], *, most: int = 4) -> str:
    """The figures of a row of metrics that say most, in a few words.

    >>> figures({"step": 3, "loss": 2.34567, "lr": 1e-05})
    'loss 2.346'
    """
    known = [f"{name} {row[name]:.4g}" for name in LIVE if isinstance(row.get(name), (int, float))]
    return "  ".join(known[:most])


def compact_yaml(values: Mapping[str, Any]) -> str:
    """YAML with one line a key, sections in braces.

    >>> print(compact_yaml({"model": "test", "optim": {"learning_rate": 0.001, "clip": 1.0}, "labels": []}))
    model: test
    optim: {learning_rate: 0.001, clip: 1.0}
    labels: []
    """
    line = lambda value: yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000
    )
    out = []
    for key, value in values.items():
        text = line(value).removesuffix("\n").removesuffix("\n...").strip()
        out.append(f"{key}: {text}")
    return "\n".join(out)


def fail(text: str, *, json_only: bool = False) -> None:
    """`error: ...` on standard error (in red where it is a terminal), and as JSON where JSON was asked for."""
    mark = "\033[31merror:\033[0m" if sys.stderr.isatty() else "error:"
    print(f"{mark} {text}", file=sys.stderr, flush=True)
    if json_only:
        print(json.dumps({"error": text}, ensure_ascii=False), flush=True)


def quote(path: str | Path) -> str:
    """A path as it can be typed: in quotes where it holds a space."""
    text = str(path)
    return f'"{text}"' if " " in text else text


__all__ = ["Terminal", "PlainProgress", "clock", "compact_yaml", "fail", "figures", "quote", "silent"]
