"""A small workspace in which everything has been trained once, with the model named `test`."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import pytest

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
    return [{"instruction": f"Say number {at} in {COLOURS[at % 4]}.", "output": f"{at}, {COLOURS[at % 4]}."} for at in range(count)]


def pairs(count: int = 40) -> list[dict]:
    return [{"prompt": f"Question {at}?", "chosen": f"Yes, {at}.", "rejected": f"Go away {at}!"} for at in range(count)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """An empty workspace, which is the current folder."""
    assert call("init", tmp_path / "ws").code == 0
    monkeypatch.chdir(tmp_path / "ws")
    return tmp_path / "ws"


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A workspace with data and finished runs: sft-0001, reward-0001, rl-0001.  Read only."""
    place = tmp_path_factory.mktemp("trained")
    files = write_lines(place / "chat.jsonl", instructions()), write_lines(place / "pairs.jsonl", pairs())
    here = ["--workspace", place]
    for words in (
        ["data", "import", files[0], "--name", "chat", "--split", "70/15/15", *here],
        ["data", "import", files[1], "--name", "pairs", "--split", "70/15/15", *here],
        ["sft", "data=chat", *TWO_STEPS, *here],
        ["reward", "data=pairs", *TWO_STEPS, *here],
        ["rl", "data=chat", *QUICK, "model=sft-0001", "reward=reward-0001", "steps=1", "prompts_per_step=2", "responses_per_prompt=2",
         "max_tokens=4", "normalise_on=2", "lora.rank=4", *here],
    ):
        done = call(*words)
        assert done.code == 0, done.err
    return place
