"""Plans against what happens when they are followed, in simulations, and against hand counts."""

import numpy as np
import pytest
from scipy import stats

from tutelage.stats.intervals import mean_interval
from tutelage.stats.planning import (
    majority_accuracy,
    next_vote_gain,
    overlap_worth,
    plan_accuracy,
    plan_interval,
    whom_to_train,
)
from tutelage.stats.raters import LabelVote, one_coin


def votes(random, raters, each, between, within):
    names = np.repeat([f"r{i}" for i in range(raters)], each)
    return np.repeat(random.normal(0.5, between, raters), each) + random.normal(0, within, raters * each), names.tolist()


def test_a_plan_followed_gives_the_half_width_it_promised():
    random = np.random.default_rng(0)
    values, names = votes(random, 40, 20, 0.05, 0.5)
    plan = plan_interval(values, names, 0.03)
    assert plan.within == pytest.approx(0.5, rel=0.1) and plan.between == pytest.approx(0.05, abs=0.05)
    widths = []
    for _ in range(50):  # what the interval of the rater means is, once that many labels are there
        more, _ = votes(random, 40, 20 + round(plan.more_labels / 40), plan.between, plan.within)
        out = mean_interval(more.reshape(40, -1).mean(axis=1))
        widths.append((out.high - out.low) / 2)
    assert np.mean(widths) == pytest.approx(0.03, rel=0.1)
    assert plan.half_width > 0.03 and "more labels" in plan.text
    half = lambda each: stats.t.ppf(0.975, 39) * np.sqrt((plan.between**2 + plan.within**2 / each) / 40)
    each = 20 + plan.more_labels / 40
    assert half(each) <= 0.03 < half(each - 1)  # enough, and one vote fewer of everybody would not be


def test_components_of_variance_by_hand():
    # two raters, votes 0 2 and 4 6: means 1 and 5; within 2, between (8 - 2 / 2)
    plan = plan_interval([0, 2, 4, 6], ["a", "a", "b", "b"], 1.0)
    assert plan.within**2 == pytest.approx(2) and plan.between**2 == pytest.approx(7)
    assert plan.half_width == pytest.approx(stats.t.ppf(0.975, 1) * np.sqrt(7 / 2 + 2 / 4))


def test_where_people_differ_more_labels_do_not_help_and_more_people_do():
    values, names = votes(np.random.default_rng(1), 8, 50, 0.3, 0.4)
    plan = plan_interval(values, names, 0.05)
    assert plan.more_labels is None and "no number of further votes" in plan.text
    assert 60 < plan.raters < 400
    assert plan_interval(values, names, 0.9).more_labels == 0 and "enough" in plan_interval(values, names, 0.9).text
    with pytest.raises(ValueError, match="2 raters or more"):
        plan_interval([1, 0], ["a", "a"], 0.1)


def curve(n, a=1.2, b=0.4, c=0.2):
    return 1 - (a * np.asarray(n, dtype=float) ** -b + c)


def test_a_clean_learning_curve_is_followed():
    n = [50, 100, 200, 400, 800, 1600]
    plan = plan_accuracy(n, curve(n), 0.75, seed=0)
    assert plan.labels == pytest.approx((1.2 / 0.05) ** (1 / 0.4), rel=0.15) and plan.ceiling == pytest.approx(0.8, abs=0.01)
    assert plan.low <= plan.labels <= plan.high


def test_a_noisy_curve_has_an_interval_that_holds_the_truth():
    random, n, held = np.random.default_rng(2), np.array([100, 200, 400, 800, 1600, 3200, 6400]), 0
    truth = (1.2 / 0.06) ** (1 / 0.4)
    for seed in range(30):
        plan = plan_accuracy(n, curve(n) + random.normal(0, 0.004, len(n)), 0.74, seed=seed, resamples=60)
        held += plan.low is not None and plan.low <= truth and (plan.high is None or truth <= plan.high)
    assert held >= 21  # of 30 at 90 %: fewer than 21 about once in 2,000 runs


def test_what_cannot_be_reached_or_told_is_said():
    n = [50, 100, 200, 400, 800, 1600]
    never = plan_accuracy(n, curve(n), 0.9, seed=0)
    assert never.labels is None and "lies above the 80" in never.text and "not more of the same" in never.text
    assert "too few for a learning curve" in plan_accuracy([100, 200, 400], [0.6, 0.62, 0.65], 0.7, seed=0).text
    assert "does not rise" in plan_accuracy(n, [0.6, 0.6, 0.59, 0.6, 0.58, 0.59], 0.7, seed=0).text
    assert "so a guess" in plan_accuracy(n, curve(n), 0.79, seed=0).text
    with pytest.raises(ValueError, match="wanted accuracy in"):
        plan_accuracy(n, curve(n), 1.2, seed=0)


def test_majorities_by_hand():
    assert majority_accuracy(0.8, 1) == pytest.approx(0.8)
    assert majority_accuracy(0.8, 3) == pytest.approx(0.8**2 * (3 - 1.6))
    assert majority_accuracy(0.5, 7) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="odd number"):
        majority_accuracy(0.8, 2)


def crowd_model():
    random, rows = np.random.default_rng(4), []
    for u in range(300):
        truth = random.integers(2)
        for w in range(2):
            rows.append(LabelVote(f"u{u}", f"w{(u + w) % 5}", int(truth if random.random() < 0.8 else 1 - truth)))
    return one_coin(rows), rows


def test_a_third_vote_is_worth_most_where_two_disagree():
    model, rows = crowd_model()
    split = {u for u in model.posterior if len({r.label for r in rows if r.unit == u}) == 2}
    worth = overlap_worth(model, dict.fromkeys(model.posterior, 2))
    assert worth and {row.unit for row in worth} == split
    assert worth == sorted(worth, key=lambda row: -row.gain) and worth[0].chance < 0.75


def test_the_worth_of_a_vote_is_what_it_brings_when_it_comes():
    model, rows = crowd_model()
    random = np.random.default_rng(5)
    unit = next(u for u in model.posterior if abs(model.posterior[u][0] - 0.5) < 0.25)
    now = model.posterior[unit]
    average = np.average(list(model.confusion.values()), axis=0, weights=[model.votes[w] for w in model.confusion])
    right = []
    for _ in range(20_000):  # draw the truth, let an average rater speak, believe Bayes
        truth = random.random() > now[0]
        said = random.random() > average[int(truth), 0]
        right.append(np.argmax(now * average[:, int(said)]) == truth)
    assert next_vote_gain(model, unit) == pytest.approx(np.mean(right) - now.max(), abs=0.015)  # 4 standard errors


def test_whom_to_train_by_hand():
    rows = {row.rater: row for row in whom_to_train({"bad": (10, 20), "good": (39, 40), "new": (2, 2), "nobody": (0, 0)})}
    assert [rows[r].advice for r in ("bad", "good", "new", "nobody")] == ["train", "fine", "more gold", "more gold"]
    assert rows["nobody"].below == pytest.approx(0.8) and rows["new"].below == pytest.approx(0.8**3)
    assert next(iter(rows)) == "bad" and rows["bad"].low < 0.5 < rows["bad"].high
