"""Metrics reach their trackers once each, whatever was cut off and written again."""

import json
import sys
from types import SimpleNamespace

import pytest

from tutelage.core.errors import UserError
from tutelage.training import trackers
from tutelage.training.trackers import Follower, Tail


class Book:
    """A tracker that keeps what it was told."""

    def __init__(self, folder=None, state=None, config=None):
        self.rows, self.closed, self.config = [], False, config

    def log(self, figures, *, step):
        self.rows.append((step, figures))

    def close(self):
        self.closed = True


@pytest.fixture
def book(monkeypatch):
    made = []
    monkeypatch.setitem(trackers.TRACKERS, "book", lambda *args: made.append(Book(*args)) or made[-1])
    monkeypatch.setitem(trackers.PACKAGES, "book", "json")
    return made


def write(path, *steps):
    with open(path, "a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": step / 2, "time": 1.0}) + "\n")


def test_tail_reads_each_row_once_and_waits_for_the_end_of_a_line(tmp_path):
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.rows() == []
    write(tail.path, 1, 2)
    assert [row["step"] for _, row in tail.rows()] == [1, 2]
    with open(tail.path, "a") as file:
        file.write('{"step": 3')
    assert tail.rows() == []
    with open(tail.path, "a") as file:
        file.write(', "loss": 9}\n')
    assert tail.rows() == [(2, {"step": 3, "loss": 9})]
    assert tail.last == {"step": 3, "loss": 9, "time": 1.0}


def test_rows_are_sent_as_they_come_with_their_step(book, tmp_path):
    follower = Follower(tmp_path, ["book"], config={"seed": 1})
    follower.poll()
    assert not book  # nothing to tell, so nothing was opened
    write(tmp_path / "metrics.jsonl", 1)
    follower.poll()
    write(tmp_path / "metrics.jsonl", 2)
    follower.close()
    assert book[0].rows == [(1, {"train/loss": 0.5}), (2, {"train/loss": 1.0})] and book[0].closed


def test_a_resumed_run_sends_no_row_twice(book, tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2, 3)
    Follower(tmp_path, ["book"], config={}).close()
    path.unlink()
    write(path, 1, 2)  # cut back to the checkpoint of step 2
    second = Follower(tmp_path, ["book"], config={})
    second.poll()
    write(path, 3, 4)  # step 3 is run again, with the same result
    second.close()
    assert [step for step, _ in book[0].rows] == [1, 2, 3] and [step for step, _ in book[1].rows] == [4]


def test_unknown_and_missing_trackers_are_refused_before_training(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='did you mean "tensorboard"'):
        Follower(tmp_path, ["tensorbord"], config={})
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'tutelage\[trackio\]'"):
        Follower(tmp_path, ["trackio"], config={})


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
    )
    write(tmp_path / "metrics.jsonl", 1, 2)
    Follower(tmp_path, ["tensorboard"], config={"optim": {"clip": 1.0}}).close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 1.0)]


def test_wandb_gets_one_call_a_step(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda figures, step: calls.append((step, dict(figures))), finish=lambda: calls.append("finish")
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: run))
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "eval_loss": 3.0}\n{"step": 2, "loss": 1.0}\n')
    Follower(tmp_path, ["wandb"], config={}).close()
    assert calls == [(1, {"train/loss": 2.0, "eval/loss": 3.0}), (2, {"train/loss": 1.0}), "finish"]


def test_mlflow_goes_on_in_the_run_that_it_began(tmp_path, monkeypatch):
    begun, metrics = [], []

    def start_run(run_id=None, run_name=None):
        begun.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(
        sys.modules,
        "mlflow",
        SimpleNamespace(
            set_tracking_uri=lambda uri: metrics.append(uri.split("/")[-1]),
            set_experiment=lambda name: None,
            start_run=start_run,
            log_params=lambda params: metrics.append(params),
            log_metrics=lambda figures, step: metrics.append((step, figures)),
            end_run=lambda: None,
        ),
    )
    write(tmp_path / "metrics.jsonl", 1)
    Follower(tmp_path, ["mlflow"], config={"seed": 3}).close()
    write(tmp_path / "metrics.jsonl", 2)
    Follower(tmp_path, ["mlflow"], config={"seed": 3}).close()
    assert begun == [(None, tmp_path.name), ("abc", None)]
    assert metrics == ["mlflow.db", {"seed": "3"}, (1, {"train/loss": 0.5}), "mlflow.db", (2, {"train/loss": 1.0})]
