"""The loop under SFT, reward models and classifiers: steps of rows, evaluation, best weights, checkpoints, resume.

A task says what a micro-batch's loss is and what a model is worth; everything else stands here, once.  The sequence of
rows depends on (seed, epoch) only and nothing else is drawn, so a run that was killed and resumed ends with the same
bits as one that was not.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.store.runs import Run, commit_folder, verify_folder
from tutelage.text.pack import epochs_of_steps
from tutelage.training.memory import rss_gb, trim
from tutelage.training.optim import OptimConfig, Optimizer
from tutelage.training.state import SaveConfig, Saver, read_state, save_tensors, write_state
from tutelage.training.watch import Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How long and in what steps to train."""

    epochs: int = 1
    max_steps: int = 0  # 0 = as many as the epochs have
    rows_per_step: int = 16
    token_budget: int = 1024  # real and padded tokens of one micro-batch; changes memory and speed, not the gradient
    eval_first: bool = True  # before the first step, too: what training began from
    eval_every: int = 0  # steps; 0 = at the end of each epoch
    patience: int = 0  # evaluations without improvement before stopping; 0 = never stop early
    keep_best: bool = True  # the result is the best evaluated model, not the last

    def __post_init__(self):
        faults = [f"{name} must be >= {least}; got {getattr(self, name)}" for name, least in
                  (("epochs", 1), ("max_steps", 0), ("rows_per_step", 1), ("token_budget", 1), ("eval_every", 0), ("patience", 0))
                  if getattr(self, name) < least]
        if faults:
            raise ValueError("\n".join(faults))


class Micro(NamedTuple):
    """One micro-batch: its share of the step's loss, and sums to be added up over the step."""

    loss: Tensor  # [], already divided by the count of the whole step
    sums: dict[str, float]  # "loss" (undivided), "count" (what divides it), and what else the task wants to log


Evaluate = Callable[[], dict[str, float]]  # must hold "eval_loss" unless empty (no evaluation data)


class Task(Protocol):
    rows: int

    def micro(self, at: list[int]) -> Iterator[Micro]: ...

    def evaluate(self) -> dict[str, float]: ...


class Outcome(NamedTuple):
    steps: int
    best: dict[str, float]  # the evaluation of the weights that were kept
    stopped_early: bool


def ratios(sums: Counter) -> dict[str, float]:
    """loss = sum / count; every other sum `x` likewise, or by its own `x_count`, and left out where that is 0.

    >>> ratios(Counter({"loss": 6.0, "count": 4.0, "accuracy": 1.0, "accuracy_count": 2.0, "tokens": 30}))
    {'loss': 1.5, 'accuracy': 0.5, 'tokens': 30}
    """
    sums = Counter(sums)
    count = max(sums.pop("count", 0.0), 1e-8)
    tokens = sums.pop("tokens", None)
    own = {key.removesuffix("_count"): sums.pop(key) for key in list(sums) if key.endswith("_count")}
    out = {key: round(value / (own[key] if key in own else count), 6) for key, value in sums.items() if own.get(key, count)}
    return out if tokens is None else {**out, "tokens": int(tokens)}


def fit(
    run: Run,
    task: Task,
    module: nn.Module,
    *,
    loop: LoopConfig,
    optim: OptimConfig,
    save: SaveConfig,
    seed: int,
    first: Evaluate | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Train `module`'s trainable parameters on `task`, resuming from the newest whole checkpoint of `run`.

    `first`: asked for the evaluation before the first step (None: the task is).

    On return the module holds the kept weights.  UserError where the loss is not finite, naming the step.
    """
    steps_per_epoch = math.ceil(task.rows / loop.rows_per_step)
    total = min(loop.max_steps or sys.maxsize, loop.epochs * steps_per_epoch)
    epochs = math.ceil(total / steps_per_epoch)
    optimizer = Optimizer(module.named_parameters(), optim, total_updates=total)
    facts: dict[str, Any] = {"step": 0, "best": {}, "best_step": -1, "bad": 0, "tokens": 0}
    facts = _resume(run, optimizer, facts, warn)

    def write(folder: Path) -> None:
        write_state(folder, tensors=optimizer.state(),
                    facts={**facts, "updates": optimizer.updates, "metrics_bytes": run.metrics_bytes()})

    watcher = Watcher("fit", past=run.metrics())

    def log(row: dict[str, Any]) -> None:
        run.log(row)
        for told in watcher.see(row):
            warn(told)

    eval_every = loop.eval_every or steps_per_epoch
    stopped = bool(loop.patience) and facts["bad"] >= loop.patience  # killed between the early stop and the run's end
    with Saver(run, save, write) as saver:
        if facts["step"] == 0 and loop.eval_first:
            _evaluate(run, log, first or task.evaluate, module, optimizer, facts, keep=False)
        schedule = epochs_of_steps(task.rows, rows_per_step=loop.rows_per_step, epochs=epochs, seed=seed)
        for step, at in enumerate(schedule, start=1):
            if step <= facts["step"]:
                continue  # done before the run was killed
            if step > total or stopped:
                break
            log(_step(task, module, optimizer, at, step, facts, epoch=(step - 1) / steps_per_epoch))
            facts["step"] = step
            if step % eval_every == 0 or step == total:
                _evaluate(run, log, task.evaluate, module, optimizer, facts, keep=loop.keep_best)
                stopped = bool(loop.patience) and facts["bad"] >= loop.patience
            trim()
            progress("train", step, total)
            saver.after_step(step)
    optimizer.close()
    if loop.keep_best and facts["best_step"] >= 0:
        _load_best(run, optimizer)
    return Outcome(facts["step"], facts["best"], stopped)


def _step(task: Task, module: nn.Module, optimizer: Optimizer, at: list[int], step: int, facts: dict[str, Any],
          *, epoch: float) -> dict[str, Any]:
    """One optimiser update on rows `at`; returns the row of metrics."""
    begun = time.perf_counter()
    module.train()
    sums: Counter = Counter()
    for micro in task.micro(at):
        micro.loss.backward()
        sums.update(micro.sums)
    module.eval()
    tokens = sums.get("tokens", 0)
    row = ratios(sums)
    if not math.isfinite(row["loss"]):
        raise UserError(f"the loss is {row['loss']} at step {step}; nothing was updated. Lower optim.learning_rate "
                        f"(now {optimizer.config.learning_rate}) or look at the rows of this step: {at[:8]}")
    norm, lr = optimizer.step()
    facts["tokens"] += int(tokens)
    seconds = time.perf_counter() - begun
    return {"step": step, "epoch": round(epoch, 4), **row, "grad_norm": round(norm, 5), "lr": lr,
            "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 1), "rss_gb": rss_gb()}


def _evaluate(run: Run, log: Callable[[dict[str, Any]], None], evaluate: Evaluate, module: nn.Module, optimizer: Optimizer,
              facts: dict[str, Any], *, keep: bool) -> None:
    """Log an evaluation; where it is the best so far and `keep`, put the weights into best/."""
    module.eval()
    with torch.no_grad():
        result = evaluate()
    if not result:
        return
    log({"step": facts["step"], **result})
    if keep:
        if not facts["best"] or result["eval_loss"] < facts["best"]["eval_loss"]:
            facts.update(best=result, best_step=facts["step"], bad=0)
            tensors = {name: p.detach().cpu().contiguous() for name, p in optimizer.params.items()}
            commit_folder(run.folder / "best", lambda folder: save_tensors(tensors, folder / "weights.safetensors"))
        else:
            facts["bad"] += 1


def _load_best(run: Run, optimizer: Optimizer) -> None:
    verify_folder(run.folder / "best")
    tensors = load_file(run.folder / "best" / "weights.safetensors")
    with torch.no_grad():
        for name, p in optimizer.params.items():
            p.copy_(tensors[name])


def _resume(run: Run, optimizer: Optimizer, facts: dict[str, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    """State of the newest whole checkpoint, or `facts` untouched and an empty metrics file where there is none."""
    newest = run.newest(warn=warn)
    if newest is None:
        run.cut_metrics(0)
        return facts
    tensors, saved = read_state(newest)
    optimizer.load(tensors, updates=saved.pop("updates"))
    run.cut_metrics(saved.pop("metrics_bytes"))
    return saved
