"""Reinforcement learning in one call, for people who know trlX or TRL.

    import tutelage
    made = tutelage.train("smollm2-135m", reward_fn=lambda prompts, responses: [-float(len(r)) for r in responses],
                          prompts=["Describe a river."], algorithm="ppo", num_iterations=20)
    print(made.respond("Describe a hill.")[0].text, made.metrics[-1]["reward"])

The same loop as `tutelage rl`: a model or reward model that comes as an object is only read (the policy's weights are written
into the run's folder once, so that the reference is fixed and the run can be resumed), and the result is a folder.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from tutelage import api
from tutelage.commands.rl import JOB, with_demonstrations
from tutelage.commands.training import (
    Plan,
    check_run_name,
    check_same_data,
    config_from,
    execute,
    free_name,
    with_models,
    with_what_is_beside,
)
from tutelage.core.errors import UserError
from tutelage.core.files import records_digest
from tutelage.core.protocols import Judge, Progress, silent
from tutelage.core.words import Message, Prompt, Response
from tutelage.data.snapshot import Rows
from tutelage.judges.classifier import ClassifierJudge
from tutelage.judges.rules import FunctionJudge
from tutelage.models.load import MANIFEST, NAMES, best_device, best_dtype, kind_of, load, obtain, quiet_transformers, save
from tutelage.recipes import find_workspace, model_of, read_settings, short_name
from tutelage.rollout.local import LocalEngine
from tutelage.store.runs import Run
from tutelage.training.rl import config_of, judge_by_name, rl
from tutelage.training.trackers import check_names

RewardFn = Callable[[list, list[str]], Sequence[float]]
GIVEN = "given"  # folder in the run's folder for a policy that came as an object
RESPONSES = 32  # a step's, where the caller does not say


@dataclass(frozen=True)
class Trained:
    """What `train` made: a folder in Hugging Face format and the run that it came from."""

    path: Path
    steps: int
    skipped: int  # prompts longer than max_prompt_tokens
    device: str = "auto"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row an iteration; the glossary explains each key."""
        return Run(self.path.parent).metrics()

    @cached_property
    def engine(self) -> LocalEngine:
        loaded = load(str(self.path), device=self.device)
        return LocalEngine(loaded.model, loaded.tokenizer, policy=short_name(str(self.path)))

    def respond(self, prompts: Any, **sampling: Any) -> list[Response]:
        """Answers of the trained model; the keywords are those of `tutelage.respond`."""
        return api.respond(self.engine, prompts, **sampling)


class Pipeline:
    """A policy and what rewards it.  `train` may be called more than once; each time begins from the model as it was given."""

    def __init__(self, model: Any, reward_model: Any, **options: Any):
        """options: tokenizer, reward_tokenizer, reward_label, reward_reads, workspace, as in `train`."""
        known = ("tokenizer", "reward_tokenizer", "reward_label", "reward_reads", "workspace")
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise UserError(f"Pipeline has no option {unknown[0]!r}; it takes {', '.join(known)}. "
                            "Settings of the training go to .train(...)")
        self.model, self.reward_model, self.options = model, reward_model, options

    def train(self, *, prompts: str | Iterable[str | Prompt], num_iterations: int | None = None, **more: Any) -> Trained:
        """The keywords are those of `tutelage.train`."""
        return train(self.model, reward_model=self.reward_model, prompts=prompts, num_iterations=num_iterations,
                     **{**self.options, **more})


def train(
    model: Any,
    *,
    prompts: str | Iterable[str | Prompt],
    reward_fn: RewardFn | None = None,
    reward_model: Any = None,
    algorithm: str = "ppo",
    num_iterations: int | None = None,
    tokenizer: Any = None,
    reward_tokenizer: Any = None,
    reward_label: str | int | None = None,
    reward_reads: str = "both",
    run: str | None = None,
    resume: bool = False,
    workspace: str | Path | None = None,
    track: Sequence[str] = (),
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Trained:
    """Improve `model` on `prompts` against `reward_fn` or `reward_model`; `settings` are the keys of a recipe of `tutelage rl`.

    model, reward_model: a name, a folder, a run, or a loaded transformers object.
    reward_fn: f(prompts, responses) -> one number a response; two lists of equal length, prompts as they were given.
    reward_label: which label of a classifier is the reward.  reward_reads: "both" question and answer, or the "response" alone.
    resume: go on with `run` where it was begun, with the same settings and prompts.
    UserError where a tokenizer, a label or a reward cannot be known, and for every wrong setting at once.
    """
    place = find_workspace(workspace)
    check_run_name(run)
    if resume and run is None:
        raise UserError("resume=True needs run=, the name of the run that is to go on (a folder of runs/)")
    given = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
    asked = as_prompts(given)
    folder = place / "runs" / (run or free_name(place / "runs", "rl"))
    named = isinstance(model, (str, Path)) and tokenizer is None
    values = {
        "algorithm": algorithm, "data": "prompts", "model": str(model) if named else str(folder / GIVEN),
        **_of_object(model), **_sizes(asked, algorithm, settings), **_steps(num_iterations, settings), **settings}
    judge, label = judge_of(reward_fn, reward_model, reward_tokenizer, reward_label, reward_reads, prompts=asked, given=given,
                            place=place, settings=settings)
    if label:
        values["reward"] = label
    config = with_models(config_from(JOB, values, {}, place), JOB, place)
    track = tuple(dict.fromkeys([*track, *read_settings(place).track]))
    check_names(track)
    begun = (folder / "manifest.json").exists()
    if begun and not resume:
        raise UserError(f"a run already stands in {folder}; go on with it by resume=True, or choose another name with run=")
    rows = with_demonstrations(Rows("prompts", {"train": asked, "val": [], "test": []}), config, place, warn)
    data_id = with_what_is_beside(f"prompts@{records_digest(asked)}", rows)
    if begun:
        check_same_data(Run(folder), data_id)
    if not named and not (resume and (folder / GIVEN / MANIFEST).exists()):
        put_object(model, tokenizer, folder / GIVEN, place)
    plan = Plan(job=replace(JOB, train=partial(rl, judge=judge)), config=config, workspace=place, folder=folder, rows=rows,
                data_id=data_id, resume=resume, track=track)
    made = execute(plan, progress=progress, warn=warn)
    return Trained(made.path, made.steps, made.skipped, config.device)


def as_prompts(given: Sequence[str | Prompt]) -> list[Prompt]:
    """Each string is a user's turn."""
    if not given:
        raise UserError("prompts is empty; give one string or a list of strings")
    for at, each in enumerate(given):
        if not isinstance(each, (str, Prompt)) or isinstance(each, str) and not each.strip():
            raise UserError(f"prompts[{at}] is {each!r}; a prompt is a string with some text in it")
    return [each if isinstance(each, Prompt) else Prompt(messages=(Message(role="user", text=each),)) for each in given]


def _sizes(prompts: Sequence[Prompt], algorithm: str, settings: dict[str, Any]) -> dict[str, int]:
    """A step of `RESPONSES`: as many to a prompt as the algorithm is made for, more where the prompts are too few for that."""
    if "prompts_per_step" in settings or "responses_per_prompt" in settings:
        return {}
    defaults = {each.name: each.default for each in fields(config_of({"algorithm": algorithm}))}
    n = defaults["responses_per_prompt"]
    many = min(len({prompt.id for prompt in prompts}), max(1, RESPONSES // n))
    return {"prompts_per_step": many, "responses_per_prompt": RESPONSES // many}


def _steps(num_iterations: int | None, settings: dict[str, Any]) -> dict[str, int]:
    if num_iterations is not None and "steps" in settings:
        raise UserError(f"num_iterations={num_iterations} and steps={settings['steps']} are the same setting; give one")
    return {} if num_iterations is None else {"steps": num_iterations}


def _of_object(model: Any) -> dict[str, str]:
    """Where a loaded model lies, and in what type: train it there and so."""
    if isinstance(model, (str, Path)):
        return {}
    if not isinstance(model, (PreTrainedModel, PeftModel)):
        raise UserError(f"model must be a name, a folder or a loaded transformers model; got {type(model).__name__}")
    some = next(model.parameters())
    dtype = str(some.dtype).removeprefix("torch.")
    return {"device": str(some.device), "dtype": dtype if dtype in ("float32", "bfloat16") else "auto"}


def put_object(model: Any, tokenizer: Any, folder: Path, place: Path) -> None:
    """Write a policy that came as an object (or a named one that gets another tokenizer) into the run's folder."""
    if isinstance(model, (str, Path)):
        model = load(model_of(str(model), place)).model
    tokenizer = tokenizer_of(model, tokenizer, keyword="tokenizer")
    if isinstance(model, PeftModel):
        model = _merged_copy(model)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens and the model embeds {rows}; give the model's own "
                        "tokenizer, or call model.resize_token_embeddings(len(tokenizer)) first")
    save(model, tokenizer, folder, manifest={"kind": "given"})


def _merged_copy(model: PeftModel) -> PreTrainedModel:
    """What a model with adapters computes, as a plain one: its base may have been changed in memory, or have no name."""
    if not hasattr(model, "merge_and_unload"):
        raise UserError(f"model is a {type(model).__name__} of {model.active_peft_config.peft_type.value}, which cannot be "
                        "merged into a plain model; give its base model, or one with LoRA adapters")
    return copy.deepcopy(model).merge_and_unload()


def tokenizer_of(model: Any, given: Any, *, keyword: str) -> Any:
    """The tokenizer as an object: the given one, or the one that stands under the model's own name."""
    if given is not None and not isinstance(given, (str, Path)):
        return given
    name = str(given) if given is not None else getattr(model, "name_or_path", "") or ""
    if not name:
        raise UserError(f"the {type(model).__name__} came as an object that has no name, so its tokenizer is not known; "
                        f"pass {keyword}=")
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(_folder(name))
    except (OSError, ValueError) as error:  # UserError is a ValueError
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no tokenizer under the name {name!r} ({reason}); pass {keyword}= as an object") from error


def _folder(name: str) -> Path:
    """Names of objects are the hub's, without our hf: in front."""
    return obtain(name if name in NAMES or name.startswith("hf:") or Path(name).is_dir() else f"hf:{name}")


def judge_of(
    reward_fn: RewardFn | None, reward_model: Any, tokenizer: Any, label: str | int | None, reads: str, *,
    prompts: Sequence[Prompt], given: Sequence[str | Prompt], place: Path, settings: dict[str, Any],
) -> tuple[Judge | None, str]:
    """The judge and what to call it in the configuration; (None, "") where the settings name the reward themselves."""
    named = [key for key in ("reward", "rewards") if settings.get(key)]
    if (reward_fn is not None) + (reward_model is not None) + len(named) != 1:
        raise UserError("say what is rewarded, once: reward_fn=f(prompts, responses), or reward_model= a name, a folder or a "
                        "loaded model, or one of the settings reward= and rewards=")
    if named:
        _refuse_for_classifiers(f"{named[0]}=", tokenizer, label, reads)
        return None, ""
    if reward_fn is not None:
        _refuse_for_classifiers("reward_fn=", tokenizer, label, reads)
        name = getattr(reward_fn, "__name__", type(reward_fn).__name__)
        return FunctionJudge(_on_texts(reward_fn, prompts, given), id=f"rule:{name}"), f"function:{name}"
    if isinstance(reward_model, (str, Path)):
        return _named_judge(str(reward_model), tokenizer, label, reads, place, settings)
    if not isinstance(reward_model, PreTrainedModel):
        raise UserError("reward_model must be a name, a folder or a loaded transformers classifier; got "
                        f"{type(reward_model).__name__} (a function goes to reward_fn=)")
    tokenizer = tokenizer_of(reward_model, tokenizer, keyword="reward_tokenizer")
    judge = ClassifierJudge(reward_model, tokenizer, label=label, reads=reads)
    return judge, judge.id


def _refuse_for_classifiers(reward: str, tokenizer: Any, label: str | int | None, reads: str) -> None:
    """UserError for what says how a classifier is read, where the reward is none."""
    unread = [name for name, given in (("reward_tokenizer", tokenizer is not None), ("reward_label", label is not None),
                                       ("reward_reads", reads != "both")) if given]
    if unread:
        raise UserError(f"{', '.join(unread)}: only a classifier given as reward_model is read so, and the reward is {reward}; "
                        "leave it out")


def _on_texts(
    reward_fn: RewardFn, prompts: Sequence[Prompt], given: Sequence[str | Prompt]
) -> Callable[[list[Prompt], list[Response]], Any]:
    """The user's function sees prompts as they were given and the texts of the responses."""
    as_given = {prompt.id: each for prompt, each in zip(prompts, given, strict=True)}
    return lambda asked, responses: reward_fn([as_given[prompt.id] for prompt in asked], [r.text for r in responses])


def _named_judge(
    name: str, tokenizer: Any, label: str | int | None, reads: str, place: Path, settings: dict[str, Any]
) -> tuple[Judge, str]:
    name = model_of(name, place)
    where = {"dtype": settings.get("dtype", "auto"), "device": settings.get("device", "auto")}
    spoken = name.startswith(("rule:", "python:", "python-spans:", "python-steps:"))
    if spoken or kind_of(name) in ("reward", "cost", "span-reward"):
        _refuse_for_classifiers(name, tokenizer, label, reads)
        return judge_by_name(name, **where), name
    folder = _folder(name)
    device = best_device(where["device"])
    try:
        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=best_dtype(where["dtype"], device=device), use_safetensors=True).to(device)
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be loaded as a reward model: {str(error).strip().splitlines()[0]}") from error
    own = tokenizer if tokenizer is not None else str(folder)
    judge = ClassifierJudge(model, tokenizer_of(model, own, keyword="reward_tokenizer"), id=f"classifier:{short_name(name)}",
                            label=label, reads=reads)
    return judge, judge.id
