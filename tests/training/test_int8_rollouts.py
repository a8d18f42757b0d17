"""Answers drawn with 8-bit weights, corrected by truncated importance weights."""

import pytest
import torch
import toys
from test_policy_gradients_learn import CONFIGS, SEED, share_of_e

from tutelage.judges.rules import FunctionJudge
from tutelage.rollout.int8 import can_int8
from tutelage.store.runs import Run
from tutelage.training import a2c, on_policy
from tutelage.training.a2c import A2CConfig
from tutelage.training.batch import Rollouts
from tutelage.training.grpo import GRPOConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.on_policy import RewardSignal, corrected
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo import PPOConfig
from tutelage.training.rl import rl

pytestmark = pytest.mark.skipif(not can_int8(torch.device("cpu")), reason="torch has no 8-bit kernels on this machine")
SMALL = {"device": "cpu", "dtype": "float32", "seed": SEED, "normalise_on": 0, "missing_eos": -0.5, "lora": LoraConfig(rank=0),
         "rollout_weights": "int8"}


@pytest.fixture(scope="module")
def babbler(tmp_path_factory):
    return toys.babbler(tmp_path_factory.mktemp("babbler"))


def run_of(config, folder):
    rl(config, prompts=[toys.ask(f"q{number}") for number in range(8)], judge=FunctionJudge(share_of_e), folder=folder)
    return list(Run(folder).metrics())


@pytest.mark.parametrize("kind", [CONFIGS["a2c"], CONFIGS["rloo"], PPOConfig, GRPOConfig], ids=lambda kind: kind.__name__)
def test_it_learns_as_with_the_weights_themselves(babbler, tmp_path, kind):
    """The margin of test_policy_gradients_learn.py.  Two updates a step for PPO, one for the others."""
    rows = run_of(kind(model=str(babbler), steps=10, prompts_per_step=8, responses_per_prompt=4, max_tokens=8, beta=0.02,
                       token_budget=8192, optim=OptimConfig(learning_rate=1e-3, schedule="constant", betas=(0.9, 0.95), eps=1e-5),
                       **SMALL, **({"minibatches": 1} if kind is PPOConfig else {})), tmp_path / "rl")
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[-3:]) / 3 - rewards[0] > 0.4, rewards
    assert all(1e-5 < row["sampler_gap"] < 0.5 and 0.5 < row["effective"] <= 1 for row in rows)


def test_the_advantage_is_weighed_and_nothing_else():
    ones, acted = torch.ones(1, 3), torch.tensor([[False, True, True]])
    rollouts = Rollouts(token_BT=ones.long(), real_BT=ones.bool(), acted_BT=acted, sampler_logp_BT=torch.tensor([[0.0, -2.0, -1.0]]),
                        logp_BT=torch.tensor([[0.0, -1.0, -2.0]]), ref_logp_BT=-ones, value_BT=None, cost_value_BT=None,
                        entropy_BT=ones, group_B=torch.tensor([0]), stopped_B=torch.tensor([True]))
    signal = RewardSignal(torch.tensor([1.0]), 0 * ones, ones, torch.tensor([[0.0, 3.0, 3.0]]), 2 * ones)
    out = corrected(signal, rollouts, A2CConfig(rollout_weights="int8", importance_cap=2.5))
    torch.testing.assert_close(out.advantage_BT, torch.tensor([[0.0, 7.5, 3.0 * 0.36788]]), rtol=1e-4, atol=0)
    assert out.return_BT is signal.return_BT and out.reward_BT is signal.reward_BT and out.kl_BT is signal.kl_BT
    assert corrected(signal, rollouts, A2CConfig()) is signal


def test_every_policy_gradient_asks_for_the_correction(babbler, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(on_policy, "truncated_importance", lambda *args, **more: seen.append(more["whole"]) or torch.ones(()))
    for name, kind, more in [*((name, kind, {}) for name, kind in CONFIGS.items()), ("ppo", PPOConfig, {}), ("grpo", GRPOConfig, {}),
                             ("gspo", GRPOConfig, {"ratio": "sequence"})]:
        seen.clear()
        config = kind(model=str(babbler), steps=1, prompts_per_step=2, responses_per_prompt=2, max_tokens=3, **SMALL, **more)
        run_of(config, tmp_path / name)
        assert seen == [name in ("rloo", "gspo")], name
    assert a2c.corrected is on_policy.corrected


def test_settings_that_do_nothing_or_cannot_be_are_refused():
    with pytest.raises(ValueError, match="importance_cap belongs to rollout_weights: int8"):
        PPOConfig(importance_cap=3.0)
    with pytest.raises(ValueError, match="importance_cap must be >= 1.* got 0.5"):
        PPOConfig(rollout_weights="int8", importance_cap=0.5)
