"""What a checkpoint holds, written as safetensors and JSON: nothing is pickled.

Every random draw of a loop comes from (seed, epoch, step, prompt id, index), so counters are its whole random state.
The generators of torch, Python and numpy are kept all the same, for rewards of the user's own that draw from them.
"""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.core.errors import DamagedError, UserError
from tutelage.core.files import read_json, write_json
from tutelage.store.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveConfig:
    """When a run writes a checkpoint.  Results do not depend on it."""

    every_steps: int = 0  # 0 = off
    every_seconds: float = 300.0  # 0 = off
    keep: int = 2

    def __post_init__(self):
        if self.keep < 1:
            raise ValueError(f"keep must be >= 1; got {self.keep}")


def write_state(folder: Path, *, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """state.safetensors and state.json in `folder` (which the caller commits atomically)."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    tensors["rng.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    save_tensors(tensors, folder / "state.safetensors")
    kind, keys, *rest = np.random.get_state()
    write_json(folder / "state.json", {**facts, "random": {"python": random.getstate(), "numpy": [kind, keys.tolist(), *rest]}})


def seed_all(seed: int) -> None:
    """Set the generators of torch, Python and numpy, all of which a checkpoint keeps."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file; OSError where the disk refuses."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # a full disk comes out of the Rust side under this name
        raise OSError(f"{error}") from error


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a checkpoint; sets the generators back."""
    try:
        tensors = load_file(folder / "state.safetensors")
        facts = read_json(folder / "state.json")
    except (OSError, SafetensorError, UserError) as error:
        raise DamagedError(f"checkpoint {folder} cannot be read: {error}") from error
    torch.set_rng_state(tensors.pop("rng.torch"))
    cuda = tensors.pop("rng.cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    drawn = facts.pop("random")
    version, keys, gauss = drawn["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state((drawn["numpy"][0], np.array(drawn["numpy"][1], dtype=np.uint32), *drawn["numpy"][2:]))
    return tensors, facts


class Stopped(KeyboardInterrupt):
    """The user asked to stop; a checkpoint was written and the run resumes from it."""


class Saver:
    """Writes checkpoints when they are due, and once more when the user presses Ctrl-C between two steps."""

    def __init__(self, run: Run, config: SaveConfig, write: Callable[[Path], None]):
        self.run, self.config, self.write = run, config, write
        self.last = time.monotonic()
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "Saver":
        try:
            self._before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread: nobody presses Ctrl-C there
            self._before = None
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:  # a second Ctrl-C does not wait for the step to end
            raise KeyboardInterrupt
        self.asked = True

    def after_step(self, step: int) -> None:
        """Call when `step` steps are done and state is whole."""
        due = self.config.every_steps and step % self.config.every_steps == 0
        late = self.config.every_seconds and time.monotonic() - self.last > self.config.every_seconds
        if due or late or self.asked:
            self.run.save(f"{step:06d}", self.write, keep=self.config.keep)
            self.last = time.monotonic()
        if self.asked:
            raise Stopped(f"stopped after step {step}; checkpoint written")

    def before_error(self, step: int) -> None:
        """Call when step `step` + 1 failed and left the state as it was: keep what was learned up to there."""
        if step:
            self.run.save(f"{step:06d}", self.write, keep=self.config.keep)

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        self.run.close()
