"""The pass that scored the answers is the first update's forward pass, wherever that update takes all of them in one micro-batch."""

from dataclasses import replace

import pytest
import torch
from training.rollouts_by_hand import PROMPTS, SMALL, state_of

from tutelage.training import a2c, on_policy, ppo, reinforce, rloo, rollouts

COMMON = {**SMALL, "beta": 0.3}
RUNS = {
    "rloo": (rloo, rloo.RLOOConfig(**COMMON), 1),
    "rloo, three epochs": (rloo, rloo.RLOOConfig(**COMMON, epochs=3), 3),
    "reinforce": (reinforce, reinforce.ReinforceConfig(**COMMON), 1),
    "a2c, entropy": (a2c, a2c.A2CConfig(**COMMON, entropy_coef=0.5), 1),
    "ppo": (ppo, ppo.PPOConfig(**COMMON, epochs=3, minibatches=1), 3),
    "ppo, entropy": (ppo, ppo.PPOConfig(**COMMON, epochs=2, minibatches=1, entropy_coef=0.5), 2),
}


def one_step(algorithm, config, monkeypatch, *, hold=True):
    """The row, the weights after it, and of each pass of the policy whether it kept a gradient."""
    state, passes = state_of(config), []
    inner = state.networks.forward

    def counted(*args, **more):
        passes.append(torch.is_grad_enabled())
        return inner(*args, **more)

    monkeypatch.setattr(state.networks, "forward", counted)
    if not hold:
        monkeypatch.setattr(algorithm, "score", lambda *args, **more: rollouts.score(*args, **more)._replace(held=None))
    row = algorithm.step(state, PROMPTS, config).row
    monkeypatch.undo()
    return row, [p.detach().clone() for p in state.networks.parameters()], passes


@pytest.mark.parametrize("name", RUNS)
def test_one_pass_fewer_and_nothing_else(name, monkeypatch):
    algorithm, config, updates = RUNS[name]
    config = replace(config, token_budget=10**6)
    row, weights, passes = one_step(algorithm, config, monkeypatch)
    plain, plain_weights, plain_passes = one_step(algorithm, config, monkeypatch, hold=False)
    assert row == pytest.approx(plain, rel=1e-4, abs=1e-6)
    for mine, theirs in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert passes == [True] * updates and len(plain_passes) == updates + 1


@pytest.mark.parametrize("changes", [{"token_budget": 40}, {"token_budget": 10**6, "minibatches": 2}], ids=str)
def test_nothing_is_held_where_the_first_update_is_not_one_pass_over_everything(changes, monkeypatch):
    config = replace(RUNS["ppo"][1], **changes)
    row, _, passes = one_step(ppo, config, monkeypatch)
    assert not passes[0] and sum(passes) >= config.updates_per_step() and row["ratio"] == pytest.approx(1.0, abs=0.2)


def test_a_held_pass_of_other_rows_is_not_taken(monkeypatch):
    """An update of some of the answers makes a pass of its own."""
    config = replace(RUNS["reinforce"][1], token_budget=10**6)
    state = state_of(config)
    found: list[on_policy.Part] = []
    said = []
    inner = state.networks.forward
    monkeypatch.setattr(state.networks, "forward", lambda *args, **more: said.append(1) or inner(*args, **more))
    responses = rollouts.answer(state.engine, PROMPTS, config.sampling(0))
    held = rollouts.score(state, PROMPTS, responses, config, policy="held")
    assert held.held is not None and sorted(held.held.rows) == list(range(len(responses))) and len(said) == 1

    def loss(part, new):
        found.append(part)
        return part.share(-new.logp_BT), {}

    on_policy.improve(state, held, config, loss, rows=[0, 2])
    assert [sorted(part.rows) for part in found] == [[0, 2]] and len(said) == 2
