"""Truncated importance weights: by hand, and the expectation that they are there for, by enumeration."""

import math

import pytest
import torch

from tutelage.algos.importance import truncated_importance
from tutelage.algos.policy_gradient import policy_gradient_loss


def test_by_hand():
    trainer = torch.tensor([[-9.0, -1.0, -2.0, -3.0], [-9.0, -0.5, -4.0, -7.0]], dtype=torch.float64).requires_grad_()
    sampler = torch.tensor([[-1.0, -2.0, -2.0, -2.0], [-1.0, -0.5, -2.0, math.nan]], dtype=torch.float64)
    acted = torch.tensor([[False, True, True, True], [False, True, True, False]])
    weight = truncated_importance(trainer, sampler, acted, cap=2.0)
    wanted = [[1.0, 2.0, 1.0, math.exp(-1)], [1.0, 1.0, math.exp(-2), 1.0]]  # e is cut to 2; what was not acted counts 1
    torch.testing.assert_close(weight, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    assert not weight.requires_grad
    whole = truncated_importance(trainer, sampler, acted, cap=2.0, whole=True)
    wanted = [[1.0, 1.0, 1.0, 1.0], [1.0, math.exp(-2), math.exp(-2), 1.0]]  # sums of log-ratios 0 and -2
    torch.testing.assert_close(whole, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_ratio_beyond_floats_is_finite():
    apart = torch.tensor([[1000.0, -1000.0]])
    weight = truncated_importance(apart, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), cap=math.inf)
    assert weight.isfinite().all() and weight[0, 0] > 1e8 and 0 < weight[0, 1] < 1e-8


@pytest.mark.parametrize("seed", range(3))
def test_with_a_high_cap_the_gradient_of_what_another_policy_drew_is_that_of_the_trained_one(seed):
    """By enumeration of two tokens: E_sampler[w * -(A grad log p)] = E_trainer[-(A grad log p)], token by token and whole."""
    rng = torch.Generator().manual_seed(seed)
    theta = torch.randn(5, generator=rng, dtype=torch.float64, requires_grad=True)
    other = torch.randn(5, generator=rng, dtype=torch.float64).log_softmax(0)
    advantage = torch.randn(5, 1, generator=rng, dtype=torch.float64)
    acted = torch.ones(5, 1, dtype=torch.bool)

    def gradient(drawn_by: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        loss = policy_gradient_loss(theta.log_softmax(0)[:, None], advantage * weight, acted)
        return torch.autograd.grad((drawn_by.exp()[:, None] * loss).sum(), theta)[0]

    mine = theta.log_softmax(0).detach()
    wanted = gradient(mine, torch.ones(5, 1, dtype=torch.float64))
    for whole in (False, True):
        weight = truncated_importance(mine[:, None], other[:, None], acted, cap=1e6, whole=whole)
        torch.testing.assert_close(gradient(other, weight), wanted, rtol=1e-10, atol=1e-12)
        capped = truncated_importance(mine[:, None], other[:, None], acted, cap=1.5, whole=whole)
        assert capped.max() == 1.5 and not torch.allclose(gradient(other, capped), wanted)  # the price of the cap: a bias
