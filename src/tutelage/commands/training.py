"""What the training commands share: recipe -> plan -> run -> result.

A `Job` is what tells sft, reward, rl and classify apart.  `prepare` resolves everything that can be wrong before a model is
loaded; `execute` trains; the rest shows it.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tutelage.commands.database import resolve
from tutelage.core.config import bind, to_dict
from tutelage.core.errors import UserError, nearest
from tutelage.core.files import records_digest
from tutelage.core.protocols import Progress, silent
from tutelage.data.snapshot import SPLITS, Rows, load_rows, open_snapshot
from tutelage.preflight.check import check
from tutelage.preflight.findings import Finding, errors, told
from tutelage.recipes import find_recipe, find_workspace, model_of, read_config, read_file, read_settings
from tutelage.store.runs import Run, list_runs
from tutelage.terminal import Terminal, quote
from tutelage.training.trackers import Follower, check_names

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One kind of training run."""

    name: str  # of the command
    config: type  # its configuration
    train: Callable[
        ..., Any
    ]  # the loop: (config, *, rows..., folder, data_id, resume, progress, warn) -> result with .path
    rows: Callable[[Any, Path, Tell], Rows]  # (config, workspace, tell) -> the records by split
    arguments: Callable[[Rows], dict[str, Any]]  # rows -> the keyword arguments of `train` that hold them
    noun: str  # what a row is called: "examples"
    steps: Callable[[Any, int], int]  # (config, units of training) -> optimiser steps, at most
    units: Callable[[Any, Sequence[Any]], int] = lambda config, records: len(records)  # (config, records) -> what the loop counts as rows
    caches: bool = False  # whether `train` takes cache=, a folder for what may be found again
    models: tuple[str, ...] = ("model",)  # keys of the configuration that may name a run
    config_of: Callable[[Mapping[str, Any]], type] | None = None  # a recipe's values -> which subclass of `config` they are for

    def bind(self, values: Mapping[str, Any], *, where: str) -> Any:
        return bind(self.config_of(values) if self.config_of else self.config, values, where=where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run that nothing is known to be wrong with."""

    job: Job
    config: Any
    workspace: Path
    folder: Path
    rows: Rows
    data_id: str
    resume: bool
    track: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())  # what the reader of the data had to say

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def counts(self) -> dict[str, int]:
        return {split: len(rows) for split, rows in self.rows.splits.items() if rows}

    def units(self, split: str) -> int:
        """Rows of the loop in a split: records, or what the job makes of them."""
        return self.job.units(self.config, self.rows.splits[split])

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run, at most: an early stop, or rows of which nothing is left, make them fewer."""
        return self.job.steps(self.config, self.units("train"))

    @property
    def command(self) -> str:
        """What resumes this run."""
        where = "" if self.workspace == find_workspace() else f" --workspace {quote(self.workspace)}"
        return f"tutelage {self.job.name} --run {quote(self.name)} --resume{where}"


# Preparing


def prepare(
    job: Job,
    *,
    recipe: str | Path | None = None,
    words: Sequence[str] = (),
    config: Any = None,
    workspace: str | Path | None = None,
    run: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
) -> Plan:
    """Everything that can be checked before a model is loaded.  UserError with what is wrong."""
    place = find_workspace(workspace)
    runs = place / "runs"
    check_run_name(run)
    if resume and run is None:
        run = _newest_unfinished(job, place)
    folder = runs / (run or free_name(runs, job.name))
    begun = (folder / "manifest.json").exists()
    if config is None:
        own = folder / "config.yaml"
        if resume and begun and recipe is None and not words:
            config = job.bind(read_file(own), where=str(own))
        else:
            config = read_config(job.config_of or job.config, recipe, words, workspace=place)
    if begun and not resume:
        raise UserError(
            f"a run already stands in {folder}; resume it with --resume, or choose another name with --run NAME"
        )
    config = with_models(config, job, place)
    track = tuple(dict.fromkeys([*track, *read_settings(place).track]))
    check_names(track)
    notes: list[str] = []
    config = with_feedback(config, job, place, notes.append)
    rows = job.rows(config, place, notes.append)
    if not rows.splits["train"]:
        held = {split: len(found) for split, found in rows.splits.items() if found}
        raise UserError(
            f"{config.data} holds no {job.noun} to train on ({held or 'it is empty'})"
            + ("; held-out items are for evaluation only" if held else "")
        )
    data_id = identify(config.data, rows, place)
    if begun:
        check_same_data(Run(folder), data_id)
    return Plan(
        job=job,
        config=config,
        workspace=place,
        folder=folder,
        rows=rows,
        data_id=data_id,
        resume=resume,
        track=track,
        notes=tuple(notes),
    )


def with_models(config: Any, job: Job, workspace: Path) -> Any:
    """The configuration with names of runs replaced by the folders of what they made."""
    found: dict[str, Any] = {key: model_of(getattr(config, key), workspace) for key in job.models if getattr(config, key, None)}
    rewards = getattr(config, "rewards", None)
    if rewards:
        found["rewards"] = {name: replace(part, reward=model_of(part.reward, workspace)) for name, part in rewards.items()}
    return replace(config, **found)


def with_feedback(config: Any, job: Job, workspace: Path, tell: Tell) -> Any:
    """The configuration with `feedback:P` replaced by the snapshot that is made of it, so that a resumed run sees the same rows."""
    found = {"data": resolve(str(config.data), workspace, command=job.name, method=getattr(config, "method", ""), tell=tell)}
    if getattr(config, "ptx_coef", 0):
        found["ptx_data"] = resolve(str(config.ptx_data), workspace, command="sft", tell=tell)
    return replace(config, **{key: value for key, value in found.items() if value != str(getattr(config, key))})


def check_run_name(run: str | None) -> None:
    """UserError where `run` would lie elsewhere than in the workspace's runs/ (None: it gets a name of its own)."""
    if run is not None and (not isinstance(run, str) or run in (".", "..") or not re.fullmatch(r"[\w.@+-]+", run)):
        raise UserError(
            f"--run {run!r}: the name of a run is a folder name of letters, digits, dots, dashes and underscores"
        )


def free_name(runs: Path, kind: str) -> str:
    taken = [
        int(found[1])
        for each in (runs.iterdir() if runs.is_dir() else ())
        if (found := re.fullmatch(rf"{kind}-(\d+)", each.name))
    ]
    return f"{kind}-{max(taken, default=0) + 1:04d}"


def _newest_unfinished(job: Job, workspace: Path) -> str:
    found = [run for run in list_runs(workspace) if run.manifest["kind"] == job.name and not run.finished()]
    if not found:
        raise UserError(
            f"no unfinished {job.name} run in {workspace / 'runs'} to resume; name one with --run NAME, "
            "or leave --resume out to begin one"
        )
    return found[-1].id


def identify(name: str, rows: Rows, workspace: Path) -> str:
    """The immutable id of data: a snapshot's own, else the name with a digest of the records; then those of what is beside."""
    if not str(name).startswith(("starter:", "hf:")) and not Path(name).is_file():
        return with_what_is_beside(open_snapshot(name, workspace).name, rows)
    own = [row for split in SPLITS for row in rows.splits[split]]
    return with_what_is_beside(f"{name}@{records_digest(own)}", rows)


def with_what_is_beside(data_id: str, rows: Rows) -> str:
    """`data_id` with a digest of every further kind of rows, as of PPO-ptx's demonstrations: `chat@1a2b3c4d+ptx@5e6f7a8b`."""
    return data_id + "".join(f"+{split}@{records_digest(rows.splits[split])}" for split in sorted(set(rows.splits) - set(SPLITS)))


def check_same_data(run: Run, data_id: str) -> None:
    """UserError where the run was begun on other data."""
    before = run.manifest.get("parents") or [""]
    if before[-1] and before[-1] != data_id:
        raise UserError(
            f"the run in {run.folder} was begun on {before[-1]}, and the data are {data_id} now; "
            "bring the old data back, or begin a new run with --run NAME"
        )


def rows_of_kind(kind: str) -> Callable[[Any, Path, Tell], Rows]:
    """A `Job.rows` that asks for one noun."""
    return lambda config, workspace, tell: load_rows(config.data, workspace, kind=kind, seed=config.seed, tell=tell)


def rows_of_kinds(kinds: Sequence[str], needs: str) -> Callable[[Any, Path, Tell], Rows]:
    """A `Job.rows` that takes any of several nouns; `needs` says to whom has others what it takes, and where there is some."""

    def rows(config: Any, workspace: Path, tell: Tell) -> Rows:
        found = load_rows(config.data, workspace, seed=config.seed, tell=tell)
        if found.kind not in kinds:
            raise UserError(f"{config.data} holds {found.kind}; {needs}")
        return found

    return rows


def steps_of_loop(config: Any, rows: int) -> int:
    """Steps that training/loop.py will take on so many rows."""
    total = config.loop.epochs * math.ceil(rows / config.loop.rows_per_step)
    return min(total, config.loop.max_steps or total)


def prompts_asked(config: Any, records: Sequence[Any]) -> int:
    """Rows of the loop where all that was judged of a prompt is one row."""
    return len({record.prompt.id for record in records})


# Running


def execute(
    plan: Plan, *, progress: Progress = silent, warn: Tell = lambda text: None, follower: Follower | None = None
) -> Any:
    """Train; metrics go to the trackers as they come."""
    follower = follower or follow(plan)

    def step(what: str, done: int, total: int) -> None:
        follower.poll()
        progress(what, done, total)

    try:
        return plan.job.train(
            plan.config,
            **plan.job.arguments(plan.rows),
            folder=plan.folder,
            data_id=plan.data_id,
            resume=plan.resume,
            **({"cache": plan.workspace / ".cache" / "evaluation"} if plan.job.caches else {}),
            progress=step,
            warn=warn,
        )
    finally:
        follower.close()


def follow(plan: Plan) -> Follower:
    return Follower(plan.folder, plan.track, config=to_dict(plan.config))


def examine(plan: Plan, **more: Any) -> list[Finding]:
    """What is or may be wrong with the set-up (preflight/check.py), from the workspace's cache where it was looked at before."""
    return check(plan.job.name, plan.config, plan.rows.splits, data_id=plan.data_id, workspace=plan.workspace, **more)


def stop_where_wrong(plan: Plan, terminal: Terminal) -> list[Finding]:
    """The warnings of the check, shown; UserError where it found errors.  A run that has begun was checked then."""
    if (plan.folder / "manifest.json").exists():
        return []
    with terminal.progress() as progress:
        findings = examine(plan, progress=progress)
    wrong = errors(findings)
    show_findings([finding for finding in findings if finding not in wrong], terminal)
    if wrong:
        raise UserError(
            f"the check before training found {len(wrong)} error(s), so nothing was trained\n{told(wrong)}\n"
            "Mend them, or train all the same with --no-check"
        )
    return findings


def show_findings(findings: Sequence[Finding], terminal: Terminal) -> None:
    """Errors first."""
    for finding in sorted(findings, key=lambda each: each.severity):
        terminal.say(told([finding]), style="red" if finding.severity == "error" else "yellow")
    if findings:
        terminal.say()


def split_words(words: Sequence[str], command: str) -> tuple[str | None, list[str]]:
    """The recipe and the overrides among the words of the command line."""
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    recipes = [word for word in words if word not in overrides]
    if len(recipes) > 1:
        raise UserError(
            f"{command} takes one recipe; got {' and '.join(recipes)}. A setting is written key=value, "
            "for instance optim.learning_rate=1e-5"
        )
    return (recipes[0] if recipes else None), overrides


def metric_change(folder: Path, name: str) -> tuple[float, float] | None:
    """First and last value of a metric in a run; None where it has fewer than two."""
    values = [row[name] for row in Run(folder).metrics() if isinstance(row.get(name), (int, float))]
    return (values[0], values[-1]) if len(values) > 1 else None


def value_before(folder: Path, name: str) -> float | None:
    """A metric as it was before the first step; None where it was not measured then."""
    return next((row[name] for row in Run(folder).metrics() if row.get("step") == 0 and name in row), None)


def config_from(job: Job, recipe: Any, overrides: Mapping[str, Any], workspace: str | Path | None) -> Any:
    """For Python: a configuration as it is, or a recipe with keyword overrides (sections as dictionaries)."""
    if isinstance(recipe, job.config):
        known = [each.name for each in fields(recipe)]
        unknown = sorted(set(overrides) - set(known))
        if unknown:
            raise UserError(f'{job.name}: unknown key "{unknown[0]}"{nearest(unknown[0], known)}')
        return job.bind(_merged(to_dict(recipe), overrides), where=job.name)
    if recipe is None or isinstance(recipe, Mapping):
        return job.bind(_merged(recipe or {}, overrides), where=job.name)
    path = find_recipe(recipe, find_workspace(workspace))
    return job.bind(_merged(read_file(path), overrides), where=str(recipe))


def _merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(values)
    for key, value in overrides.items():
        out[key] = (
            _merged(out[key], value) if isinstance(value, Mapping) and isinstance(out.get(key), Mapping) else value
        )
    return out
