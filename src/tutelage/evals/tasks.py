"""Answers to held-out prompts, and a score for each task with its interval.

The kind of a prompt is its tag `task:`; translation_* is scored with BLEU, chrF and ROUGE-L, summarisation likewise,
classification with accuracy, qa with contains, exact match and F1.  All prompts together give length, truncation,
repetition and language.  Formulas: docs/glossary.md.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tutelage.core.errors import UserError
from tutelage.core.protocols import Engine, Progress, silent
from tutelage.core.words import Prompt, Response, Sampling
from tutelage.judges import metrics
from tutelage.judges.rules import LanguageRule, is_label, names_label, repeated_share, where, words_of
from tutelage.stats.intervals import Interval, bootstrap_mean, bootstrap_total, rate_interval

GREEDY = Sampling(temperature=0.0, max_tokens=96)
ALL = "all"  # the task name of figures over every prompt
RESAMPLES = 1000  # of corpus metrics, each of which costs a pass over the counts

UNIT_AND_DIRECTION = {  # metric -> (unit, which way is better); the glossary has a line for each
    "bleu": ("points", "up"), "chrf": ("points", "up"), "rougeL": ("points", "up"),
    "accuracy": ("share", "up"), "accuracy_lenient": ("share", "up"),
    "contains": ("share", "up"), "exact": ("share", "up"), "f1": ("share", "up"),
    "length": ("words", "none"), "truncated": ("share", "down"), "repetition": ("share", "down"), "language": ("share", "up"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One figure of one model on one task."""

    task: str  # the `task:` tag, or "all"
    metric: str
    value: float
    interval: Interval | None  # None where one prompt group leaves nothing to estimate it from
    n: int  # answers behind the figure
    direction: str  # "up" (more is better), "down" or "none"

    @property
    def unit(self) -> str:
        return UNIT_AND_DIRECTION[self.metric][0]


def answer_all(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling = GREEDY,
               progress: Progress = silent) -> list[Response]:
    """One answer a prompt, in the order of the prompts; greedy unless `sampling` says otherwise."""
    if sampling.n != 1:
        raise UserError(f"an evaluation takes one answer a prompt: sampling n must be 1, got {sampling.n}")
    unique = list({prompt.id: prompt for prompt in prompts}.values())
    found: dict[str, Response] = {}
    progress("answer", 0, len(unique))
    for response in engine.respond([(prompt, sampling) for prompt in unique]):
        found[response.prompt_id] = response
        progress("answer", len(found), len(unique))
    return align(prompts, found.values(), who=engine.policy)


def align(prompts: Sequence[Prompt], responses: Iterable[Response], *, who: str = "") -> list[Response]:
    """The responses in the order of the prompts; a prompt without one, or with several, is an error that names it."""
    found: dict[str, Response] = {}
    for response in responses:
        if found.setdefault(response.prompt_id, response) != response:
            raise UserError(f"{who or response.policy or 'the model'} answered prompt {response.prompt_id[:12]} more than "
                            "once; an evaluation takes one answer a prompt")
    missing = [prompt for prompt in prompts if prompt.id not in found]
    if missing:
        raise UserError(f"{who or 'the model'} left {len(missing)} of {len(prompts)} prompts unanswered; the first is "
                        f"{where(missing[0])}; run the answers again")
    return [found[prompt.id] for prompt in prompts]


def task_scores(prompts: Sequence[Prompt], responses: Sequence[Response], *, seed: int) -> list[TaskScore]:
    """Every figure that the prompts allow, tasks in order of first appearance, then those of "all"."""
    pairs = list(zip(prompts, align(prompts, responses), strict=True))
    out = []
    for task in dict.fromkeys(prompt.tag("task") for prompt in prompts):
        if task:
            out += _one_task(task, [pair for pair in pairs if pair[0].tag("task") == task], seed)
    return out + (_every_prompt(pairs, seed) if pairs else [])


Pairs = list[tuple[Prompt, Response]]


def _one_task(task: str, pairs: Pairs, seed: int) -> list[TaskScore]:
    if task.startswith("translation") or task == "summarisation":
        pairs = [(p, r) for p, r in pairs if any(ref.strip() for ref in p.references)]
        return [
            _corpus(task, "bleu", pairs, metrics.bleu_counts, metrics.bleu_from_counts, seed),
            _corpus(task, "chrf", pairs, metrics.chrf_counts, metrics.chrf_from_counts, seed),
            _mean(task, "rougeL", pairs, lambda p, r: metrics.rouge_l(r.text, metrics.references_of(p)), seed),
        ] if pairs else []
    if task == "classification":
        pairs = [(p, r) for p, r in pairs if p.label]
        return [
            _rate(task, "accuracy", pairs, lambda p, r: is_label(p, r.text), seed),
            _rate(task, "accuracy_lenient", pairs, lambda p, r: names_label(p, r.text), seed),
        ] if pairs else []
    if task == "qa":
        pairs = [(p, r) for p, r in pairs if any(ref.strip() for ref in p.references)]
        return [
            _rate(task, name, pairs, lambda p, r, name=name: metrics.METRICS[name](r.text, metrics.references_of(p)), seed)
            for name in ("contains", "exact", "f1")
        ] if pairs else []
    return []


def _every_prompt(pairs: Pairs, seed: int) -> list[TaskScore]:
    language = LanguageRule()
    return [
        _mean(ALL, "length", pairs, lambda p, r: float(len(words_of(r.text))), seed),
        _rate(ALL, "truncated", pairs, lambda p, r: r.is_truncated(), seed),
        _rate(ALL, "repetition", pairs, lambda p, r: repeated_share(r.text), seed),
        _rate(ALL, "language", pairs, lambda p, r: language.value(p, r) > 0.5, seed),
    ]


def _groups(pairs: Pairs) -> list[str]:
    return [prompt.group for prompt, _ in pairs]


def _made(task: str, metric: str, value: float, interval: Interval | None, n: int) -> TaskScore:
    return TaskScore(task=task, metric=metric, value=value, interval=interval, n=n, direction=UNIT_AND_DIRECTION[metric][1])


def _rate(task: str, metric: str, pairs: Pairs, value: Callable[[Prompt, Response], float], seed: int) -> TaskScore:
    values = [float(value(p, r)) for p, r in pairs]
    # The estimate is over answers; where Wilson stands in for few groups, so is the estimate that it is given.
    interval = rate_interval(values, seed=seed, clusters=_groups(pairs))
    return _made(task, metric, sum(values) / len(values), interval, len(values))


def _mean(task: str, metric: str, pairs: Pairs, value: Callable[[Prompt, Response], float], seed: int) -> TaskScore:
    values = [float(value(p, r)) for p, r in pairs]
    enough = len(set(_groups(pairs))) > 1
    interval = bootstrap_mean(values, seed=seed, clusters=_groups(pairs)) if enough else None
    return _made(task, metric, sum(values) / len(values), interval, len(values))


def _corpus(task: str, metric: str, pairs: Pairs, count: Callable[[str, Sequence[str]], list[float]],
            score: Callable[[Sequence[float]], float], seed: int) -> TaskScore:
    """A corpus metric is a function of summed counts, so a resample of answers is a resample of rows of counts."""
    rows = [count(r.text, metrics.references_of(p)) for p, r in pairs]
    value = score([sum(column) for column in zip(*rows, strict=True)])
    if len(set(_groups(pairs))) < 2:
        return _made(task, metric, value, None, len(rows))
    interval = bootstrap_total(rows, score, seed=seed, clusters=_groups(pairs), resamples=RESAMPLES)
    return _made(task, metric, value, replace(interval, estimate=value), len(rows))
