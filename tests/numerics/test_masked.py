"""Masked moments against numpy on the compressed values."""

import math

import numpy as np
import pytest
import torch

from tutelage.algos.masked import last_true, masked_mean, masked_sum, masked_var, rescale, standardize

GARBAGE = [99.0, math.nan, math.inf, -math.inf]


def batch(rows: int = 4, columns: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x_BT = torch.randn(rows, columns, generator=rng, dtype=torch.float64) * 3 + 1
    mask_BT = torch.rand(rows, columns, generator=rng) < 0.6
    return x_BT, mask_BT


def test_moments_equal_numpy_on_the_counted_positions():
    x, mask = batch()
    counted = x.numpy()[mask.numpy()]
    assert 0 < len(counted) < x.numel()
    assert masked_sum(x, mask).item() == pytest.approx(counted.sum(), rel=1e-12)
    assert masked_mean(x, mask).item() == pytest.approx(counted.mean(), rel=1e-12)
    assert masked_var(x, mask).item() == pytest.approx(np.var(counted, ddof=0), rel=1e-12)


def test_variance_is_the_population_one_by_hand():
    # 1, 3: mean 2, population variance 1 (the sample variance would be 2)
    x, mask = torch.tensor([[1.0, 3.0, 50.0]]), torch.tensor([[True, True, False]])
    assert masked_var(x, mask).item() == 1.0
    assert standardize(x, mask).tolist() == [[-1.0, 1.0, 0.0]]
    assert rescale(x, mask).tolist() == [[1.0, 3.0, 0.0]]  # the mean, 2, comes back


def test_standardize_equals_numpy_over_the_whole_batch():
    x, mask = batch(seed=1)
    counted = x.numpy()[mask.numpy()]
    wanted = (counted - counted.mean()) / np.sqrt(counted.var() + 1e-8)
    got = standardize(x, mask)
    np.testing.assert_allclose(got.numpy()[mask.numpy()], wanted, rtol=1e-12)
    assert (got[~mask] == 0).all()
    # not row by row: each row keeps its own mean
    assert max(abs(got[row][mask[row]].mean().item()) for row in range(4)) > 0.05


def test_rescale_keeps_the_mean_and_makes_the_variance_one():
    x, mask = batch(seed=2)
    out = rescale(x, mask)
    assert masked_mean(out, mask).item() == pytest.approx(masked_mean(x, mask).item(), rel=1e-12)
    assert masked_var(out, mask).item() == pytest.approx(1.0, rel=1e-6)  # eps
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_uncounted_positions_may_hold_anything(garbage):
    x, mask = batch()
    dirty = torch.where(mask, x, garbage)
    for function in (masked_sum, masked_mean, masked_var, standardize, rescale):
        assert torch.equal(function(dirty, mask), function(x, mask)), function.__name__


def test_a_hundred_pad_columns_change_nothing():
    x, mask = batch()
    wide = torch.cat([x, torch.full((4, 100), 99.0, dtype=x.dtype)], dim=1)
    wide_mask = torch.cat([mask, torch.zeros(4, 100, dtype=torch.bool)], dim=1)
    for function in (standardize, rescale):
        # another width adds the same numbers in another order: only the last bits may differ
        torch.testing.assert_close(function(wide, wide_mask)[:, :9], function(x, mask), rtol=1e-12, atol=1e-12)
        assert (function(wide, wide_mask)[:, 9:] == 0).all()


@pytest.mark.parametrize("values", [[7.0], [7.0, 7.0, 7.0]])
def test_one_position_or_no_variance_gives_no_nan(values):
    x = torch.tensor([values])
    assert masked_var(x, torch.ones_like(x, dtype=torch.bool)).item() == 0.0
    assert standardize(x, torch.ones_like(x, dtype=torch.bool)).tolist() == [[0.0] * len(values)]
    assert rescale(x, torch.ones_like(x, dtype=torch.bool)).tolist() == [values]


def test_nothing_counted_is_zero_everywhere():
    x, mask = torch.full((2, 3), math.nan), torch.zeros(2, 3, dtype=torch.bool)
    assert masked_sum(x, mask) == masked_mean(x, mask) == masked_var(x, mask) == 0
    assert (standardize(x, mask) == 0).all() and (rescale(x, mask) == 0).all()


@pytest.mark.parametrize("row, column", [
    ([1, 1, 1, 1], 3),
    ([0, 1, 1, 0], 2),  # padding behind
    ([0, 1, 0, 1], 3),  # a gap
    ([1, 0, 0, 0], 0),
    ([0, 0, 0, 0], -1),  # none
])
def test_last_true(row, column):
    mask = torch.tensor([row, [0, 0, 1, 0]], dtype=torch.bool)
    assert last_true(mask).tolist() == [column, 2]
