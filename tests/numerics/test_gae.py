"""Advantages against a known answer, the two ends of lambda, and a plain loop over the acted steps alone."""

import math

import numpy as np
import pytest
import torch

from tutelage.algos.gae import gae
from tutelage.algos.kl import k1
from tutelage.algos.masked import last_true

REWARD, VALUE = [0.0, 0.0, 0.0, 1.0], [0.1, 0.2, 0.3, 0.4]


def tensors(*rows: list[float]) -> list[torch.Tensor]:
    return [torch.tensor([row], dtype=torch.float64) for row in rows]


def witness(reward: np.ndarray, value: np.ndarray, *, gamma: float, lam: float) -> np.ndarray:
    """Eq. 16 as it stands: A_t = sum over l of (gamma lam)^l delta_{t+l}, for one response without gaps."""
    following = np.append(value[1:], 0.0)
    delta = reward + gamma * following - value
    return np.array([sum((gamma * lam) ** l * delta[t + l] for l in range(len(delta) - t)) for t in range(len(delta))])


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six responses with prompts before, padding behind and gaps between."""
    rng = torch.Generator().manual_seed(seed)
    reward_BT = torch.randn(6, 11, generator=rng, dtype=torch.float64)
    value_BT = torch.randn(6, 11, generator=rng, dtype=torch.float64)
    acted_BT = torch.rand(6, 11, generator=rng) < 0.6
    return reward_BT, value_BT, acted_BT


def test_known_answer():
    # delta = [.1, .1, .1, .6];  .6;  .1 + .95 x .6 = .67;  .1 + .95 x .67 = .7365;  .1 + .95 x .7365 = .799675
    reward, value = tensors(REWARD, VALUE)
    out = gae(reward, value, torch.ones(1, 4, dtype=torch.bool), gamma=1.0, lam=0.95)
    assert out.advantage_BT[0].tolist() == pytest.approx([0.799675, 0.7365, 0.67, 0.6], rel=1e-12)
    assert out.return_BT[0].tolist() == pytest.approx([0.899675, 0.9365, 0.97, 1.0], rel=1e-12)


def test_the_defaults_are_gamma_1_and_lambda_095():
    reward, value = tensors(REWARD, VALUE)
    acted = torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(gae(reward, value, acted).advantage_BT, gae(reward, value, acted, gamma=1.0, lam=0.95).advantage_BT)


def test_lambda_1_is_reward_to_go_minus_value():
    reward, value = tensors([0.5, -1.0, 0.0, 2.0], VALUE)
    out = gae(reward, value, torch.ones(1, 4, dtype=torch.bool), gamma=1.0, lam=1.0)
    assert out.return_BT[0].tolist() == pytest.approx([1.5, 1.0, 2.0, 2.0])
    assert out.advantage_BT[0].tolist() == pytest.approx([1.4, 0.8, 1.7, 1.6])
    discounted = gae(reward, value, torch.ones(1, 4, dtype=torch.bool), gamma=0.5, lam=1.0)
    # 2;  0 + .5 x 2 = 1;  -1 + .5 x 1 = -.5;  .5 - .25 = .25
    assert discounted.return_BT[0].tolist() == pytest.approx([0.25, -0.5, 1.0, 2.0])


def test_lambda_0_is_the_one_step_error():
    reward, value = tensors([0.5, -1.0, 0.0, 2.0], VALUE)
    out = gae(reward, value, torch.ones(1, 4, dtype=torch.bool), gamma=0.5, lam=0.0)
    # r + .5 V' - V:  .5 + .1 - .1,  -1 + .15 - .2,  0 + .2 - .3,  2 + 0 - .4
    assert out.advantage_BT[0].tolist() == pytest.approx([0.5, -1.05, -0.1, 1.6])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (0.97, 1.0)])
def test_equals_the_plain_sum_over_acted_steps_alone(gamma, lam, seed):
    """A gap of tokens that the policy did not choose carries the next value and advantage over: it takes no time."""
    reward, value, acted = random_batch(seed)
    out = gae(reward, value, acted, gamma=gamma, lam=lam)
    for row in range(6):
        on = acted[row].numpy()
        wanted = witness(reward[row].numpy()[on], value[row].numpy()[on], gamma=gamma, lam=lam)
        np.testing.assert_allclose(out.advantage_BT[row].numpy()[on], wanted, rtol=1e-10)
        np.testing.assert_allclose(out.return_BT[row].numpy()[on], wanted + value[row].numpy()[on], rtol=1e-10, atol=1e-12)
    assert (out.advantage_BT[~acted] == 0).all() and (out.return_BT[~acted] == 0).all()


def test_a_gap_in_the_known_answer_changes_nothing():
    reward, value = tensors([0, 0, 50, 50, 0, 1], [0.1, 0.2, 7, 7, 0.3, 0.4])
    acted = torch.tensor([[True, True, False, False, True, True]])
    out = gae(reward, value, acted)
    assert out.advantage_BT[0].tolist() == pytest.approx([0.799675, 0.7365, 0, 0, 0.67, 0.6], rel=1e-12)


@pytest.mark.parametrize("garbage", [99.0, math.nan, math.inf])
def test_uncounted_positions_may_hold_anything(garbage):
    reward, value, acted = random_batch(3)
    clean = gae(torch.where(acted, reward, 0.0), torch.where(acted, value, 0.0), acted)
    dirty = gae(torch.where(acted, reward, garbage), torch.where(acted, value, garbage), acted)
    assert torch.equal(clean.advantage_BT, dirty.advantage_BT) and torch.equal(clean.return_BT, dirty.return_BT)


def test_a_hundred_pad_columns_change_nothing():
    reward, value, acted = random_batch(4)
    pad = torch.full((6, 100), 99.0, dtype=torch.float64)
    wide = gae(torch.cat([reward, pad], 1), torch.cat([value, pad], 1), torch.cat([acted, torch.zeros_like(pad).bool()], 1))
    narrow = gae(reward, value, acted)
    assert torch.equal(wide.advantage_BT[:, :11], narrow.advantage_BT) and (wide.advantage_BT[:, 11:] == 0).all()
    assert torch.equal(wide.return_BT[:, :11], narrow.return_BT) and (wide.return_BT[:, 11:] == 0).all()


def test_rows_do_not_see_each_other():
    reward, value, acted = random_batch(5)
    together = gae(reward, value, acted).advantage_BT
    alone = torch.cat([gae(reward[row:row + 1], value[row:row + 1], acted[row:row + 1]).advantage_BT for row in range(6)])
    assert torch.equal(together, alone)


def test_inputs_are_left_alone():
    reward, value, acted = random_batch(6)
    before = reward.clone(), value.clone(), acted.clone()
    gae(reward, value, acted)
    assert all(torch.equal(a, b) for a, b in zip(before, (reward, value, acted), strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.7])
def test_advantage_at_the_end_is_score_minus_kl_minus_value(beta):
    """C14: the score stands at the last token that was chosen, so A_EOS = score - beta * kl - V_EOS exactly."""
    rng = torch.Generator().manual_seed(7)
    logp, ref, value = (torch.randn(3, 8, generator=rng, dtype=torch.float64) for _ in range(3))
    acted = torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    score_B = torch.tensor([1.5, -2.0, 0.3], dtype=torch.float64)
    kl = k1(logp, ref, acted)
    end_B = last_true(acted)
    assert end_B.tolist() == [3, 6, 7]
    rows = torch.arange(3)
    reward = -beta * kl
    reward[rows, end_B] += score_B
    out = gae(reward, value, acted)
    wanted = score_B - beta * (logp - ref)[rows, end_B] - value[rows, end_B]
    torch.testing.assert_close(out.advantage_BT[rows, end_B], wanted, rtol=1e-12, atol=1e-12)
