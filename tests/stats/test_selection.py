"""Choosing questions against brute force over determinants, and the control arm against its promise."""

import numpy as np
import pytest

from tutelage.stats.selection import arm_report, choose, information, log_det_gain


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
