"""GRPO on language: credit by hand, every variant's gradient against a plain loop, dynamic sampling, and resume."""

import math
from dataclasses import replace

import pytest
import torch
from grouped import (
    COMMON,
    KLS,
    LENGTHS,
    PROMPTS,
    assert_resumes_bit_for_bit,
    assert_same_gradient,
    dirty,
    first_gradient,
    gradient_of,
    hand_rollouts,
    judged,
    low_bytes,
    row_logps,
    sampled,
    spread,
    state_of,
    wide,
)

from tutelage.algos.groups import leave_one_out
from tutelage.training.grpo import ROUND, GRPOConfig, answers, credit, improve, step

CONFIG = GRPOConfig(**COMMON, responses_per_prompt=3, epochs=1, minibatches=1, missing_eos=None)


# -- credit --------------------------------------------------------------------------------------------------------


def test_credit_by_hand():
    """Scores 1 and 2 lie 0.5 from their mean, the unbiased standard deviation is 0.7071; 5 and 5 teach nothing."""
    signal = credit(hand_rollouts(), judged((1.0, 2.0), (5.0, 5.0)), CONFIG, beta=0.1)
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    torch.testing.assert_close(signal.advantage_BT, spread(-a, a, 0.0, 0.0))
    assert signal.score_B.tolist() == [1.0, 2.0, 5.0, 5.0] and signal.return_BT is None
    assert signal.reward_BT[0].tolist() == [0, 0, 0, 0, 1.0, 0] and signal.reward_BT[2].tolist() == [0, 5.0, 0, 0, 0, 0]
    assert signal.kl_BT.sum(1).tolist() == list(KLS)


@pytest.mark.parametrize("changes, size", [
    ({"unbiased_std": False}, 0.5 / (0.5 + 1e-4)),
    ({"scale": "none"}, 0.5),
])
def test_the_scale_of_the_comparison_is_a_choice(changes, size):
    signal = credit(hand_rollouts(), judged((1.0, 2.0), (5.0, 5.0)), replace(CONFIG, **changes), beta=0.1)
    torch.testing.assert_close(signal.advantage_BT, spread(-size, size, 0.0, 0.0))


def test_kl_in_the_reward_is_compared_too():
    """Score - 0.1 KL: 1.025 and 1.9; 5.05 and 4.85."""
    config = replace(CONFIG, kl_in="reward", scale="none")
    signal = credit(hand_rollouts(), judged((1.0, 2.0), (5.0, 5.0)), config, beta=0.1)
    torch.testing.assert_close(signal.advantage_BT, spread(-0.4375, 0.4375, 0.1, -0.1))
    assert signal.score_B.tolist() == [1.0, 2.0, 5.0, 5.0]  # what the judge said stays what it said
    torch.testing.assert_close(signal.reward_BT.sum(1), torch.tensor([1.025, 1.9, 5.05, 4.85]))
    assert signal.reward_BT[0, 2].item() == pytest.approx(-0.05)  # 0.5 nats at the first token


def test_answers_near_the_limit_pay_for_it():
    """A limit of 4 and a buffer of 2: 3 tokens pay 0.5, 4 pay 1; an answer cut off pays missing_eos and that."""
    config = replace(CONFIG, max_tokens=4, overlong_buffer=2, missing_eos=-1.0)
    rollouts = hand_rollouts(stopped_B=torch.tensor([True, True, True, False]))
    assert credit(rollouts, judged((1.0, 2.0), (5.0, 5.0)), config, beta=0.1).score_B.tolist() == [0.5, 2.0, 5.0, -2.0]


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_nothing_of_the_prompt_or_the_padding_gets_through(kl_in):
    config, said = replace(CONFIG, kl_in=kl_in), judged((1.0, 2.0), (5.0, 3.0))
    clean = credit(hand_rollouts(), said, config, beta=0.1)
    for other in (dirty(), wide()):
        for got, wanted in zip(credit(other, said, config, beta=0.1)[1:4], clean[1:4], strict=True):
            assert torch.equal(got[:, :6], wanted) and (got[:, 6:] == 0).all()
    for x_BT in clean[1:4]:
        assert (x_BT[~hand_rollouts().acted_BT] == 0).all()


def test_without_the_scale_it_is_rloo_times_k_minus_1_over_k():
    said = judged((1.0, 2.0), (5.0, 3.0))
    ours = credit(hand_rollouts(), said, replace(CONFIG, scale="none"), beta=0.0).advantage_BT
    rloo = spread(*leave_one_out(torch.tensor([1.0, 2.0, 5.0, 3.0]), torch.tensor([0, 0, 1, 1])).tolist())
    torch.testing.assert_close(ours, rloo / 2)


# -- the gradient --------------------------------------------------------------------------------------------------


def loss_by_hand(state, rollouts, advantages, config, *, beta: float) -> torch.Tensor:
    """The whole step's loss, one answer after the other, one token after the other."""
    low, high = config.clip_low or config.clip, config.clip_high or config.clip
    per_answer = []
    for row in range(len(rollouts.group_B)):
        acted = rollouts.acted_BT[row]
        new, old, ref = row_logps(state, rollouts, row), rollouts.logp_BT[row][acted], rollouts.ref_logp_BT[row][acted]
        losses, a = [], float(advantages[row])
        for t in range(len(new)):
            ratio = ((new - old).mean() if config.ratio == "sequence" else new[t] - old[t]).exp()
            if config.ratio == "weight":
                token = -min(max(float(ratio.detach()), 1 - low), 1 + high) * a * new[t]
            else:
                limited = min(max(float(ratio.detach()), 1 - low), 1 + high) * a
                token = torch.tensor(-limited) if limited < float(ratio.detach()) * a else -ratio * a
            u = new[t] - ref[t]
            if config.kl_in == "loss":
                token = token + beta * (u**2 / 2 if config.kl_estimator == "k2" else (-u).exp() - 1 + u)
            losses.append(token)
        per_answer.append(torch.stack(losses))
    if config.aggregate == "token":
        return torch.cat(per_answer).sum() / sum(len(x) for x in per_answer)
    if config.aggregate == "sequence":
        return torch.stack([x.mean() for x in per_answer]).mean()
    whole = torch.stack([x.sum() for x in per_answer])
    return whole.mean() if config.aggregate == "sequence_sum" else whole.sum() / (len(per_answer) * config.max_tokens)


@pytest.mark.parametrize("changes", [
    {},
    {"aggregate": "token", "clip_high": 0.28},
    {"aggregate": "constant", "scale": "none", "kl_estimator": "k2"},
    {"aggregate": "sequence_sum", "clip_low": 0.05},
    {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04},
    {"ratio": "weight", "aggregate": "token", "kl_in": "reward"},
], ids=lambda changes: " ".join(map(str, changes.values())) or "plain")
def test_the_gradient_is_that_of_a_plain_loop(changes):
    """Old policy and reference half a nat away, so that clip and KL have something to say; in one micro-batch and in many."""
    config = replace(CONFIG, token_budget=50, **changes)
    state = state_of(config)
    rollouts, said = sampled(state, config, apart=0.5)
    signal = credit(rollouts, said, config, beta=0.3)
    advantages = signal.advantage_BT.sum(1) / rollouts.acted_BT.sum(1)
    wanted = gradient_of(state, loss_by_hand(state, rollouts, advantages, config, beta=0.3))
    for budget in (1, 10**6):
        each = replace(config, token_budget=budget)
        assert_same_gradient(first_gradient(state, lambda: improve(state, rollouts, signal, each, beta=0.3)), wanted)  # noqa: B023


@pytest.mark.parametrize("changes", [{}, {"aggregate": "token", "kl_estimator": "k2"}, {"ratio": "sequence"}, {"token_budget": 40}],
                         ids=str)
def test_one_update_without_a_pass_before_it_says_and_does_the_same(changes, monkeypatch):
    """Where there is one update, its own pass gives the log-probs before it: one pass of the policy less, nothing else."""
    config = replace(CONFIG, beta=0.3, epochs=1, minibatches=1, **changes)
    assert config.late() and not replace(config, epochs=2).late() and not replace(config, kl_in="reward", kl_estimator=None).late()
    found = []
    for late in (True, False):
        monkeypatch.setattr(GRPOConfig, "late", lambda self, late=late: late)
        state = state_of(config)
        passes = []
        inner = state.networks.forward

        def counted(*args, passes=passes, inner=inner, **more):
            passes.append(torch.is_grad_enabled())
            return inner(*args, **more)

        monkeypatch.setattr(state.networks, "forward", counted)
        stats = step(state, PROMPTS, config)
        found.append((stats.row, [p.detach().clone() for p in state.networks.parameters()], passes))
    (row, weights, passes), (other_row, other_weights, other_passes) = found
    assert row == pytest.approx(other_row, rel=1e-4, abs=1e-6) and row["kl"] == other_row["kl"] and row["sampler_gap"] < 1e-5
    for mine, theirs in zip(weights, other_weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert all(passes) and len(other_passes) == 2 * len(passes)


def test_gspo_at_the_old_policy_has_grpos_gradient():
    """Before the first update one ratio a response and one a token are 1 alike; both are the mean over each answer."""
    state = state_of(CONFIG)
    rollouts, said = sampled(state, CONFIG)
    signal = credit(rollouts, said, CONFIG, beta=0.0)
    token, sequence = (first_gradient(state, lambda: improve(state, rollouts, signal, each, beta=0.0))  # noqa: B023
                       for each in (CONFIG, replace(CONFIG, ratio="sequence", clip_low=3e-4, clip_high=4e-4)))
    assert_same_gradient(sequence, token)


def test_a_flat_group_gives_no_policy_gradient_and_still_pays_its_kl_and_counts():
    config = replace(CONFIG, aggregate="token")
    state = state_of(config)
    rollouts, _ = sampled(state, config, apart=0.5)
    said = judged((1.0, 2.0, 3.0), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
    signal = credit(rollouts, said, config, beta=0.3)
    advantages = torch.tensor([-1.0, 0, 1.0, 0, 0, 0, 0, 0, 0]) / (1 + 1e-4)
    wanted = gradient_of(state, loss_by_hand(state, rollouts, advantages, config, beta=0.3))
    assert_same_gradient(first_gradient(state, lambda: improve(state, rollouts, signal, config, beta=0.3)), wanted)


def test_where_all_groups_are_flat_and_beta_is_0_nothing_moves():
    config = replace(CONFIG, beta=0.0)
    row = step(state_of(config, lambda prompts, responses: [1000.1] * len(responses)), PROMPTS, replace(config, score_clip=None)).row
    assert row["grad_norm"] == 0.0 and row["policy_loss"] == 0.0


def test_the_ratio_is_one_before_the_first_update():
    for ratio in ("token", "sequence", "weight"):
        row = step(state_of(CONFIG), PROMPTS, replace(CONFIG, ratio=ratio)).row
        assert row["clipped"] == 0 and row["kl_old"] == 0 and row["grad_norm"] > 0


def test_later_updates_are_clipped():
    optim = replace(CONFIG.optim, learning_rate=1e-2)
    for ratio in ("token", "sequence", "weight"):
        config = replace(CONFIG, ratio=ratio, epochs=4, clip=0.01, optim=optim)
        row = step(state_of(config), PROMPTS, config).row
        assert 0 < row["clipped"] <= 1 and row["kl_old"] > 0


def test_the_kl_of_the_loss_is_told_and_left_out_at_beta_0():
    assert step(state_of(CONFIG), PROMPTS, CONFIG).row["kl_loss"] == pytest.approx(0.0, abs=1e-6)  # the policy is the reference
    for changes in ({"beta": 0.0}, {"kl_in": "reward"}):
        config = replace(CONFIG, **changes)
        assert "kl_loss" not in step(state_of(config), PROMPTS, config).row


# -- dynamic sampling ----------------------------------------------------------------------------------------------


class Fussy:
    """Likes the answers to "?" all alike in the first rounds; remembers which rounds each prompt was asked in."""

    def __init__(self, rounds: int):
        self.rounds, self.seen = rounds, []

    def __call__(self, prompts, responses):
        out = []
        for prompt, response, value in zip(prompts, responses, low_bytes(prompts, responses), strict=True):
            number, step = divmod(response.sampling.step, ROUND)
            if response.index == 0:
                self.seen.append((prompt.messages[0].text, number, step))
            alike = prompt.messages[0].text == "?" and number < self.rounds
            out.append(0.5 if alike else value + response.index)
        return out


def test_flat_groups_are_asked_again_and_the_others_are_not():
    config = replace(CONFIG, dynamic_sampling=3)
    judge = Fussy(rounds=2)
    state = state_of(config, judge)
    state.step = 7
    found = answers(state, PROMPTS, config)
    texts = [prompt.messages[0].text for prompt in PROMPTS]
    assert judge.seen == [*((text, 0, 7) for text in texts), ("?", 1, 7), ("?", 2, 7)]
    assert found.asked_again == 2
    assert [r.prompt_id for r in found.responses] == [p.id for p in PROMPTS for _ in range(3)]
    assert [r.sampling.step // ROUND for r in found.responses] == [0] * 6 + [2] * 3
    assert [j.responses for j in found.judgements] == [tuple(r.id for r in found.responses[at:at + 3]) for at in (0, 3, 6)]


def test_dynamic_sampling_gives_up_after_its_rounds():
    config = replace(CONFIG, dynamic_sampling=2)
    row = step(state_of(config, lambda prompts, responses: [1.0] * len(responses)), PROMPTS, config).row
    assert row["asked_again"] == 6 and row["flat_groups"] == 1.0


def test_without_it_nothing_is_asked_again():
    judge = Fussy(rounds=9)
    state = state_of(CONFIG, judge)
    row = step(state, PROMPTS, CONFIG).row
    assert len(judge.seen) == 3 and "asked_again" not in row and row["flat_groups"] == pytest.approx(1 / 3)


def test_what_is_flat_goes_by_what_is_credited():
    """Two answers that the judge tells apart are alike once both are cut off at the limit."""
    config = replace(CONFIG, max_tokens=1, missing_eos=-1.0, dynamic_sampling=1)
    row = step(state_of(config, lambda prompts, responses: [float(r.index) for r in responses]), PROMPTS, config).row
    assert row["truncated"] == 1.0 and row["asked_again"] == 3


# -- the run -------------------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    assert_resumes_bit_for_bit(CONFIG, tmp_path, dynamic_sampling=1, epochs=2, kl_target=0.05, kl_horizon=50)


@pytest.mark.parametrize("changes, fault", [
    ({"responses_per_prompt": 1}, "grpo compares the responses of a prompt with one another"),
    ({"clip_low": 1.0}, r"clip_low must be in \(0, 1\)"),
    ({"clip_high": 0.0}, "clip_high must be > 0"),
    ({"overlong_buffer": 7}, r"overlong_buffer \(7\) is the last part of max_tokens \(6\)"),
    ({"overlong_buffer": -1}, "overlong_buffer must be >= 0"),
    ({"dynamic_sampling": -1}, "dynamic_sampling must be >= 0"),
    ({"kl_estimator": "k1"}, "k1 in the loss has no gradient in expectation"),
    ({"kl_in": "reward", "kl_estimator": "k2"}, "k2 in the reward does not give the gradient of the KL"),
    ({"kl_in": "reward", "kl_estimator": "k3"}, "k3 in the reward does not give the gradient of the KL"),
])
def test_settings_that_cannot_be_meant_are_refused(changes, fault):
    with pytest.raises(ValueError, match=fault):
        replace(CONFIG, **changes)


def test_k1_in_the_reward_and_k2_and_k3_in_the_loss_are_fine():
    for kl_in, names in (("reward", (None, "k1")), ("loss", (None, "k2", "k3"))):
        for name in names:
            replace(CONFIG, kl_in=kl_in, kl_estimator=name)


def test_lengths_by_hand_are_what_the_rollouts_hold():
    assert hand_rollouts().acted_BT.sum(1).tolist() == list(LENGTHS)
