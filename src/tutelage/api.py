"""What `import tutelage` offers: the commands as functions.

    import tutelage
    made = tutelage.sft("tiny_sft", optim={"learning_rate": 1e-3})
    print(tutelage.respond(made.path, "What is a reward model?")[0].text)

A call imports what it needs when it is made, so that `tutelage.import_data` loads no torch.  Recipes are names, files,
dictionaries or configurations; keyword arguments override their keys (sections as dictionaries).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tutelage.commands.arguments import TRAINING_COMMANDS
from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Prompt, Response, Sampling

__all__ = [
    "Pipeline",
    "blend",
    "classify",
    "compare",
    "cost",
    "demo",
    "evaluate",
    "import_data",
    "init",
    "load",
    "prefer",
    "recipe",
    "report",
    "respond",
    "reward",
    "rl",
    "sft",
    "train",
]

Tell = Callable[[str], None]


def _quiet(line: str) -> None:
    pass


def _command(name: str) -> Any:
    return import_module(f"tutelage.commands.{name}")


def recipe(command: str, recipe: Any = None, *, workspace: str | Path | None = None, **overrides: Any) -> Any:
    """The configuration (a frozen dataclass) of a training command (sft, cost, rl, ...) from a recipe and overrides."""
    if command not in TRAINING_COMMANDS:
        raise UserError(f"no training command {command!r}; known: {', '.join(sorted(TRAINING_COMMANDS))}")
    return _command("training").config_from(_command(command.replace("-", "_")).JOB, recipe, overrides, workspace)


def _train(
    command: str,
    given: Any,
    overrides: Mapping[str, Any],
    *,
    workspace: str | Path | None,
    run: str | None,
    resume: bool,
    track: Sequence[str],
    progress: Progress,
    warn: Tell,
) -> Any:
    training = _command("training")
    config = recipe(command, given, workspace=workspace, **overrides)
    plan = training.prepare(
        _command(command).JOB, config=config, workspace=workspace, run=run, resume=resume, track=track
    )
    for note in plan.notes:
        warn(note)
    return training.execute(plan, progress=progress, warn=warn)


def sft(
    recipe: Any = None,
    *,
    workspace: str | Path | None = None,
    run: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    progress: Progress = silent,
    warn: Tell = _quiet,
    **overrides: Any,
) -> Any:
    """Supervised fine-tuning; returns SFTResult(path, outcome, skipped)."""
    return _train(
        "sft", recipe, overrides, workspace=workspace, run=run, resume=resume, track=track, progress=progress, warn=warn
    )


def reward(
    recipe: Any = None,
    *,
    workspace: str | Path | None = None,
    run: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    progress: Progress = silent,
    warn: Tell = _quiet,
    **overrides: Any,
) -> Any:
    """A reward model; returns RewardResult(path, outcome)."""
    return _train(
        "reward",
        recipe,
        overrides,
        workspace=workspace,
        run=run,
        resume=resume,
        track=track,
        progress=progress,
        warn=warn,
    )


def cost(
    recipe: Any = None,
    *,
    workspace: str | Path | None = None,
    run: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    progress: Progress = silent,
    warn: Tell = _quiet,
    **overrides: Any,
) -> Any:
    """A cost model (above 0 unsafe, below 0 safe); returns CostResult(path, outcome)."""
    return _train(
        "cost", recipe, overrides, workspace=workspace, run=run, resume=resume, track=track, progress=progress, warn=warn
    )


def prefer(
    recipe: Any = None,
    *,
    workspace: str | Path | None = None,
    run: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    progress: Progress = silent,
    warn: Tell = _quiet,
    **overrides: Any,
) -> Any:
    """A policy from judged answers (the keyword `method`: dpo, cdpo, robust_dpo, ipo, kto, orpo, simpo); returns PreferResult."""
    return _train(
        "prefer",
        recipe,
        overrides,
        workspace=workspace,
        run=run,
        resume=resume,
        track=track,
        progress=progress,
        warn=warn,
    )


def rl(
    recipe: Any = None,
    *,
    workspace: str | Path | None = None,
    run: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    progress: Progress = silent,
    warn: Tell = _quiet,
    **overrides: Any,
) -> Any:
    """PPO against a reward (the keyword `reward`: a folder, a run, rule:NAME or python:FILE.py:FUNCTION); returns RLResult."""
    return _train(
        "rl", recipe, overrides, workspace=workspace, run=run, resume=resume, track=track, progress=progress, warn=warn
    )


def classify(
    recipe: Any = None,
    *,
    workspace: str | Path | None = None,
    run: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    progress: Progress = silent,
    warn: Tell = _quiet,
    **overrides: Any,
) -> Any:
    """A text classifier; returns ClassifyResult(path, outcome, report)."""
    return _train(
        "classify",
        recipe,
        overrides,
        workspace=workspace,
        run=run,
        resume=resume,
        track=track,
        progress=progress,
        warn=warn,
    )


def train(model: Any, *, prompts: Any, **options: Any) -> Any:
    """Reinforcement learning in one call, for people who know trlX: train(model, reward_fn=f, prompts=[...], algorithm="ppo",
    num_iterations=100); returns an object with .path, .respond(...) and .metrics.  All keywords: `tutelage.simple.train`."""
    return import_module("tutelage.simple").train(model, prompts=prompts, **options)


def Pipeline(model: Any, reward_model: Any, **options: Any) -> Any:
    """A policy and its reward model; .train(prompts=..., num_iterations=...) as `train` does."""
    return import_module("tutelage.simple").Pipeline(model, reward_model, **options)


def load(name: str | Path, *, workspace: str | Path | None = None, dtype: str = "auto", device: str = "auto") -> Any:
    """An engine on this machine for a model, a folder or a run: it has `respond(requests)` and `score(items)`."""
    place = import_module("tutelage.recipes").find_workspace(workspace)
    return _command("engines").open_engine(str(name), place, dtype=dtype, device=device)


def respond(
    model: Any,
    prompts: str | Prompt | Iterable[str | Prompt],
    *,
    n: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 128,
    top_p: float = 1.0,
    seed: int = 0,
    workspace: str | Path | None = None,
    progress: Progress = silent,
) -> list[Response]:
    """Answers to one prompt or several, in their order, `n` each; `model` is a name, a folder, a run or what `load` gave."""
    single = isinstance(prompts, (str, Prompt))
    module = _command("respond")
    asked = [
        module.prompt_from_text(each) if isinstance(each, str) else each for each in ([prompts] if single else prompts)
    ]
    engine = model if hasattr(model, "respond") else load(model, workspace=workspace)
    sampling = Sampling(n=n, temperature=temperature, max_tokens=max_tokens, top_p=top_p, seed=seed)
    return module.respond(engine, asked, sampling, progress=progress)


def evaluate(
    *models: str | Path,
    data: str = "starter:evaluation",
    judge: str | None = None,
    limit: int | None = None,
    max_tokens: int = 96,
    seed: int = 0,
    workspace: str | Path | None = None,
    progress: Progress = silent,
) -> Any:
    """Figures of the models on held-out prompts, as an evals.ReportInput; evals.report.render makes a page of it."""
    engines, place = _command("engines"), import_module("tutelage.recipes").find_workspace(workspace)
    if not models:
        raise UserError("evaluate needs at least one model")
    prompts = engines.spread_out(engines.read_prompts(data, place, held_out=True), limit)
    return _command("evaluate").evaluate(
        [str(each) for each in models],
        workspace=place,
        prompts=prompts,
        judge=judge,
        seed=seed,
        sampling=Sampling(temperature=0.0, max_tokens=max_tokens),
        progress=progress,
    )


def compare(
    a: str | Path,
    b: str | Path,
    *,
    judge: Any,
    data: str = "starter:evaluation",
    limit: int | None = None,
    max_tokens: int = 96,
    seed: int = 0,
    workspace: str | Path | None = None,
    progress: Progress = silent,
) -> Any:
    """How often `judge` (a folder, a run, rule:NAME, python:FILE.py:FUNCTION, or any Judge) prefers a's answer: a WinRate."""
    engines, place = _command("engines"), import_module("tutelage.recipes").find_workspace(workspace)
    prompts = engines.spread_out(engines.read_prompts(data, place, held_out=True), limit)
    decides = judge if hasattr(judge, "judge") else engines.open_judge(str(judge), place)
    return _command("compare").compare(
        str(a),
        str(b),
        judge=decides,
        workspace=place,
        prompts=prompts,
        seed=seed,
        sampling=Sampling(temperature=0.0, max_tokens=max_tokens),
        progress=progress,
    )


def blend(
    weights: Mapping[str, float] | str,
    *,
    run: str | None = None,
    method: str = "weights",
    unnormalised: bool = False,
    workspace: str | Path | None = None,
) -> Path:
    """Runs or folders of one base as one model, by weights ({"helpful": 0.7, "harmless": 0.3}); returns its folder."""
    place = import_module("tutelage.recipes").find_workspace(workspace)
    return _command("blend").blend_runs(weights, workspace=place, run=run, method=method, unnormalised=unnormalised)


def report(folder: str | Path, *, lang: str = "en", out: str | Path | None = None) -> Path:
    """Write report.html of a demo, an evaluation or a run again; returns its path."""
    return _command("report").report(folder, lang=lang, out=out)


def demo(
    folder: str | Path = "demo",
    *,
    model: str | None = None,
    seed: int = 0,
    lang: str = "en",
    progress: Progress = silent,
    say: Tell = _quiet,
) -> Any:
    """The whole loop on the starter data; returns DemoResult(report, input)."""
    return _command("demo").run_demo(folder, model=model, seed=seed, lang=lang, progress=progress, say=say)


def import_data(
    *files: str | Path, workspace: str | Path | None = None, clean: str = "unicode,exact", **more: Any
) -> Any:
    """Files into a snapshot, cleaned as `--clean` says; further keywords are those of data.importer.import_data."""
    module, place = _command("data"), import_module("tutelage.recipes").find_workspace(workspace)
    return module.import_files([str(each) for each in files], workspace=place, clean=module.parse_clean(clean), **more)


def init(folder: str | Path = ".") -> Path:
    """Make a workspace; returns its folder."""
    return _command("init").init(folder)
