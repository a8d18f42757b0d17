"""Choosing questions against brute force over determinants, and the control arm against its promise."""

import numpy as np
import pytest
from scipy.optimize import minimize

from tutelage.stats.selection import arm_report, choose, fit_head, gain_over_random, information, log_det_gain, right, scaled


def pool(seed, n=40, d=4):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)), random.normal(size=n)


@pytest.mark.parametrize("seed", range(5))
def test_each_active_pick_is_the_one_that_raises_the_determinant_most(seed):
    x, margin = pool(seed)
    asked_x, asked_margin = pool(seed + 100, n=7)
    picks = choose(x, margin, 10, seed=seed, method="d-optimal", asked_x=asked_x, asked_margin=asked_margin)
    control = [p.index for p in picks if p.arm == "random"]
    H = information(asked_x, asked_margin) + information(x[control], margin[control]) - np.eye(4)
    left = set(range(40)) - set(control)
    expected = []
    for _ in range(8):
        det = {i: np.linalg.det(H + information(x[[i]], margin[[i]], prior=0.0)) for i in left}
        best = max(det, key=det.get)
        H = H + information(x[[best]], margin[[best]], prior=0.0)
        left.remove(best)
        expected.append(best)
    assert sorted(p.index for p in picks if p.arm == "active") == sorted(expected)


@pytest.mark.parametrize("method", ["random", "d-optimal", "uncertainty"])
def test_the_control_arm_is_always_on_and_the_same_seed_chooses_the_same(method):
    x, margin = pool(0, n=100)
    picks = choose(x, margin, 30, seed=5, method=method)
    assert picks == choose(x, margin, 30, seed=5, method=method) != choose(x, margin, 30, seed=6, method=method)
    assert len({p.index for p in picks}) == 30
    assert sum(p.arm == "random" for p in picks) == (30 if method == "random" else 6)
    assert [p.arm for p in choose(x, margin, 1, seed=0, method=method)] == ["random"]


def test_the_control_arm_does_not_look_at_features():
    x, margin = pool(1, n=50)
    control = lambda x, margin: sorted(p.index for p in choose(x, margin, 20, seed=9, method="d-optimal") if p.arm == "random")
    assert control(x, margin) == control(100 * x[::-1], -3 * margin)
    counts = np.zeros(50)
    for seed in range(500):
        counts[[p.index for p in choose(x, margin, 20, seed=seed, method="d-optimal") if p.arm == "random"]] += 1
    # 500 draws of 4 of 50: 40 each, standard deviation 6; a count outside 40 +- 27 comes once in 3,000 runs
    assert counts.min() > 13 and counts.max() < 67


def test_uncertainty_asks_the_closest_pairs():
    x, margin = pool(2)
    picks = choose(x, margin, 10, seed=0, method="uncertainty")
    control = {p.index for p in picks if p.arm == "random"}
    closest = [int(i) for i in np.argsort(abs(margin)) if i not in control][:8]
    assert {p.index for p in picks if p.arm == "active"} == set(closest)


def test_d_optimal_spreads_over_a_pool_of_copies_and_uncertainty_does_not():
    random = np.random.default_rng(3)
    x = np.vstack([np.tile(random.normal(size=5), (80, 1)) + 0.01 * random.normal(size=(80, 5)), random.normal(size=(20, 5))])
    margin = np.concatenate([np.zeros(80), np.full(20, 0.5)])
    gain = {m: log_det_gain(x, margin, choose(x, margin, 20, seed=1, method=m)) for m in ("random", "d-optimal", "uncertainty")}
    assert gain["d-optimal"] > gain["random"] > gain["uncertainty"]


def test_the_report_says_when_choosing_does_not_pay():
    assert arm_report([0.70, 0.72, 0.71], [0.65, 0.66, 0.66], labels=100).better
    flat = arm_report([0.70, 0.66, 0.71], [0.69, 0.68, 0.70], labels=100)
    assert not flat.better and "does not beat random" in flat.text and "default on random" in flat.text
    assert "random beats choosing" in arm_report([0.60, 0.61, 0.60], [0.70, 0.71, 0.71], labels=100).text
    with pytest.raises(ValueError, match="three seeds"):
        arm_report([0.7], [0.6], labels=10)


def test_bad_input_is_explained():
    x, margin = pool(4)
    with pytest.raises(ValueError, match="cannot choose 41 of 40"):
        choose(x, margin, 41, seed=0)
    with pytest.raises(ValueError, match="random arm is always on"):
        choose(x, margin, 4, seed=0, method="d-optimal", random_share=0.0)
    with pytest.raises(ValueError, match="random, d-optimal, uncertainty"):
        choose(x, margin, 4, seed=0, method="best")
    with pytest.raises(ValueError, match="row 3 "):
        choose(np.where(np.arange(40)[:, None] == 3, np.nan, x), margin, 4, seed=0)
    assert choose(x, margin, 0, seed=0) == []


def test_the_head_is_the_most_probable_one():
    x, margin = pool(6, n=60)
    better = (np.random.default_rng(0).random(60) < 0.5).astype(float)
    better[:5] = 0.5  # ties
    loss = lambda w: np.sum(np.logaddexp(0, x @ w) - better * (x @ w)) + 0.7 / 2 * w @ w
    assert fit_head(x, better, prior=0.7) == pytest.approx(minimize(loss, np.zeros(4), tol=1e-12).x, abs=1e-5)
    apart = fit_head(1e4 * x, (x[:, 0] > 0).astype(float), prior=1e-3)  # separable and huge: still finite
    assert np.isfinite(apart).all() and right(x @ apart, (x[:, 0] > 0)).mean() == 1
    assert fit_head(np.zeros((0, 3)), []).tolist() == [0, 0, 0]


def test_a_margin_of_nothing_is_half_right():
    assert right([1.5, -2.0, 0.0, 0.3], [1, 1, 1, 0]).tolist() == [1, 0, 0.5, 0]


def test_scaled_columns_weigh_the_same_and_rows_have_length_one_in_the_mean():
    x = scaled(pool(7)[0] * [1, 1e6, 1e-6, 0])
    assert (x**2).sum(axis=1).mean() == pytest.approx(3 / 4) and (x[:, 3] == 0).all()
    assert np.ptp((x[:, :3] ** 2).mean(axis=0)) < 1e-12


def arms(seed: int, *, along: bool) -> tuple:
    """15 chosen and 100 random pairs, two of a group; `along`: the chosen ones lie along the truth."""
    random = np.random.default_rng(seed)
    truth, x = random.normal(size=20), random.normal(size=(115, 20))
    better = x @ truth > 0
    if along:
        x[:15] = np.where(better[:15], 1, -1)[:, None] * truth + 0.1 * x[:15]
    return scaled(x), better, np.arange(115) < 15, [f"g{at // 2}" for at in range(115)]


def test_chosen_labels_that_know_more_are_seen_to_pay():
    sharp = gain_over_random(*arms(2, along=True), seed=0)
    assert sharp.better and sharp.difference.low > 0 and sharp.text.startswith("choosing beats random: +")
    assert sharp == gain_over_random(*arms(2, along=True), seed=0)


def test_arms_that_are_alike_are_not_told_apart():
    # Measured: 1 of 60 runs.  With 5 in 100, 3 or more of 8 would come once in 170.
    found = [gain_over_random(*arms(seed, along=False), seed=0) for seed in range(8)]
    assert sum(each.difference.excludes(0.0) for each in found) < 3
    assert all("leave the default on random" in each.text for each in found if not each.better)


def test_too_few_labels_tell_nothing():
    x, better, active, groups = arms(0, along=False)
    with pytest.raises(ValueError, match="9 labels on chosen and 100 on random pairs"):
        gain_over_random(x[6:], better[6:], active[6:], groups[6:], seed=0)
    with pytest.raises(ValueError, match="random pairs are of 1 prompts"):
        gain_over_random(x, better, active, [at if at < 15 else "one" for at in range(115)], seed=0)


def test_on_planted_features_d_optimal_beats_random():
    """Nine pairs in ten are near copies; a head learned from the chosen ones knows the other directions, too."""
    gains = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        alike = np.tile(random.normal(size=10), (450, 1)) + 0.05 * random.normal(size=(450, 10))
        x, truth = scaled(np.vstack([alike, random.normal(size=(50, 10))])), random.normal(size=10)
        test = random.normal(size=(400, 10))
        accuracy = {}
        for method in ("random", "d-optimal"):
            rows = [pick.index for pick in choose(x, np.zeros(500), 40, seed=seed, method=method)]
            accuracy[method] = right(test @ fit_head(x[rows], (x[rows] @ truth > 0)), (test @ truth > 0)).mean()
        gains.append(accuracy["d-optimal"] - accuracy["random"])
    assert np.mean(gains) > 0.05 and min(gains) > 0, gains
