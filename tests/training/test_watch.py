"""The watcher: each known way to fail is told once, with its cure, and a healthy run hears nothing."""

import math
import random

import pytest

from tutelage.training.watch import FITTING, KEPT, RL, Watcher

HEALTHY = {"reward": 0.1, "score_std": 0.9, "kl": 2.0, "kl_old": 0.004, "entropy": 1.8, "length": 30.0, "truncated": 0.1, "value_loss": 0.4,
           "explained_variance": 0.3, "sampler_gap": 0.01, "grad_norm": 0.8, "flat_groups": 0.1}


def feed(kind: str, rows: list[dict]) -> list[tuple[int, str]]:
    """(number of the row, name of the rule) of every warning."""
    watcher = Watcher(kind)
    return [(at, text.split(": ")[1]) for at, row in enumerate(rows, start=1) for text in watcher.see({"step": at, **row})]


def healthy(count: int, **changes) -> list[dict]:
    return [{**HEALTHY, **changes} for _ in range(count)]


# (what goes wrong, rows after ten healthy ones, the rule that must say so)
FAILURES = [
    ("the KL passes a nat a token", healthy(1, kl=9.0, length=8.0), "KL runaway"),
    ("the KL is large and a third of a nat a token", healthy(1, kl=40.0, length=89.0), "KL runaway"),
    ("the KL is NaN", healthy(1, kl=math.nan), "KL runaway"),
    ("the KL stays negative", healthy(3, kl=-0.6), "negative KL"),
    ("steps are too large", healthy(2, kl_old=0.11), "steps too large"),
    ("the entropy falls to a sixth", healthy(1, entropy=0.3), "entropy collapse"),
    ("answers grow threefold", healthy(1, length=91.0), "length explosion"),
    ("answers grow twofold and are cut off", healthy(1, length=61.0, truncated=0.6), "length explosion"),
    ("answers shrink to a fifth", healthy(1, length=6.0), "length collapse"),
    ("all answers are cut off", healthy(3, truncated=1.0), "all answers truncated"),
    ("the value loss jumps", healthy(1, value_loss=4.1), "value loss diverges"),
    ("the value loss is infinite", healthy(1, value_loss=math.inf), "value loss diverges"),
    ("the critic is worse than none", healthy(3, explained_variance=-1.1), "value loss diverges"),
    ("groups are flat", healthy(2, flat_groups=0.9), "groups without variance"),
    ("all scores are the same", healthy(2, score_std=0.0), "groups without variance"),
    ("the gradient jumps", healthy(1, grad_norm=17.0), "gradient explodes"),
    ("the gradient is NaN", healthy(1, grad_norm=math.nan), "gradient explodes"),
    ("the sampler lags", healthy(2, sampler_gap=0.11), "sampler gap"),
    ("8-bit weights say something else", healthy(2, sampler_gap=0.9, effective=0.2), "sampler gap"),
]


@pytest.mark.parametrize("what, rows, rule", FAILURES, ids=[what for what, *_ in FAILURES])
def test_the_failure_is_told_on_the_row_where_it_has_lasted(what, rows, rule):
    assert feed("rl", healthy(10) + rows) == [(10 + len(rows), rule)]


@pytest.mark.parametrize("what, rows, rule", [each for each in FAILURES if len(each[1]) > 1], ids=lambda each: str(each)[:40])
def test_what_lasts_a_row_less_is_no_failure(what, rows, rule):
    assert feed("rl", healthy(10) + rows[:-1] + healthy(3)) == []


def test_every_rule_is_tried():
    assert {rule for *_, rule in FAILURES} | {"length hacking"} == {rule.name for rule in RL}


def test_a_healthy_noisy_run_hears_nothing():
    rng = random.Random(0)
    rows = [{**HEALTHY, **{key: HEALTHY[key] * rng.uniform(0.6, 1.6) for key in ("kl", "entropy", "length", "value_loss", "grad_norm")},
             "reward": at / 100 + rng.gauss(0, 0.2), "explained_variance": rng.uniform(-0.5, 0.9)} for at in range(3 * KEPT)]
    assert feed("rl", rows) == []


def test_reward_that_is_paid_for_words_is_told():
    rows = [{**HEALTHY, "reward": at / 10, "length": 30 + 2 * at} for at in range(30)]
    assert ("length hacking" in {rule for _, rule in feed("rl", rows)}) and feed("rl", rows)[0][0] >= 20
    assert feed("rl", [{**HEALTHY, "reward": at / 10, "length": 30 if at < 5 else 60} for at in range(40)]) == []  # once longer
    lengths = [30] * 10 + [50 + 2 * (at * 7 % 20) for at in range(20)]  # longer, but not in step with the reward
    assert feed("rl", [{**HEALTHY, "reward": at / 10, "length": length} for at, length in enumerate(lengths)]) == []


def test_a_warning_comes_once_and_again_after_it_cleared():
    rows = healthy(10) + healthy(4, entropy=0.1) + healthy(2) + healthy(2, entropy=0.1)
    assert feed("rl", rows) == [(11, "entropy collapse"), (17, "entropy collapse")]


def test_the_text_names_step_cause_and_cure():
    watcher = Watcher("rl")
    for row in healthy(10):
        watcher.see(row)
    (text,) = watcher.see({**HEALTHY, "step": 41, "kl": 45.0})
    assert text.startswith("step 41: KL runaway: the policy is 45 nats an answer away from the reference, 1.5 a token")
    assert "Usually cured by: a lower optim.learning_rate, a higher beta" in text


def test_what_happened_before_a_resume_is_not_told_again():
    past = healthy(10) + healthy(2, entropy=0.1)
    watcher = Watcher("rl", past=past)
    assert watcher.see({**HEALTHY, "entropy": 0.1}) == [] and watcher.see(HEALTHY) == []
    assert len(watcher.see({**HEALTHY, "entropy": 0.1})) == 1  # compared with the run's first rows, not with those after it


def test_a_long_run_is_still_compared_with_its_beginning():
    watcher = Watcher("rl")
    for row in healthy(5 * KEPT):
        assert watcher.see(row) == []
    assert len(watcher.rows) <= 2 * KEPT
    assert "length explosion" in watcher.see({**HEALTHY, "length": 100.0})[0]


def test_metrics_that_are_not_logged_are_not_missed():
    assert feed("rl", [{"reward": 1.0}] * 30) == [] == feed("sft", [{"step": 1}] * 30)


def sft(losses: list[float], **more) -> list[dict]:
    return [{"loss": loss, "grad_norm": 1.0, **more} for loss in losses]


def test_fitting_hears_of_a_rising_loss_an_exploding_gradient_and_overfitting():
    falling = [3.0 - at / 20 for at in range(20)]
    assert feed("sft", sft(falling)) == []
    assert feed("reward", sft(falling + [5.0] * 5))[0] == (25, "loss rises")
    assert feed("sft", [*sft(falling), {"loss": 2.0, "grad_norm": 21.0}]) == [(21, "gradient explodes")]
    evals = [{"eval_loss": value} for value in (2.0, 1.8, 1.85, 1.88, 1.95)]
    assert feed("prefer", evals) == [(5, "overfitting")]
    assert feed("prefer", evals[:4]) == []
    apart = [row for each in evals for row in (each, *sft([1.0] * KEPT))]  # evaluations are not forgotten between them
    assert [rule for _, rule in feed("prefer", apart)] == ["overfitting"]
    assert {"loss rises", "gradient explodes", "overfitting"} == {rule.name for rule in FITTING}
