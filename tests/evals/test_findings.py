"""Each piece of advice appears when its number calls for it, and not when it does not."""

import dataclasses

import pytest

from tutelage.evals.inputs import ReportInput, RewardModelCard, compare, headline
from tutelage.evals.report import next_steps, not_improved
from tutelage.evals.safety import SafetyScores
from tutelage.evals.tasks import TaskScore
from tutelage.evals.winrate import WinRate
from tutelage.stats.intervals import Interval, wilson


def win(a, b, rate, low, high, matched=None):
    return WinRate(a=a, b=b, wins=60, ties=0, losses=40, judge="reward:j", length_matched=matched,
                   interval=Interval(estimate=rate, low=low, high=high, n=100))


def score(value, low, high, metric="accuracy", task="classification", direction="up"):
    return TaskScore(task=task, metric=metric, value=value, n=50, direction=direction,
                     interval=Interval(estimate=value, low=low, high=high, n=50))


def report(**fields):
    return ReportInput(title="t", models=("base", "sft", "ppo"), **fields)


def text(lines):
    return "\n".join(lines)


def test_a_win_rate_that_contains_half_is_told_and_one_that_excludes_it_is_not():
    got = text(not_improved(report(win_rates=[win("sft", "base", 0.7, 0.6, 0.8), win("ppo", "sft", 0.55, 0.48, 0.62)])))
    assert "PPO is not shown to beat SFT: win rate 55.0% [48.0, 62.0]" in got and "beat Base" not in got
    worse = text(not_improved(report(win_rates=[win("ppo", "sft", 0.3, 0.2, 0.4)])))
    assert "PPO is worse than SFT" in worse


def test_a_win_by_length_is_told():
    matched = Interval(estimate=0.5, low=0.4, high=0.6, n=30)
    got = text(not_improved(report(win_rates=[win("ppo", "sft", 0.7, 0.6, 0.8, matched=matched)])))
    assert "same length" in got and "50.0% [40.0, 60.0]" in got


@pytest.mark.parametrize("after, words", [
    ((0.2, 0.1, 0.3), "Accuracy, strict got worse: 60.0% for Base, 20.0% [10.0, 30.0] for PPO"),
    ((0.55, 0.45, 0.65), "slipped from 60.0% to 55.0%"),
    ((0.65, 0.55, 0.75), "No clear change from Base to PPO"),
])
def test_figures_against_base(after, words):
    got = not_improved(report(task_scores={"base": [score(0.6, 0.5, 0.7)], "ppo": [score(*after)]}))
    assert words in text(got)


def test_a_clear_gain_is_not_listed_and_all_gains_are_said():
    got = not_improved(report(task_scores={"base": [score(0.2, 0.1, 0.3)], "ppo": [score(0.9, 0.8, 1.0)]}))
    assert len(got) == 1 and got[0].startswith("Every figure")


def test_downward_figures_improve_downward():
    low, high = wilson(1, 100), wilson(60, 100)
    assert compare(high, low, direction="down") == "better" and compare(low, high, direction="down") == "worse"
    assert compare(high, low, direction="up") == "worse" and compare(high, low, direction="none") == ""
    got = not_improved(report(safety={
        m: SafetyScores(harmful_answered=rate, over_refused=None, refused=frozenset(), judge="j")
        for m, rate in (("base", low), ("ppo", high))}))
    assert "Harmful requests answered got worse" in text(got)


def test_nothing_measured_claims_nothing():
    assert not_improved(report()) == ["not measured"]


CALM = {"ppo": [{"step": s, "kl": 2.0, "entropy": 1.0, "reward": 0.0} for s in range(10)]}


@pytest.mark.parametrize("fields, words", [
    ({"reward_model": RewardModelCard(accuracy=wilson(55, 100))}, "right on only 55.0%"),
    ({"reward_model": RewardModelCard(accuracy=wilson(66, 100), rater_ceiling=wilson(67, 100))}, "rater ceiling (67.0%)"),
    ({"reward_model": RewardModelCard(accuracy=wilson(80, 100), ece=0.2)}, "ECE 0.20"),
    ({"reward_model": RewardModelCard(accuracy=wilson(80, 100), length_correlation=-0.5)}, "correlation -0.50"),
    ({"curves": {"ppo": [{"step": s, "kl": 30.0} for s in range(10)]}}, "KL reached 30.0 nats"),
    ({"curves": {"ppo": [{"step": s, "kl": 0.001} for s in range(10)]}}, "KL stayed at 0.001"),
    ({"curves": {"ppo": [{"step": s, "kl": 1, "entropy": 2.0 / (1 + s)} for s in range(10)]}}, "Entropy fell to"),
    ({"curves": {"ppo": [{"step": s, "kl": 1, "reward": s} for s in range(10)]},
      "win_rates": [win("ppo", "sft", 0.5, 0.45, 0.55)]}, "exploit the reward model"),
    ({"curves": {"sft": [{"step": s, "eval_loss": loss} for s, loss in ((1, 2.0), (2, 1.5), (3, 1.9))]}}, "rose after step 2"),
    ({"win_rates": [win("ppo", "sft", 0.6, 0.4, 0.8)]}, "40 points wide: evaluate on about 400"),
    ({"task_scores": {"ppo": [score(0.3, 0.2, 0.4, metric="truncated", task="all", direction="down")]}},
     "30.0% of answers hit"),
    ({"notes": ["raters are simulated"]}, "people's judgements"),
])
def test_advice_follows_from_its_number(fields, words):
    assert words in text(next_steps(report(**fields)))
    assert words not in text(next_steps(report(curves=CALM)))


def test_safety_advice():
    scores = SafetyScores(harmful_answered=wilson(30, 100), over_refused=wilson(20, 100), refused=frozenset(), judge="j")
    got = text(next_steps(report(safety={"ppo": scores})))
    assert "30.0% of harmful requests" in got and "20.0% of harmless look-alikes" in got
    fine = SafetyScores(harmful_answered=wilson(1, 100), over_refused=wilson(1, 100), refused=frozenset(), judge="j")
    assert "harmful" not in text(next_steps(report(safety={"ppo": fine})))


def test_the_callers_own_lines_come_first_and_both_languages_say_as_much(made_up_report):
    mine = dataclasses.replace(made_up_report, next_steps=["mine"], not_improved=["nothing"])
    assert next_steps(mine)[0] == "mine" and not_improved(mine)[0] == "nothing"
    for fn in (next_steps, not_improved):
        assert len(fn(made_up_report, lang="en")) == len(fn(made_up_report, lang="zh"))


def test_headline_compares_with_base_and_win_rates_with_half():
    scores = {"base": [score(0.2, 0.1, 0.3)], "sft": [score(0.25, 0.1, 0.4)], "ppo": [score(0.9, 0.8, 1)]}
    wins = [win("sft", "base", 0.7, 0.6, 0.8), win("ppo", "sft", 0.55, 0.48, 0.62)]
    rows = headline(report(win_rates=wins, task_scores=scores))
    by_name = {(row.variant, row.metric): row for row in rows}
    assert [c and c.verdict for c in by_name["win_row_previous", "win_rate"].cells] == [None, "better", "unclear"]
    assert [c.verdict for c in by_name["", "accuracy"].cells] == ["", "unclear", "better"]


def test_the_length_matched_row_shows_the_length_matched_rate():
    matched = Interval(estimate=0.4, low=0.2, high=0.45, n=30)
    rows = headline(report(win_rates=[win("sft", "base", 0.7, 0.6, 0.8, matched=matched)]))
    cell = next(row for row in rows if row.variant == "win_row_matched").cells[1]
    assert (cell.value, cell.interval, cell.verdict) == (0.4, matched, "worse")
