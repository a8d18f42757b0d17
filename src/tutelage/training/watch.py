"""Watching the metrics of a run for the ways in which training is known to fail, and saying what usually cures each.

A rule looks at the rows so far and says what it sees, or nothing.  It is told once, and again only after it has cleared.  Rules
compare a run with its own beginning (the mean of its first rows), since what is large differs from model to model; where a
bound is absolute, its reason stands beside it.  Nothing here changes the run.

Left out: anything that needs the answers themselves.  Look at those too.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

FIRST = 3  # rows that a run is compared with
KEPT = 50  # of the newest rows; half as many of the first ones, and every evaluation, stay beside them

Row = Mapping[str, Any]


class Rule(NamedTuple):
    name: str
    sees: Callable[[Sequence[Row]], str]  # the rows so far, the newest last -> what is wrong, "" where nothing is
    cure: str


class Watcher:
    """Fed with each row of metrics, in order; gives the warnings that are new.

    >>> watcher = Watcher("rl")
    >>> [watcher.see({"step": step, "truncated": 1.0}) != [] for step in (1, 2, 3, 4)]  # the third in a row, and only once
    [False, False, True, False]
    """

    def __init__(self, kind: str, *, past: Iterable[Row] = ()):
        """kind: of run (rl, sft, reward, ...).  past: rows of a run that is resumed, about which nothing is said again."""
        self.rules = RL if kind == "rl" else FITTING
        self.rows: list[Row] = []
        self.told: set[str] = set()
        for row in past:
            self.see(row)

    def see(self, row: Row) -> list[str]:
        """What is newly wrong, each with its cure."""
        self.rows.append(row)
        if len(self.rows) > 2 * KEPT:
            self.rows[KEPT // 2:-KEPT] = [row for row in self.rows[KEPT // 2:-KEPT] if "eval_loss" in row]
        out = []
        for rule in self.rules:
            seen = rule.sees(self.rows)
            if seen and rule.name not in self.told:
                out.append(f"step {row.get('step', len(self.rows))}: {rule.name}: {seen}. Usually cured by: {rule.cure}")
            (self.told.add if seen else self.told.discard)(rule.name)
        return out


# -- looking at rows


def values(rows: Sequence[Row], name: str, last: int | None = None) -> list[float]:
    """A metric where it was logged, the newest last; `last`: of so many rows that have it."""
    found = [float(row[name]) for row in rows if isinstance(row.get(name), (int, float)) and not isinstance(row[name], bool)]
    return found if last is None else found[-last:]


def now(rows: Sequence[Row], name: str) -> float | None:
    """The metric in the newest row; None where it is not logged."""
    found = values(rows[-1:], name)
    return found[0] if found else None


def at_first(rows: Sequence[Row], name: str) -> float | None:
    """Mean over the first rows; None until there are more than those."""
    found = values(rows, name)
    return statistics.fmean(found[:FIRST]) if len(found) > FIRST else None


def lasting(rows: Sequence[Row], name: str, times: int, holds: Callable[[float], bool]) -> bool:
    """Whether the newest row has the metric, and it has held so many times in a row."""
    found = values(rows, name, times)
    return now(rows, name) is not None and len(found) == times and all(map(holds, found))


def usual(rows: Sequence[Row], name: str) -> float | None:
    """Median before the newest row, over the last 20; None until there are 5."""
    found = [value for value in values(rows, name)[:-1][-20:] if math.isfinite(value)]
    return statistics.median(found) if len(found) >= 5 else None


# -- on-policy runs


def kl_runaway(rows: Sequence[Row]) -> str:
    kl, length = now(rows, "kl"), now(rows, "length") or 1.0
    if kl is None:
        return ""
    # A nat a token makes every token of the reference e times less likely than the policy's: another language by then.
    if not math.isfinite(kl) or kl > length or (kl > 30 and kl > 0.3 * length):
        return f"the policy is {kl:.3g} nats an answer away from the reference, {kl / length:.2g} a token"
    return ""


def kl_negative(rows: Sequence[Row]) -> str:
    # A mean of samples may dip below 0 by chance; it stays there only where the samples are not the policy's own.
    if lasting(rows, "kl", 3, lambda kl: kl < -0.5):
        return f"the estimated KL has been negative for 3 steps ({now(rows, 'kl'):.3g} nats an answer); a true KL never is"
    return ""


def step_too_large(rows: Sequence[Row]) -> str:
    if lasting(rows, "kl_old", 2, lambda kl: kl > 0.1):
        return f"one step moves the policy by {now(rows, 'kl_old'):.2g} nats a token"
    return ""


def entropy_collapse(rows: Sequence[Row]) -> str:
    entropy, first = now(rows, "entropy"), at_first(rows, "entropy")
    if entropy is not None and first is not None and first > 0.05 and entropy < 0.2 * first:
        return f"the entropy fell from {first:.2g} to {entropy:.2g} nats a token: answers become all alike"
    return ""


def length_explosion(rows: Sequence[Row]) -> str:
    length, first, cut = now(rows, "length"), at_first(rows, "length"), now(rows, "truncated") or 0.0
    if length is not None and first is not None and (length > 3 * first or (length > 2 * first and cut > 0.5)):
        return f"answers grew from {first:.0f} to {length:.0f} tokens, and {100 * cut:.0f} % of them are cut off"
    return ""


def length_collapse(rows: Sequence[Row]) -> str:
    length, first = now(rows, "length"), at_first(rows, "length")
    if length is not None and first is not None and first >= 8 and length < 0.25 * first:
        return f"answers shrank from {first:.0f} to {length:.1f} tokens"
    return ""


def all_truncated(rows: Sequence[Row]) -> str:
    if lasting(rows, "truncated", 3, lambda share: share >= 0.95):
        return "nearly all answers have been cut off for 3 steps: the score is that of an answer that never ended"
    return ""


def value_diverges(rows: Sequence[Row]) -> str:
    loss, before = now(rows, "value_loss"), usual(rows, "value_loss")
    if loss is not None and (not math.isfinite(loss) or (before is not None and loss > max(10 * before, 0.5))):
        return f"the value loss is {loss:.3g}" + (f", and was about {before:.3g}" if before is not None else "")
    if len(values(rows, "explained_variance")) > 5 and lasting(rows, "explained_variance", 3, lambda share: share < -1):
        return f"the critic explains less than nothing of the returns ({now(rows, 'explained_variance'):.2g} of their variance)"
    return ""


def flat_groups(rows: Sequence[Row]) -> str:
    # logged by the algorithms that compare the answers to one prompt; the others learn from what differs between prompts
    if lasting(rows, "flat_groups", 2, lambda share: share >= 0.8):
        return f"in {100 * now(rows, 'flat_groups'):.0f} % of the groups all answers have the same score, and teach nothing"
    if lasting(rows, "score_std", 2, lambda spread: spread < 1e-6):
        return "all answers of the step have the same score, and teach nothing"
    return ""


def gradient_explodes(rows: Sequence[Row]) -> str:
    for name, whose in (("grad_norm", "the gradient norm"), ("cost_grad_norm", "the gradient norm of the critic of costs")):
        norm, before = now(rows, name), usual(rows, name)
        if norm is not None and (not math.isfinite(norm) or (before is not None and norm > max(20 * before, 1.0))):
            return f"{whose} is {norm:.3g}" + (f", and was about {before:.3g}" if before is not None else "")
    return ""


def length_hacking(rows: Sequence[Row]) -> str:
    reward, length = values(rows, "reward"), values(rows, "length")
    if len(reward) < 20 or len(reward) != len(length) or now(rows, "reward") is None:
        return ""
    (r0, r1), (l0, l1) = ((statistics.fmean(each[:5]), statistics.fmean(each[-5:])) for each in (reward, length))
    # over both windows: a single jump of the length correlates with any reward that rises over the longer one
    if r1 > r0 and l1 > 1.5 * l0 and all(_correlation(length[-n:], reward[-n:]) > 0.8 for n in (10, 20)):
        return f"the reward rises in step with the length ({l0:.0f} -> {l1:.0f} tokens): it may be paid for words alone"
    return ""


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """0 where one of them does not vary or is not finite."""
    if not all(map(math.isfinite, (*xs, *ys))) or min(statistics.pstdev(xs), statistics.pstdev(ys)) < 1e-9:
        return 0.0
    return statistics.correlation(xs, ys)


def sampler_gap(rows: Sequence[Row]) -> str:
    # In bfloat16 rounding alone makes 0.03.  Where another policy draws the answers a gap is expected, and corrected for.
    if rows and "effective" in rows[-1]:
        if lasting(rows, "effective", 2, lambda share: share < 0.3):
            return (f"the answers drawn with 8-bit weights or by a server are worth {100 * now(rows, 'effective'):.0f} % of as many "
                    "drawn by the trained weights themselves: set rollout_weights=same and no rollout_address")
    elif lasting(rows, "sampler_gap", 2, lambda gap: gap > 0.1):
        return f"sampler and trainer differ by {100 * now(rows, 'sampler_gap'):.0f} % in the probability of the same tokens"
    return ""


RL = (
    Rule("KL runaway", kl_runaway, "a lower optim.learning_rate, a higher beta, kl_target (beta then adapts), or kl_stop"),
    Rule("negative KL", kl_negative, "sampling without top-k, top-p, minimum length or penalties, with the trainer's own "
                                     "weights"),
    Rule("steps too large", step_too_large, "a lower optim.learning_rate, fewer epochs, or kl_stop=0.02"),
    Rule("entropy collapse", entropy_collapse, "entropy_coef=0.01, a lower optim.learning_rate, a higher beta or temperature"),
    Rule("length explosion", length_explosion, "a length penalty or missing_eos below the worst score, a higher beta; look at "
                                               "the answers"),
    Rule("length collapse", length_collapse, "a reward that does not favour silence, a less negative missing_eos, a higher "
                                             "beta"),
    Rule("all answers truncated", all_truncated, "a higher max_tokens, or SFT until the model stops by itself"),
    Rule("value loss diverges", value_diverges, "a lower value_coef, value_clip=0.2, score_clip, or value=separate"),
    Rule("groups without variance", flat_groups, "a higher temperature, more responses_per_prompt, prompts that are neither "
                                                "too easy nor too hard, a reward with more steps"),
    Rule("gradient explodes", gradient_explodes, "optim.clip=1, a lower optim.learning_rate, score_clip"),
    Rule("length hacking", length_hacking, "a length penalty, a reward model trained on pairs of like length; compare with "
                                           "another judge"),
    Rule("sampler gap", sampler_gap, "dtype=float32, and the same weights, temperature and template in sampler and trainer"),
)

# -- SFT, reward models, classifiers, offline preference


def loss_rises(rows: Sequence[Row]) -> str:
    losses = values(rows, "loss")
    if now(rows, "loss") is None or len(losses) < 10:
        return ""
    recent, first = statistics.fmean(losses[-5:]), statistics.fmean(losses[:FIRST])
    if not math.isfinite(recent) or recent > 1.5 * first + 0.2:
        return f"the loss rose from {first:.3g} to {recent:.3g}"
    return ""


def overfits(rows: Sequence[Row]) -> str:
    measured = values(rows, "eval_loss")
    if now(rows, "eval_loss") is None or len(measured) < 4:
        return ""
    best = min(measured)
    if measured[-1] > measured[-2] > measured[-3] > best and measured[-1] > 1.05 * best:
        return f"the evaluation loss rises ({best:.3g} at its best, {measured[-1]:.3g} now) while training goes on"
    return ""


FITTING = (
    Rule("loss rises", loss_rises, "a lower optim.learning_rate, a longer optim.warmup, optim.clip=1"),
    Rule("gradient explodes", gradient_explodes, "optim.clip=1, a lower optim.learning_rate; look at the rows of this step"),
    Rule("overfitting", overfits, "fewer loop.epochs, loop.patience=2, frozen_layers or LoRA, more data"),
)
