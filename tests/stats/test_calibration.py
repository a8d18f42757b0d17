import math

import numpy as np
import pytest

from tutelage.stats.calibration import ece, pair_confidence, reliability


def test_ece_by_hand():
    # bin 0.6-0.7: two items at 0.65, one right -> |0.65 - 0.5| = 0.15; bin 0.9-1: one at 0.95, right -> 0.05
    assert ece([0.65, 0.65, 0.95], [1, 0, 1]) == pytest.approx((2 * 0.15 + 0.05) / 3)
    assert ece([1.0, 1.0], [0, 0]) == 1.0


def test_honest_promises_have_a_small_error_and_boasts_a_large_one():
    random = np.random.default_rng(0)
    p = random.uniform(0.5, 1, size=4000)
    outcome = (random.random(4000) < p).astype(float)
    assert ece(p.tolist(), outcome.tolist(), low=0.5) < 0.03
    assert ece(np.clip(p + 0.2, 0, 1).tolist(), outcome.tolist(), low=0.5) > 0.1


def test_rows_cover_every_item_once_edges_included():
    p = [0.0, 0.1, 0.1999, 0.2, 0.999, 1.0]
    rows = reliability(p, [1] * 6, bins=10)
    assert sum(row.n for row in rows) == 6
    assert [(round(row.low, 1), row.n) for row in rows] == [(0.0, 1), (0.1, 2), (0.2, 1), (0.9, 2)]


def test_pair_confidence_does_not_know_which_was_chosen():
    confidence, correct = pair_confidence([2.0, -2.0, 0.0, 1e9])
    assert confidence[0] == confidence[1] == pytest.approx(1 / (1 + math.exp(-2)))
    assert correct == [1.0, 0.0, 0.5, 1.0] and confidence[2] == 0.5 and confidence[3] == 1.0


def test_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"number 1 .* got 1.2"):
        ece([0.3, 1.2], [0, 1])
