"""Metrics to TensorBoard, trackio, Weights & Biases or MLflow, read from a run's metrics.jsonl while it grows.

The loops know nothing of this: they write rows, and whoever watches hands the new ones on.  Rows are counted, and how many
were sent stands in the run's trackers.json, so that a resumed run sends none twice (the rows that it writes again are
the same ones).  Each package is optional and comes with the extra of its name.
"""

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tutelage.core.errors import UserError, nearest
from tutelage.core.extras import require
from tutelage.core.files import read_json, write_json

PROJECT = "tutelage"
NOT_METRICS = ("step", "time")


class Tracker(Protocol):
    """Something that draws curves."""

    def log(self, figures: Mapping[str, float], *, step: int) -> None: ...

    def close(self) -> None: ...


class Tail:
    """The rows of a growing JSON-lines file, each once, as (number, row); a file that was cut back is read from there on."""

    def __init__(self, path: Path):
        self.path, self.offset, self.count = path, 0, 0
        self.last: dict[str, Any] = {}  # newest value of every metric

    def rows(self) -> list[tuple[int, dict[str, Any]]]:
        if not self.path.exists():
            return []
        if self.path.stat().st_size < self.offset:
            self.offset = self.count = 0
        out = []
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self.offset += len(line)
                out.append((self.count, json.loads(line)))
                self.count += 1
                self.last.update(out[-1][1])
        return out


class Follower:
    """Hands the rows of a run to its trackers.  `poll` after each step, `close` at the end."""

    def __init__(self, folder: Path, names: Sequence[str], *, config: Mapping[str, Any]):
        check_names(names)
        self.folder, self.names, self.config = Path(folder), tuple(dict.fromkeys(names)), config
        self.tail = Tail(self.folder / "metrics.jsonl")
        self.state_path = self.folder / "trackers.json"
        self.state: dict[str, Any] = {}
        self.trackers: dict[str, Tracker] = {}

    def poll(self) -> dict[str, Any]:
        """Send what is new; returns the newest value of every metric."""
        rows = self.tail.rows()
        if rows and self.names:
            self._open()
            for name, tracker in self.trackers.items():
                for number, row in rows:
                    if number >= self.state["sent"].get(name, 0):
                        tracker.log(figures_of(row), step=int(row.get("step", number)))
                self.state["sent"][name] = max(self.tail.count, self.state["sent"].get(name, 0))
            write_json(self.state_path, self.state)
        return self.tail.last

    def _open(self) -> None:
        if self.trackers:
            return
        self.state = (
            read_json(self.state_path) if self.state_path.exists() else {"id": uuid.uuid4().hex[:8], "sent": {}}
        )
        for name in self.names:
            self.trackers[name] = TRACKERS[name](self.folder, self.state, self.config)

    def close(self) -> None:
        self.poll()
        for tracker in self.trackers.values():
            tracker.close()


def check_names(names: Sequence[str]) -> None:
    """UserError for an unknown tracker, or one whose package is missing: before the training, not after its first step."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"unknown tracker {name!r}{nearest(name, TRACKERS)}; known: {', '.join(TRACKERS)}")
        require(PACKAGES[name])


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, under train/ or eval/.

    >>> figures_of({"step": 2, "time": 1.0, "loss": 0.5, "eval_loss": 0.7, "note": "x"})
    {'train/loss': 0.5, 'eval/loss': 0.7}
    """
    return {
        f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}": float(value)
        for key, value in row.items()
        if key not in NOT_METRICS and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """
    >>> flat({"seed": 0, "optim": {"clip": 1.0}})
    {'seed': 0, 'optim.clip': 1.0}
    """
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{path}.{key}" if path else key
        out.update(flat(value, name) if isinstance(value, Mapping) else {name: value})
    return out


class TensorBoard:
    """Event files in the run's folder `tensorboard/`: tensorboard --logdir runs."""

    def __init__(self, folder: Path, state: dict[str, Any], config: Mapping[str, Any]):
        self.writer = require("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))
        if not state["sent"].get("tensorboard"):
            self.writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in flat(config).items()))

    def log(self, figures: Mapping[str, float], *, step: int) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A local dashboard: trackio show --project tutelage."""

    def __init__(self, folder: Path, state: dict[str, Any], config: Mapping[str, Any]):
        self.module = require("trackio")
        self.module.init(project=PROJECT, name=f"{folder.name}-{state['id']}", config=flat(config), resume="allow")

    def log(self, figures: Mapping[str, float], *, step: int) -> None:
        self.module.log(dict(figures), step=step)

    def close(self) -> None:
        self.module.finish()


class WandB:
    """Weights & Biases; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, folder: Path, state: dict[str, Any], config: Mapping[str, Any]):
        self.run = require("wandb").init(
            project=PROJECT,
            id=f"{folder.name}-{state['id']}",
            name=folder.name,
            dir=str(folder),
            config=flat(config),
            resume="allow",
        )
        self.step, self.held = -1, {}

    def log(self, figures: Mapping[str, float], *, step: int) -> None:
        # One call a step: W&B drops a row whose step it has passed, and evaluations share the step of the update before.
        if step != self.step:
            self._send()
            self.step = step
        self.held.update(figures)

    def _send(self) -> None:
        if self.held:
            self.run.log(self.held, step=self.step)
        self.held = {}

    def close(self) -> None:
        self._send()
        self.run.finish()


class MLflow:
    """MLflow at MLFLOW_TRACKING_URI, or in the workspace's mlflow.db."""

    def __init__(self, folder: Path, state: dict[str, Any], config: Mapping[str, Any]):
        self.module = require("mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            self.module.set_tracking_uri(f"sqlite:///{(folder.parent.parent / 'mlflow.db').resolve()}")
        self.module.set_experiment(PROJECT)
        run = self.module.start_run(run_id=state.get("mlflow"), run_name=None if state.get("mlflow") else folder.name)
        if not state.get("mlflow"):
            self.module.log_params({key: str(value)[:500] for key, value in flat(config).items()})
        state["mlflow"] = run.info.run_id

    def log(self, figures: Mapping[str, float], *, step: int) -> None:
        self.module.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        self.module.end_run()


TRACKERS: dict[str, Callable[[Path, dict[str, Any], Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
    "mlflow": MLflow,
}
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}
