"""What a report is made of, and the comparisons that its table and its findings share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.core.errors import UserError
from tutelage.core.words import Prompt, Response
from tutelage.evals.safety import SafetyScores
from tutelage.evals.tasks import ALL, UNIT_AND_DIRECTION, TaskScore
from tutelage.evals.winrate import WinRate
from tutelage.stats.calibration import ReliabilityRow
from tutelage.stats.intervals import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelCard:
    """How good the reward model is, measured on pairs that it did not learn from."""

    accuracy: Interval
    reliability: Sequence[ReliabilityRow] = ()
    ece: float | None = None
    length_correlation: float | None = None  # of score and answer length, -1 to 1
    rater_ceiling: Interval | None = None  # how often raters agree with one another; say in `notes` where simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    """Everything that a report shows; nothing is computed from models here."""

    title: str
    models: Sequence[str]  # in the order made: base, sft, ppo
    prompts: Sequence[Prompt] = ()
    responses: Mapping[str, Sequence[Response]] = field(default_factory=dict)  # by model
    win_rates: Sequence[WinRate] = ()  # the judge of the first one is the main judge
    task_scores: Mapping[str, Sequence[TaskScore]] = field(default_factory=dict)
    safety: Mapping[str, SafetyScores] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # run -> rows of its metrics.jsonl
    reward_model: RewardModelCard | None = None
    judge_held_out: bool = False  # True only where no training run saw the main judge or its data
    notes: Sequence[str] = ()  # what is simulated
    settings: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds
    next_steps: Sequence[str] = ()  # the caller's own, before those that follow from the numbers
    not_improved: Sequence[str] = ()
    created: str = ""  # ISO 8601
    sides_per_task: int = 2

    def __post_init__(self):
        if not self.models:
            raise UserError("a report needs at least one model name; got none")
        named = {*self.responses, *self.task_scores, *self.safety, *(m for w in self.win_rates for m in (w.a, w.b))}
        if strangers := sorted(named - set(self.models)):
            raise UserError(f"report: figures for {', '.join(strangers)}, but models are {', '.join(self.models)}; "
                            "name every model in `models`")

    @property
    def judge(self) -> str | None:
        """Id of the main judge."""
        return self.win_rates[0].judge if self.win_rates else None

    def win(self, a: str, b: str, *, judge: str | None = None) -> WinRate | None:
        """Win rate of `a` over `b` by the main judge (or the one named)."""
        judge = judge or self.judge
        return next((w for w in self.win_rates if (w.a, w.b, w.judge) == (a, b, judge)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure of the headline table."""

    value: float
    interval: Interval | None
    verdict: str = ""  # better, worse, unclear, or "" where there is nothing to compare with


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the headline table: a metric, on a task or none, over the models."""

    metric: str  # key of words.METRICS
    task: str = ""
    variant: str = ""  # win_row_previous, win_row_base, win_row_matched
    unit: str
    direction: str
    cells: tuple[Cell | None, ...]  # one a model


def compare(before: Interval | float, after: Interval | float, *, direction: str) -> str:
    """better / worse where the two intervals do not overlap, else unclear; "" where neither way is better."""
    if direction == "none":
        return ""
    if not isinstance(before, Interval) or not isinstance(after, Interval) or before.overlaps(after):
        return "unclear"
    return "better" if (after.estimate > before.estimate) == (direction == "up") else "worse"


def against_half(interval: Interval) -> str:
    """Verdict on a win rate: does its interval leave 50 % out?"""
    return "better" if interval.low > 0.5 else "worse" if interval.high < 0.5 else "unclear"


MAIN_METRIC = {"summarisation": "rougeL", "classification": "accuracy", "qa": "contains"}  # translation: chrF


def headline(report: ReportInput) -> list[Row]:
    """The rows of the headline table, in reading order; rows without a figure are left out."""
    models = report.models
    rows = [_win_row("win_row_previous", [report.win(b, a) for a, b in zip(models, models[1:], strict=False)])]
    if len(models) > 2:
        rows.append(_win_row("win_row_base", [report.win(m, models[0]) for m in models[1:]]))
    rows.append(_win_row("win_row_matched", [report.win(b, a) for a, b in zip(models, models[1:], strict=False)], matched=True))
    for name in ("harmful_answered", "over_refused"):
        rates = [getattr(report.safety[m], name) if m in report.safety else None for m in models]
        rows.append(_row(name, "", "share", "down", [(i.estimate, i) if i else None for i in rates]))
    scores = {m: {(s.task, s.metric): s for s in report.task_scores.get(m, ())} for m in models}
    for task, metric in dict.fromkeys(key for m in models for key in scores[m]):
        main = MAIN_METRIC.get(task) or ("chrf" if task.startswith("translation") else metric if task == ALL else None)
        if metric == main:
            unit, direction = UNIT_AND_DIRECTION[metric]
            found = [scores[m].get((task, metric)) for m in models]
            rows.append(_row(metric, task, unit, direction, [(s.value, s.interval) if s else None for s in found]))
    return [row for row in rows if any(row.cells)]


def _win_row(variant: str, rates: Sequence[WinRate | None], *, matched: bool = False) -> Row:
    cells: list[Cell | None] = [None]
    for rate in rates:
        interval = rate and (rate.length_matched if matched else rate.interval)
        cells.append(Cell(value=interval.estimate, interval=interval, verdict=against_half(interval)) if interval else None)
    return Row(metric="win_rate", variant=variant, unit="share", direction="up", cells=tuple(cells))


def _row(metric: str, task: str, unit: str, direction: str, found: Sequence[tuple[float, Interval | None] | None]) -> Row:
    first = found[0]
    cells = []
    for k, each in enumerate(found):
        if each is None:
            cells.append(None)
            continue
        verdict = compare(first[1] or first[0], each[1] or each[0], direction=direction) if k and first else ""
        cells.append(Cell(value=each[0], interval=each[1], verdict=verdict))
    return Row(metric=metric, task=task, unit=unit, direction=direction, cells=tuple(cells))


def show(value: float, unit: str) -> str:
    """A figure for the eye: shares in per cent, the rest as they are, one decimal."""
    return f"{100 * value:.1f}%" if unit == "share" else f"{value:.1f}"


def bracket(interval: Interval | None, unit: str) -> str:
    if interval is None:
        return ""
    scale = 100 if unit == "share" else 1
    return f"[{scale * interval.low:.1f}, {scale * interval.high:.1f}]"


# What a run calls its figures in metrics.jsonl: curve -> (names in training, names held out, unit)
CURVES = {
    "loss": (("loss", "train_loss"), ("eval_loss", "val_loss"), "nats"),
    "accuracy": (("accuracy",), ("eval_accuracy", "val_accuracy"), "share"),
    "reward": (("reward", "reward_mean", "score", "score_mean"), ("eval_reward",), "reward"),
    "kl": (("kl", "kl_mean", "kl_ref"), (), "nats"),
    "entropy": (("entropy", "entropy_mean"), (), "nats"),
    "length": (("length", "length_mean", "response_length"), (), "tokens"),
}


def curve(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[float, float]]:
    """(step, value) of the first of `names` that the rows know; rows without it, or with no finite number, are passed over."""
    for name in names:
        points = [(float(row["step"]), float(row[name])) for row in rows
                  if "step" in row and isinstance(row.get(name), (int, float)) and math.isfinite(row[name])]
        if points:
            return points
    return []
