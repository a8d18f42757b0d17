"""Losses on judgements against plain numpy."""

import math

import numpy as np
import pytest
import torch

from tutelage.algos.preference import bradley_terry_loss, rating_loss

CHOSEN = [2.0, 0.0, -1.0, 0.5, 3.0]
REJECTED = [1.0, 0.0, 1.0, -0.5, 2.9]
MARGIN = [0.0, 0.5, 1.0, 3.0, 0.1]
SOFT = [1.0, 0.5, 0.9, 0.7, 0.0]


def f64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def witness(chosen: float, rejected: float, *, margin: float = 0.0, soft: float = 1.0) -> float:
    d = chosen - rejected - margin
    return -soft * math.log(sigmoid(d)) - (1 - soft) * math.log(1 - sigmoid(d))


def test_bradley_terry_by_hand():
    out = bradley_terry_loss(f64([1.0, 0.0]), f64([0.0, 0.0]))
    # -ln s(1) = 0.3132617;  no difference: ln 2
    assert out.loss_P.tolist() == pytest.approx([0.3132616875, math.log(2)], abs=1e-9)


@pytest.mark.parametrize("options", [
    {}, {"margin_P": MARGIN}, {"soft_label_P": SOFT}, {"margin_P": MARGIN, "soft_label_P": SOFT}])
def test_bradley_terry_equals_the_plain_formula(options):
    out = bradley_terry_loss(f64(CHOSEN), f64(REJECTED), **{name: f64(values) for name, values in options.items()})
    wanted = [witness(c, r, margin=m, soft=p) for c, r, m, p in zip(
        CHOSEN, REJECTED, options.get("margin_P", [0.0] * 5), options.get("soft_label_P", [1.0] * 5), strict=True)]
    np.testing.assert_allclose(out.loss_P.numpy(), wanted, rtol=1e-12)


def test_soft_label_equals_torch_binary_cross_entropy():
    rng = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(50, generator=rng), torch.randn(50, generator=rng)
    soft = torch.rand(50, generator=rng)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(chosen - rejected, soft, reduction="none")
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, soft_label_P=soft).loss_P, wanted, rtol=1e-5, atol=1e-6)


def test_gradient_is_the_chance_of_being_wrong():
    """d loss / d chosen = -(p - s(d)): at p = 1 the push is the probability that the model gives to the other answer."""
    chosen = f64(CHOSEN).requires_grad_()
    rejected = f64(REJECTED).requires_grad_()
    bradley_terry_loss(chosen, rejected).loss_P.sum().backward()
    wanted = [-(1 - sigmoid(c - r)) for c, r in zip(CHOSEN, REJECTED, strict=True)]
    np.testing.assert_allclose(chosen.grad.numpy(), wanted, rtol=1e-12)
    np.testing.assert_allclose(rejected.grad.numpy(), [-x for x in wanted], rtol=1e-12)


def test_a_margin_asks_for_more():
    none, some = (bradley_terry_loss(f64([2.0]), f64([0.0]), margin_P=f64([m])).loss_P.item() for m in (0.0, 1.0))
    assert some == pytest.approx(-math.log(sigmoid(1.0))) and some > none == pytest.approx(-math.log(sigmoid(2.0)))


def test_swapping_the_answers_and_the_label_changes_nothing():
    a = bradley_terry_loss(f64(CHOSEN), f64(REJECTED), soft_label_P=f64(SOFT))
    b = bradley_terry_loss(f64(REJECTED), f64(CHOSEN), soft_label_P=1 - f64(SOFT))
    torch.testing.assert_close(a.loss_P, b.loss_P, rtol=1e-12, atol=1e-12)


def test_a_tie_counts_as_wrong():
    out = bradley_terry_loss(f64([1.0, 0.0, 0.0, math.nan]), f64([0.0, 0.0, 1.0, 0.0]))
    assert out.right_P.tolist() == [1.0, 0.0, 0.0, 0.0]  # higher, tie, lower, and no number at all


def test_a_margin_does_not_change_what_is_right():
    assert bradley_terry_loss(f64([1.0]), f64([0.0]), margin_P=f64([5.0])).right_P.item() == 1.0


def test_centre_pins_the_origin_and_only_that():
    plain = bradley_terry_loss(f64(CHOSEN), f64(REJECTED)).loss_P
    centred = bradley_terry_loss(f64(CHOSEN), f64(REJECTED), centre=0.01).loss_P
    wanted = [0.01 * (c + r) ** 2 for c, r in zip(CHOSEN, REJECTED, strict=True)]
    np.testing.assert_allclose((centred - plain).numpy(), wanted, rtol=1e-9)
    shifted = bradley_terry_loss(f64(CHOSEN) + 7, f64(REJECTED) + 7).loss_P
    torch.testing.assert_close(shifted, plain, rtol=1e-12, atol=1e-12)  # without it, the origin is free


def test_hopeless_pairs_stay_finite():
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    out = bradley_terry_loss(chosen, torch.tensor([500.0, -500.0]), soft_label_P=torch.tensor([0.9, 0.9]))
    out.loss_P.sum().backward()
    assert torch.isfinite(out.loss_P).all() and torch.isfinite(chosen.grad).all()
    assert out.loss_P.tolist() == pytest.approx([900.0, 100.0])  # 0.9 x 1000 and 0.1 x 1000


def test_rating_loss_equals_torch():
    score, rating = f64([1.0, 4.5, -2.0]), f64([3.0, 4.0, 1.0])
    assert rating_loss(score, rating).tolist() == [4.0, 0.25, 9.0]
    torch.testing.assert_close(rating_loss(score, rating), torch.nn.functional.mse_loss(score, rating, reduction="none"))
