"""How often a judge prefers one model's answer to another's, with an interval clustered by prompt group."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tutelage.core.errors import UserError
from tutelage.core.protocols import Judge
from tutelage.core.words import Judgement, Prompt, Response
from tutelage.evals.tasks import align
from tutelage.judges.rules import words_of
from tutelage.stats.intervals import Interval, rate_interval

MATCHED = 1.25  # lengths count as alike where the longer is at most this many times the shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge said of one prompt: score 1 = a is better, 0.5 = tie, 0 = b is better."""

    prompt_id: str
    a: float  # the judge's values
    b: float
    score: float
    length_ratio: float  # words of a / words of b, each at least 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """Share of prompts on which `a` beats `b`; a tie is half."""

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    interval: Interval
    judge: str
    judge_accuracy: Interval | None = None  # of the judge itself, against held-out human or authors' preferences
    by_task: dict[str, Interval] = field(default_factory=dict)
    length_matched: Interval | None = None  # over prompts whose answers are about as long; None where there are none
    per_prompt: tuple[Verdict, ...] = ()

    @property
    def rate(self) -> float:
        return self.interval.estimate


def win_rate(judge: Judge, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response], *,
             names: tuple[str, str] | None = None, judge_accuracy: Interval | None = None, seed: int = 0) -> WinRate:
    """`a` (the later model) against `b` (its predecessor), one answer a prompt each.

    Values are compared prompt by prompt (of a `rank` judgement the lower is better).  Equal values, and answers that are
    the same text, are ties.  The judge sees a's answer first in every other item, so that a judge that favours the first
    place favours neither model.
    """
    if not prompts:
        raise UserError("a win rate needs at least one prompt; got none")
    a, b = align(prompts, a, who="a"), align(prompts, b, who="b")
    a_first = [i % 2 == 0 for i in range(len(prompts))]
    items = [(p, [x, y] if first else [y, x]) for p, x, y, first in zip(prompts, a, b, a_first, strict=True)]
    judgements = judge.judge(items)
    verdicts = [_verdict(p, x, y, j, first) for p, x, y, j, first in zip(prompts, a, b, judgements, a_first, strict=True)]
    scores = [v.score for v in verdicts]
    alike = [i for i, v in enumerate(verdicts) if 1 / MATCHED <= v.length_ratio <= MATCHED]
    tasks: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        tasks.setdefault(prompt.tag("task") or "other", []).append(i)
    over = lambda at: rate_interval([scores[i] for i in at], seed=seed, clusters=[prompts[i].group for i in at])
    return WinRate(
        a=names[0] if names else a[0].policy, b=names[1] if names else b[0].policy,
        wins=scores.count(1.0), ties=scores.count(0.5), losses=scores.count(0.0),
        interval=over(range(len(scores))), judge=judge.id, judge_accuracy=judge_accuracy,
        by_task={task: over(at) for task, at in tasks.items()},
        length_matched=over(alike) if alike else None, per_prompt=tuple(verdicts))


def _verdict(prompt: Prompt, a: Response, b: Response, judgement: Judgement, a_first: bool) -> Verdict:
    if len(judgement.values) != 2:
        raise UserError(f"{judgement.judge} gave {len(judgement.values)} values for two answers; a win rate needs one for each")
    first, second = (-v if judgement.kind == "rank" else v for v in judgement.values)
    x, y = (first, second) if a_first else (second, first)
    score = 0.5 if x == y or a.text == b.text else float(x > y)
    ratio = max(1, len(words_of(a.text))) / max(1, len(words_of(b.text)))
    return Verdict(prompt_id=prompt.id, a=x, b=y, score=score, length_ratio=ratio)
