"""The whole loop on the project's own starter data: clean -> SFT -> respond -> judgements -> reward model -> PPO -> evaluate.

Two reward models are trained, on disjoint halves of the preference pairs and from different seeds: one teaches PPO, the
other only judges.  The judge's own accuracy, measured on the teacher's half, stands beside its verdicts.

Each stage leaves its result in the folder and is passed over when it stands there, so that the same command goes on
where it was stopped.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.core.config import to_dict
from tutelage.core.files import read_json, read_jsonl, write_atomic, write_json, write_jsonl
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Example, Judgement, Preference, Prompt, Response, Sampling
from tutelage.data import starter
from tutelage.data.clean import CleanConfig, Cleaner, Dropped
from tutelage.data.contamination import Item
from tutelage.data.split import split_of
from tutelage.evals.inputs import ReportInput, RewardModelCard
from tutelage.evals.report import render
from tutelage.evals.safety import safety_scores
from tutelage.evals.saved import NAME, save_input
from tutelage.evals.tasks import answer_all, task_scores
from tutelage.evals.winrate import win_rate
from tutelage.judges.reward_model import RewardJudge
from tutelage.models.load import load
from tutelage.pipeline.audit import audit_reward
from tutelage.rollout.local import LocalEngine
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.memory import collect, rss_gb
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo import PPOConfig
from tutelage.training.reward import RewardConfig, reward
from tutelage.training.rl import rl
from tutelage.training.sft import SFTConfig, sft

MODELS = ("base", "sft", "ppo")
STAGES = ("clean", "sft", "respond", "judgements", "reward", "judge", "ppo", "evaluate", "report")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What the demo trains and how; the defaults fit 2 cores, 6 GB and 15 minutes."""

    model: str = "smollm2-135m"
    seed: int = 0
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(
        frozen_layers=15, loop=LoopConfig(epochs=1, rows_per_step=8),
        optim=OptimConfig(learning_rate=5e-4, warmup=0.05, weight_decay=0.01)))
    reward: RewardConfig = field(default_factory=lambda: RewardConfig(
        frozen_layers=20, loop=LoopConfig(epochs=1, rows_per_step=8, keep_best=False),
        optim=OptimConfig(learning_rate=2e-4, warmup=0.1, weight_decay=0.01)))
    # full fine-tuning of the upper half beside a frozen reference: on a CPU faster than adapters on every layer
    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(
        steps=12, prompts_per_step=8, responses_per_prompt=4, max_tokens=48, max_prompt_tokens=110, normalise_on=32,
        temperature=0.7, baseline="leave_one_out", epochs=1, minibatches=2, frozen_layers=15, lora=LoraConfig(),
        ptx_coef=0.3, ptx_rows=6,  # so that what SFT taught (above all to answer in the language of the question) is not lost
        optim=OptimConfig(learning_rate=1e-4, warmup=0.05, betas=(0.9, 0.95), eps=1e-5)))
    eval_tokens: int = 64
    eval_items: int = 0  # 0 = all
    respond_prompts: int = 24
    instructions: int = 0  # 0 = all; fewer for a quick trial


def tiny(seed: int = 0) -> DemoConfig:
    """The same loop on the model named `test`, in seconds: nothing is learned worth keeping, every line is run."""
    one = LoopConfig(epochs=1, max_steps=3, rows_per_step=8)
    return DemoConfig(
        model="test", seed=seed, sft=SFTConfig(loop=one), reward=RewardConfig(loop=replace(one, keep_best=False)),
        ppo=PPOConfig(steps=2, prompts_per_step=4, responses_per_prompt=2, max_tokens=12, max_prompt_tokens=200, normalise_on=8,
                      ptx_coef=0.3, ptx_rows=2),
        eval_tokens=12, eval_items=40, respond_prompts=4, instructions=120)


class DemoResult(NamedTuple):
    report: Path
    input: ReportInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Starter:
    """The starter data, cleaned and split; halves of the pairs share no prompt."""

    train: list[Example]
    val: list[Example]
    pairs_teacher: list[Preference]
    pairs_judge: list[Preference]
    prompts: list[Prompt]  # that PPO asks: those of instructions and pairs
    evaluation: list[Prompt]
    counts: dict[str, Any]


def demo(
    folder: Path | str,
    *,
    config: DemoConfig | None = None,
    lang: str = "en",
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Run what is not yet done of the loop in `folder`; leaves report.html, figures.json and the three models."""
    config = config or DemoConfig()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _same_config(folder, config)
    clock = Clock(folder / "timings.json")
    with clock("clean"):
        data = clean_and_split(config, folder)
        say(f"clean: {data.counts['kept']} of {data.counts['seen']} records kept; {len(data.train)} examples to train on, "
            f"{len(data.pairs_teacher)} + {len(data.pairs_judge)} pairs, {len(data.evaluation)} held-out items")
    with clock("sft"):
        path_sft = sft(replace(config.sft, model=config.model, seed=config.seed), train=data.train, val=data.val,
                       folder=folder / "runs" / "sft", data_id="starter:instructions", resume=True,
                       progress=_named(progress, "SFT"), warn=say).path
        collect()
    with clock("respond"):
        respond(config, data, path_sft, folder, progress=_named(progress, "respond"))
        collect()
    with clock("judgements"):
        simulated = judgements(config, data, folder)
        say(f"judgements: {len(data.pairs_teacher) + len(data.pairs_judge)} by author:starter; "
            f"{len(simulated)} by simulated raters of known noise (statistics only, nothing is trained on them)")
    paths = {}
    for name, pairs, offset in (("reward", data.pairs_teacher, 0), ("judge", data.pairs_judge, 1000)):
        with clock(name):
            paths[name] = reward(replace(config.reward, model=str(path_sft), seed=config.seed + offset), train=pairs,
                                 folder=folder / "runs" / name, data_id=f"starter:preferences/{name}", resume=True,
                                 progress=_named(progress, "reward model" if name == "reward" else "judge"), warn=say).path
            collect()
    with clock("ppo"):
        path_ppo = rl(replace(config.ppo, model=str(path_sft), reward=str(paths["reward"]), seed=config.seed),
                      prompts=data.prompts, pretrain=data.train, folder=folder / "runs" / "ppo", data_id="starter:prompts",
                      resume=True, progress=_named(progress, "PPO"), warn=say).path
        collect()
    with clock("evaluate"):
        policies = {"base": config.model, "sft": str(path_sft), "ppo": str(path_ppo)}
        responses = {name: evaluate(config, data, name, path, folder, progress=_named(progress, f"answers of {name}"))
                     for name, path in policies.items()}
        collect()
        made = judge_models(config, data, responses, paths, simulated, progress=progress)
    with clock("report"):
        report = assemble(config, data, responses, made, folder, clock.seconds)
        path = write_report(report, folder, lang=lang)
    return DemoResult(path, report)


def _same_config(folder: Path, config: DemoConfig) -> None:
    """A folder holds one configuration's demo; another one's stages are set aside rather than mixed."""
    place, now = folder / "demo.json", json.loads(json.dumps(to_dict(config)))
    if place.exists() and read_json(place) != now:
        aside = folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
        folder.mkdir()
    write_json(place, now)


class Clock:
    """Seconds spent in each stage, over all the commands that it took; on disk, so that a resumed demo adds up."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}
        self.stage, self.begun = "", 0.0

    def __call__(self, stage: str) -> "Clock":
        self.stage = stage
        return self

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self.stage] = round(self.seconds.get(self.stage, 0.0) + time.perf_counter() - self.begun, 1)
        self.seconds["peak_rss_gb"] = max(self.seconds.get("peak_rss_gb", 0.0), rss_gb())
        write_json(self.path, self.seconds)


def _named(progress: Progress, stage: str) -> Progress:
    return lambda what, done, total: progress(stage, done, total)


def clean_and_split(config: DemoConfig, folder: Path) -> Starter:
    """Clean the starter data (what is dropped is counted and named in clean.json) and split it by conversation and prompt."""
    scratch = folder / ".clean"
    shutil.rmtree(scratch, ignore_errors=True)
    evaluation = starter.evaluation()
    held_out = [Item(prompt.id[:12], prompt.messages[-1].text) for prompt in evaluation]
    kept: dict[str, list] = {}
    dropped: list[dict[str, str]] = []
    for name, records in (("instructions", starter.instructions()), ("preferences", starter.preferences())):
        with Cleaner(CleanConfig(near_duplicates=0.9), index_folder=scratch / name, evaluation=held_out) as cleaner:
            results = [(record, cleaner.apply(record)) for record in records]
        kept[name] = [result for _, result in results if not isinstance(result, Dropped)]
        dropped += [{"set": name, "step": out.step, "reason": out.reason, "group": record.group}
                    for record, out in results if isinstance(out, Dropped)]
    shutil.rmtree(scratch, ignore_errors=True)
    write_json(folder / "clean.json", {"kept": {k: len(v) for k, v in kept.items()}, "dropped": dropped})
    examples = kept["instructions"][: config.instructions or None]
    side = {id(e): split_of(e.group, seed=config.seed, shares={"train": 0.95, "val": 0.05, "test": 0.0}) for e in examples}
    half = {id(p): split_of(p.group, seed=config.seed + 1, shares={"train": 0.5, "val": 0.5, "test": 0.0}) for p in kept["preferences"]}
    train = [e for e in examples if side[id(e)] == "train"]
    teacher = [p for p in kept["preferences"] if half[id(p)] == "train"]
    # PPO asks what SFT and its own teacher asked; the judge's prompts stay the judge's
    prompts = [_first_question(e) for e in train] + [p.prompt for p in teacher]
    some = evaluation[:: max(1, len(evaluation) // config.eval_items)][: config.eval_items] if config.eval_items else evaluation
    seen = len(starter.instructions()) + len(starter.preferences())
    return Starter(
        train=train, val=[e for e in examples if side[id(e)] == "val"], pairs_teacher=teacher,
        pairs_judge=[p for p in kept["preferences"] if half[id(p)] == "val"], prompts=prompts, evaluation=list(some),
        counts={"seen": seen, "kept": seen - len(dropped), "dropped": len(dropped)})


def _first_question(example: Example) -> Prompt:
    """The conversation up to its first answer."""
    first = next(at for at, message in enumerate(example.messages) if message.role == "assistant")
    return Prompt(messages=example.messages[:first], group=example.group, tags=example.tags, source=example.source,
                  license=example.license)


def respond(config: DemoConfig, data: Starter, path: Path, folder: Path, *, progress: Progress) -> None:
    """Two answers each of the SFT model to some prompts: to_judge.jsonl, the file that people would be asked about next."""
    place = folder / "to_judge.jsonl"
    if place.exists():
        return
    prompts = {p.id: p for p in data.prompts[:: max(1, len(data.prompts) // config.respond_prompts)][: config.respond_prompts]}
    loaded = load(str(path), dtype=config.sft.dtype, device=config.sft.device)
    engine = LocalEngine(loaded.model, loaded.tokenizer, policy="sft")
    sampling = Sampling(n=2, max_tokens=config.ppo.max_tokens, temperature=1.0, seed=config.seed)
    found: dict[str, list[Response]] = {}
    for done, response in enumerate(engine.respond([(prompt, sampling) for prompt in prompts.values()]), start=1):
        found.setdefault(response.prompt_id, []).append(response)
        progress("respond", done, 2 * len(prompts))
    write_jsonl(place, [{"prompt": prompts[id].to_dict(), "responses": [r.to_dict() for r in sorted(rs, key=lambda r: r.index)]}
                        for id, rs in found.items()])


def judgements(config: DemoConfig, data: Starter, folder: Path) -> list[Judgement]:
    """The starter's own judgements on file, and beside them simulated raters of known noise, labelled as such."""
    pairs = [*data.pairs_teacher, *data.pairs_judge]
    own = [Judgement(judge="author:starter", kind="pair", responses=(p.chosen.id, p.rejected.id), values=(p.strength, 0.0),
                     reason=p.reason) for p in pairs]
    simulated = starter.simulated_judgements(pairs, seed=config.seed)
    write_jsonl(folder / "judgements.jsonl", (j.to_dict() for j in [*own, *simulated]))
    return simulated


def evaluate(config: DemoConfig, data: Starter, name: str, path: str, folder: Path, *, progress: Progress) -> list[Response]:
    """Greedy answers of one model to the held-out prompts; kept in answers/<name>.jsonl."""
    place = folder / "answers" / f"{name}.jsonl"
    if place.exists():
        return [Response.from_dict(row) for row in read_jsonl(place)]
    loaded = load(path, dtype=config.sft.dtype, device=config.sft.device)
    # many rows at once: each step of decoding reads all weights, whether for one row or for a hundred
    engine = LocalEngine(loaded.model, loaded.tokenizer, policy=name, batch_rows=128)
    found = answer_all(engine, data.evaluation, Sampling(temperature=0.0, max_tokens=config.eval_tokens), progress=progress)
    write_jsonl(place, (r.to_dict() for r in found))
    return found


class Made(NamedTuple):
    win_rates: list
    card: RewardModelCard
    judge_card: RewardModelCard


def judge_models(config: DemoConfig, data: Starter, responses: dict[str, list[Response]], paths: dict[str, Path],
                 simulated: Sequence[Judgement], *, progress: Progress = silent) -> Made:
    """Win rates by the judge that training never saw, and both reward models audited on the half they did not see."""
    device, dtype = config.reward.device, config.reward.dtype
    teacher = RewardJudge.load(paths["reward"], id="reward:teacher", dtype=dtype, device=device,
                               progress=_named(progress, "audit of the reward model"))
    card = audit_reward(teacher, data.pairs_judge, judgements=simulated)
    del teacher
    collect()
    judge = RewardJudge.load(paths["judge"], id="reward:judge", dtype=dtype, device=device, progress=_named(progress, "judging"))
    judge_card = audit_reward(judge, data.pairs_teacher)
    by_judge = Remembered(judge)
    # all answers to a prompt at once: the judge reads the prompt once for all of them
    by_judge.judge([(prompt, answers) for prompt, *answers in zip(data.evaluation, *responses.values(), strict=True)])
    pairs = (("sft", "base"), ("ppo", "sft"), ("ppo", "base"))
    return Made([win_rate(by_judge, data.evaluation, responses[b], responses[a], names=(b, a), judge_accuracy=judge_card.accuracy,
                          seed=config.seed) for b, a in pairs], card, judge_card)


class Remembered:
    """A reward judge that scores each answer once, however many comparisons it stands in."""

    def __init__(self, judge: RewardJudge):
        self.inner, self.id, self.known = judge, judge.id, {}

    def judge(self, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> list[Judgement]:
        new = {(p.id, r.text): (p, r.text) for p, rs in items for r in rs if (p.id, r.text) not in self.known}
        self.known.update(zip(new, self.inner.scores(list(new.values())), strict=True))
        return [Judgement(judge=self.id, kind="rating", rubric="reward@1", responses=tuple(r.id for r in rs),
                          values=tuple(self.known[p.id, r.text] for r in rs)) for p, rs in items]


def assemble(config: DemoConfig, data: Starter, responses: dict[str, list[Response]], made: Made, folder: Path,
             seconds: dict[str, float]) -> ReportInput:
    """Everything that the report shows, from what the stages left."""
    curves = {name: Run(folder / "runs" / name).metrics() for name in ("sft", "reward", "judge", "ppo")}
    return ReportInput(
        title="Tutelage demo", models=MODELS, prompts=data.evaluation, responses=responses, win_rates=made.win_rates,
        task_scores={name: task_scores(data.evaluation, found, seed=config.seed) for name, found in responses.items()},
        safety={name: safety_scores(data.evaluation, found) for name, found in responses.items()},
        curves=curves, reward_model=made.card, judge_held_out=True,
        notes=("rater ceiling: three simulated raters (simulated:noisy-5, -15, -30) with 5, 15 and 30 % of their verdicts flipped; "
               "nothing is trained on them",),
        settings=flat(to_dict(config)), timings={k: v for k, v in seconds.items() if k in STAGES},
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return out


def write_report(report: ReportInput, folder: Path, *, lang: str) -> Path:
    """report.html in `lang`, what it was made of (to render it again), and figures.json: win rates and rates as numbers."""
    path = folder / ("report.html" if lang == "en" else f"report.{lang}.html")
    write_atomic(path, render(report, lang=lang))
    save_input(report, folder / NAME)
    write_json(folder / "figures.json", figures(report))
    return path


def figures(report: ReportInput) -> dict[str, Any]:
    """The figures of a report that other commands read."""
    interval = lambda i: None if i is None else {"estimate": i.estimate, "low": i.low, "high": i.high, "n": i.n}
    return {
        "win_rates": [{"a": w.a, "b": w.b, "judge": w.judge, **interval(w.interval), "judge_accuracy": interval(w.judge_accuracy),
                       "wins": w.wins, "ties": w.ties, "losses": w.losses} for w in report.win_rates],
        "reward_accuracy": interval(report.reward_model.accuracy),
        "safety": {m: {"harmful_answered": interval(s.harmful_answered), "over_refused": interval(s.over_refused)}
                   for m, s in report.safety.items()},
        "tasks": {m: [{"task": s.task, "metric": s.metric, "value": s.value, "interval": interval(s.interval)} for s in scores]
                  for m, scores in report.task_scores.items()},
        "timings": dict(report.timings),
    }
