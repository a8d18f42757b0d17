"""One update of A2C beside Stable-Baselines3's, where it is installed (pip install 'tutelage[peers]').

Its own buffer computes returns and advantages from our rewards, its own `train` makes the gradient step on its own network.
Ours then has to find the same advantages, returns and gradients from what that network says of each step.  A response is an
episode: rows of one length each end, so that a buffer of one environment holds them one after the other.
"""

import numpy as np
import pytest
import torch

from tutelage.algos.gae import gae
from tutelage.algos.masked import standardize
from tutelage.algos.policy_gradient import policy_gradient_loss
from tutelage.algos.ppo import clipped_value_loss

pytestmark = pytest.mark.peers
sb3 = pytest.importorskip("stable_baselines3")
gymnasium = pytest.importorskip("gymnasium")

ROWS, STEPS, ACTIONS, WIDTH = 5, 7, 4, 3
GAMMA, LAM, VALUE_COEF, ENTROPY_COEF = 0.9, 0.8, 0.5, 0.01


class Nowhere(gymnasium.Env):
    """Only says how large observations and actions are: the buffer is filled by hand."""

    observation_space = gymnasium.spaces.Box(-10, 10, (WIDTH,))
    action_space = gymnasium.spaces.Discrete(ACTIONS)

    def reset(self, **_):
        return np.zeros(WIDTH, dtype=np.float32), {}


def played(normalise: bool) -> tuple:
    """A model with a full buffer, and the observations, actions and rewards in it, [rows, steps, ...]."""
    model = sb3.A2C("MlpPolicy", Nowhere(), n_steps=ROWS * STEPS, gamma=GAMMA, gae_lambda=LAM, vf_coef=VALUE_COEF,
                    ent_coef=ENTROPY_COEF, normalize_advantage=normalise, max_grad_norm=1e9, seed=0, device="cpu")
    rng = np.random.default_rng(1)
    seen = rng.normal(size=(ROWS, STEPS, WIDTH)).astype(np.float32)
    did, paid = rng.integers(ACTIONS, size=(ROWS, STEPS)), rng.normal(size=(ROWS, STEPS)).astype(np.float32)
    model.rollout_buffer.reset()
    for row in range(ROWS):
        for step in range(STEPS):
            at = row, step
            with torch.no_grad():
                value, logp, _ = model.policy.evaluate_actions(torch.tensor(seen[at][None]), torch.tensor(did[at][None]))
            model.rollout_buffer.add(seen[at][None], did[at].reshape(1, 1), paid[at][None], np.array([step == 0]), value, logp)
    model.rollout_buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
    return model, torch.tensor(seen), torch.tensor(did), torch.tensor(paid)


@pytest.mark.parametrize("normalise", [False, True])
def test_returns_advantages_and_the_gradient_of_a_step_are_those_of_stable_baselines3(normalise):
    model, seen, did, paid = played(normalise)
    buffer, by_row = model.rollout_buffer, lambda x: torch.tensor(x).reshape(ROWS, STEPS)
    acted_BT = torch.ones(ROWS, STEPS, dtype=torch.bool)
    out = gae(paid, by_row(buffer.values), acted_BT, gamma=GAMMA, lam=LAM)
    torch.testing.assert_close(out.advantage_BT, by_row(buffer.advantages), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.return_BT, by_row(buffer.returns), rtol=1e-5, atol=1e-6)

    value, logp, entropy = model.policy.evaluate_actions(seen.reshape(-1, WIDTH), did.reshape(-1))
    shaped = lambda x: x.reshape(ROWS, STEPS)
    # theirs divides by the deviation over n - 1, ours over n, as lm-human-preferences does
    n = ROWS * STEPS
    advantage_BT = standardize(out.advantage_BT, acted_BT) * ((n - 1) / n) ** 0.5 if normalise else out.advantage_BT
    loss_BT = (policy_gradient_loss(shaped(logp), advantage_BT, acted_BT) - ENTROPY_COEF * shaped(entropy)
               # theirs is the squared error, ours half of it
               + 2 * VALUE_COEF * clipped_value_loss(shaped(value), out.return_BT, out.return_BT, acted_BT, clip=None).loss_BT)
    ours = torch.autograd.grad(loss_BT.sum() / acted_BT.sum(), list(model.policy.parameters()))

    grads: list[torch.Tensor] = []
    step = model.policy.optimizer.step
    model.policy.optimizer.step = lambda: (grads.extend(p.grad.clone() for p in model.policy.parameters()), step())[1]
    model._logger = sb3.common.logger.configure(format_strings=[])
    model._current_progress_remaining = 1.0
    model.train()
    assert len(grads) == len(ours) > 0 and any(grad.abs().max() > 1e-3 for grad in grads)
    for mine, theirs in zip(ours, grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-7)
