"""Calling the command line in this process, and small files for it."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

from tutelage.cli import main

QUICK = ["model=test", "device=cpu", "dtype=float32"]
TWO_STEPS = [*QUICK, "loop.max_steps=2", "loop.rows_per_step=4", "optim.learning_rate=1e-3"]
COLOURS = ("red", "green", "blue", "yellow")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def call(*words) -> Done:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Done(code, out.getvalue(), err.getvalue())


def write_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def instructions(count: int = 40) -> list[dict]:
    return [
        {"instruction": f"Say number {at} in {COLOURS[at % 4]}.", "output": f"{at}, {COLOURS[at % 4]}."}
        for at in range(count)
    ]


def pairs(count: int = 40) -> list[dict]:
    return [{"prompt": f"Question {at}?", "chosen": f"Yes, {at}.", "rejected": f"Go away {at}!"} for at in range(count)]
