"""A small workspace in which everything has been trained once, with the model named `test`."""

from pathlib import Path

import pytest
from calling import QUICK, TWO_STEPS, call, instructions, pairs, write_lines


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
        [
            "rl",
            "data=chat",
            *QUICK,
            "model=sft-0001",
            "reward=reward-0001",
            "steps=1",
            "prompts_per_step=2",
            "responses_per_prompt=2",
            "max_tokens=4",
            "normalise_on=2",
            "lora.rank=4",
            *here,
        ],
    ):
        done = call(*words)
        assert done.code == 0, done.err
    return place
