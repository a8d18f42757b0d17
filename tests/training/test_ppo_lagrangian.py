"""PPO under a constraint: credit by hand, the multiplier's bookkeeping, and that a slack constraint leaves PPO as it is."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import toys
from scipy.stats import binomtest, ttest_1samp

from tutelage.core.config import bind
from tutelage.core.errors import ConfigError
from tutelage.core.words import Judgement, Prompt, Response
from tutelage.judges.rules import FunctionJudge
from tutelage.store.runs import CLOCK_FIELDS, Run
from tutelage.training import ppo
from tutelage.training.batch import Rollouts
from tutelage.training.networks import LoraConfig, load_trainable
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo_lagrangian import MultiplierConfig, PPOLagrangianConfig, begin, credit, follow, improve, step
from tutelage.training.rl import ALGORITHMS, ScaledJudge, begin_state, rl
from tutelage.training.rollouts import answer, judge_all, score
from tutelage.training.state import SaveConfig, Stopped

GARBAGE = 99.0
COSTS = """
def low(prompts, responses):
    return [float(sum(token < 64 for token in r.token_ids)) - 1.5 for r in responses]

def none(prompts, responses):
    return [-1.0 - 0.001 * len(r.token_ids) for r in responses]
"""
CONFIG = PPOLagrangianConfig(
    model="test",
    device="cpu",
    dtype="float32",
    cost="python:none.py:f",
    steps=4,
    prompts_per_step=3,
    responses_per_prompt=2,
    max_tokens=6,
    normalise_on=0,
    epochs=2,
    minibatches=2,
    lora=LoraConfig(rank=0),
    optim=OptimConfig(learning_rate=1e-3, schedule="constant", warmup=0.0, betas=(0.9, 0.95), eps=1e-5),
)
PROMPTS = [toys.ask("hi"), toys.ask("a longer question"), toys.ask("?")]


def first_letters(prompts: list[Prompt], responses: list[Response]) -> list[float]:
    return [float(response.token_ids[0] < 128) for response in responses]


def low_tokens(prompts: list[Prompt], responses: list[Response]) -> list[float]:
    return [float(sum(token < 64 for token in r.token_ids)) - 1.5 for r in responses]


@pytest.fixture(scope="module")
def cost_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("costs") / "costs.py"
    path.write_text(COSTS)
    return path


def state_of(config: PPOLagrangianConfig = CONFIG, cost=low_tokens):
    loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora)
    state = begin_state(config, loaded, ScaledJudge(FunctionJudge(first_letters)))
    begin(state, config, FunctionJudge(cost))
    return state


def judged(*values: float) -> list[Judgement]:
    return [
        Judgement(judge="rule:hand", kind="rating", responses=(f"r{at}",), values=(value,)) for at, value in enumerate(values)
    ]


def spread(first: list[float], second: list[float]) -> torch.Tensor:
    """Two answers of 3 and 2 tokens behind prompts of 2 and 1; garbage wherever the policy did not act."""
    return torch.tensor([[GARBAGE, GARBAGE, *first, GARBAGE], [GARBAGE, *second, GARBAGE, GARBAGE, GARBAGE]])


def rollouts_of(**changes) -> Rollouts:
    logp_BT = spread([-1.0, -2.0, -0.5], [-3.0, -0.25])
    values = {
        "token_BT": torch.full((2, 6), 7),
        "real_BT": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.bool),
        "acted_BT": torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bool),
        "sampler_logp_BT": logp_BT,
        "logp_BT": logp_BT,
        "ref_logp_BT": spread([-1.5, -1.0, -0.75], [-3.0, -1.25]),
        "value_BT": spread([0.1, 0.2, 0.3], [-0.1, 0.4]),
        "cost_value_BT": spread([0.5, 0.0, -0.5], [1.0, 2.0]),
        "entropy_BT": torch.zeros(2, 6),
        "group_B": torch.tensor([0, 1]),
        "stopped_B": torch.tensor([True, True]),
    }
    return Rollouts(**{**values, **changes})


def plain_gae(rewards: list[float], values: list[float], lam: float = 0.95) -> list[float]:
    """Backwards in plain Python, gamma 1."""
    out, after, following = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        following = reward + after - value + lam * following
        out.append(following)
        after = value
    return out[::-1]


# -- credit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shaping", ["both", "reward"])
@pytest.mark.parametrize("multiplier", [0.0, 0.5, 4.0])
def test_credit_by_hand(shaping, multiplier):
    """beta 0.1; kl .5, -1, .25 and 0, 1; the advantage is that of the Lagrangian, standardised once, at the end."""
    got = credit(
        rollouts_of(), judged(1.0, 2.0), judged(3.0, -2.0), replace(CONFIG, kl_shaping=shaping), beta=0.1, multiplier=multiplier
    )
    reward = plain_gae([-0.05, 0.1, 1.0 - 0.025], [0.1, 0.2, 0.3]) + plain_gae([0.0, 2.0 - 0.1], [-0.1, 0.4])
    k = 0.1 if shaping == "both" else 0.0
    cost = plain_gae([0.5 * k, -k, 3.0 + 0.25 * k], [0.5, 0.0, -0.5]) + plain_gae([0.0, -2.0 + k], [1.0, 2.0])
    mixed = torch.tensor([(a - multiplier * c) / (1 + multiplier) for a, c in zip(reward, cost, strict=True)])
    acted_BT = rollouts_of().acted_BT
    close = lambda x, y: torch.testing.assert_close(x, torch.as_tensor(y), rtol=1e-5, atol=1e-5)
    close(got.reward.advantage_BT[acted_BT], (mixed - mixed.mean()) / mixed.std(unbiased=False))
    close(got.cost.advantage_BT[acted_BT], torch.tensor(cost))
    close(got.reward.return_BT[acted_BT], torch.tensor(reward) + torch.tensor([0.1, 0.2, 0.3, -0.1, 0.4]))
    close(got.cost.return_BT[acted_BT], torch.tensor(cost) + torch.tensor([0.5, 0.0, -0.5, 1.0, 2.0]))


@pytest.mark.parametrize("dense", [False, True], ids=["whole", "spans"])
def test_at_multiplier_0_credit_is_ppos_to_the_bit(dense):
    rollouts = rollouts_of(dense_BT=torch.where(rollouts_of().acted_BT, torch.arange(6.0) / 7, 0.0)) if dense else rollouts_of()
    got = credit(rollouts, judged(1.0, 2.0), judged(3e4, -2e4), CONFIG, beta=0.1, multiplier=0.0)
    for ours, theirs in zip(got.reward, ppo.credit(rollouts, judged(1.0, 2.0), CONFIG, beta=0.1), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_of_the_prompt_or_the_padding_gets_through():
    run = lambda rollouts: credit(rollouts, judged(1.0, 2.0), judged(3.0, -2.0), CONFIG, beta=0.1, multiplier=2.0)
    acted_BT, names = rollouts_of().acted_BT, ("logp_BT", "ref_logp_BT", "value_BT", "cost_value_BT", "sampler_logp_BT")
    dirty = rollouts_of(**{name: torch.where(acted_BT, getattr(rollouts_of(), name), torch.nan) for name in names})
    for clean, other in zip(run(rollouts_of()), run(dirty), strict=True):
        for wanted, got in zip(clean, other, strict=True):
            assert torch.equal(wanted, got)
        for x_BT in clean[1:]:
            assert (x_BT[~acted_BT] == 0).all()


def test_an_answer_that_never_ended_loses_its_score_and_keeps_its_cost():
    cut = rollouts_of(stopped_B=torch.tensor([True, False]))
    got = credit(cut, judged(1.0, 2.0), judged(3.0, 40.0), CONFIG, beta=0.0, multiplier=1.0)
    assert got.reward.score_B.tolist() == [1.0, -1.0] and got.cost.score_B.tolist() == [3.0, 40.0]  # nor is it clipped
    assert got.cost.reward_BT[1].tolist() == [0, 0, 40.0, 0, 0, 0]


def test_the_baseline_is_of_both():
    together = rollouts_of(group_B=torch.tensor([0, 0]))
    config = replace(CONFIG, baseline="leave_one_out")
    got = credit(together, judged(1.0, 2.0), judged(3.0, -2.0), config, beta=0.0, multiplier=1.0)
    assert got.reward.reward_BT[0, 4] == -1.0 and got.cost.reward_BT[0, 4] == 5.0 and got.cost.score_B.tolist() == [3.0, -2.0]


# -- the multiplier ------------------------------------------------------------------------------------------------


def of_prompts(*values: tuple[float, ...]) -> list[Judgement]:
    return [
        Judgement(judge="rule:hand", kind="rating", responses=tuple(f"r{i}" for i in range(len(each))), values=each)
        for each in values
    ]


def test_the_multiplier_follows_the_mean_over_the_newest_prompts():
    config = replace(CONFIG, threshold=1.0, multiplier=MultiplierConfig(learning_rate=0.5, window=3))
    first = follow({"multiplier": 0.25, "window": []}, of_prompts((2.0, 4.0), (1.0, 3.0)), config, step=0)
    assert first.window == [3.0, 2.0] and first.bound == 2.5 and first.multiplier == 0.25 + 0.5 * 1.5
    second = follow(first._asdict(), of_prompts((-9.0, -11.0), (0.0, 2.0)), config, step=1)
    assert second.window == [2.0, -10.0, 1.0] and second.multiplier == 0.0  # 1.0 + 0.5 x (-7/3 - 1) is below 0
    assert first.window == [3.0, 2.0]  # what came in is left alone


def test_the_bound_is_the_one_sided_t_bound_over_prompts():
    config = replace(CONFIG, multiplier=MultiplierConfig(learning_rate=1.0, bound="ucb", confidence=0.9))
    got = follow({"multiplier": 0.0, "window": [0.5]}, of_prompts((1.0, 2.0), (0.0, 1.0), (3.0, 3.0)), config, step=0)
    witness = ttest_1samp([0.5, 1.5, 0.5, 3.0], 0, alternative="less").confidence_interval(0.9).high
    assert got.bound == pytest.approx(witness, rel=1e-9) and got.multiplier == pytest.approx(witness, rel=1e-9)
    alone = follow({"multiplier": 0.0, "window": []}, of_prompts((1.0, 3.0)), config, step=0)
    assert alone.bound == 2.0  # one prompt: no spread to go by yet


@pytest.mark.parametrize("unsafe, bound", [(0, 1 - 0.1 ** (1 / 6)), (6, 1.0), (3, None)])
def test_a_window_of_zeros_proves_no_more_than_its_length_can(unsafe, bound):
    """0/1 costs: six safe answers leave 32 % possible at 90 %, where a t bound would say 0."""
    config = replace(CONFIG, multiplier=MultiplierConfig(bound="ucb", confidence=0.9))
    costs = of_prompts(*[(1.0,)] * unsafe, *[(0.0,)] * (6 - unsafe))
    got = follow({"multiplier": 0.0, "window": []}, costs, config, step=0).bound
    exact = binomtest(unsafe, 6).proportion_ci(0.8, method="exact").high
    t = ttest_1samp([1.0] * unsafe + [0.0] * (6 - unsafe), 0, alternative="less").confidence_interval(0.9).high if unsafe == 3 else 0
    assert got == pytest.approx(max(exact, t), rel=1e-9) and (bound is None or got == pytest.approx(bound, rel=1e-9))


def test_the_multiplier_waits_and_the_window_fills():
    config = replace(CONFIG, multiplier=MultiplierConfig(initial=0.75, delay_steps=2))
    facts = {"multiplier": 0.75, "window": []}
    for number in range(3):
        facts = follow(facts, of_prompts((5.0,)), config, step=number)._asdict()
        assert (facts["multiplier"] == 0.75) is (number < 2)
    assert facts["window"] == [5.0] * 3 and facts["multiplier"] == pytest.approx(0.75 + 0.1 * 5.0)


# -- the step ------------------------------------------------------------------------------------------------------


def weights(state) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in state.networks.named_parameters() if not name.startswith("cost_head")}


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_with_a_slack_constraint_the_updates_are_ppos_to_the_bit(value):
    """Same seed, costs below the threshold: after two steps all weights and all of PPO's metrics are equal."""
    names = [each.name for each in fields(ppo.PPOConfig) if each.name != "algorithm"]
    plain = ppo.PPOConfig(**{name: getattr(CONFIG, name) for name in names})
    plain, bound = replace(plain, value=value), replace(CONFIG, value=value, threshold=100.0)
    loaded = load_trainable(plain.model, dtype=plain.dtype, device=plain.device, lora=plain.lora)
    one, other = begin_state(plain, loaded, ScaledJudge(FunctionJudge(first_letters))), state_of(bound)
    start = weights(one)
    for _ in range(2):
        row, row_bound = ppo.step(one, PROMPTS, plain).row, step(other, PROMPTS, bound).row
        assert row_bound["multiplier"] == 0.0
        assert row == {key: row_bound[key] for key in row}
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], start[name]) for name in ours)
    assert row["grad_norm"] > 0 and other.networks.cost_head.score.weight.abs().sum() > 0  # and the cost critic learned


def test_a_shared_critic_of_costs_moves_the_trunk_and_a_detached_one_does_not():
    """With the policy's and the value's losses at 0, only the critic's is left."""
    moved = {}
    for kind in ("detached", "shared"):
        config = replace(CONFIG, cost_critic=kind, cost_coef=1.0, epochs=3)
        state = state_of(config)
        state.networks.cost_head.score.weight.data.fill_(0.1)  # a head of zeros sends no gradient down
        before = weights(state)
        responses = answer(state.engine, PROMPTS, config.sampling(0))
        rollouts = score(state, PROMPTS, responses, config)
        signals = credit(
            rollouts,
            judge_all(state.judge, PROMPTS, responses),
            judge_all(state.extra["cost"], PROMPTS, responses),
            config,
            beta=0.0,
            multiplier=0.0,
        )
        still = signals.reward._replace(advantage_BT=torch.zeros_like(signals.reward.advantage_BT), return_BT=rollouts.value_BT)
        improve(state, rollouts, signals._replace(reward=still), config)
        after = weights(state)
        moved[kind] = [name for name in before if not torch.equal(before[name], after[name])]
        assert not torch.equal(
            state.networks.cost_head.score.weight, torch.full_like(state.networks.cost_head.score.weight, 0.1)
        )
    assert moved["detached"] == [] and any("mlp" in name for name in moved["shared"])


def test_the_critic_of_costs_begins_silent_and_learns():
    config = replace(CONFIG, cost_coef=1.0, epochs=4, optim=replace(CONFIG.optim, learning_rate=1e-2))
    state = state_of(config, cost=lambda prompts, responses: [3.0] * len(responses))
    responses = answer(state.engine, PROMPTS, config.sampling(0))
    rollouts = score(state, PROMPTS, responses, config)
    assert (rollouts.cost_value_BT == 0).all()
    signals = credit(
        rollouts,
        judge_all(state.judge, PROMPTS, responses),
        judge_all(state.extra["cost"], PROMPTS, responses),
        config,
        beta=0.0,
        multiplier=0.0,
    )
    for _ in range(6):
        improve(state, rollouts, signals, config)
    after = score(state, PROMPTS, responses, config)
    assert (after.cost_value_BT[rollouts.acted_BT] - 3.0).abs().mean() < 1.5


def test_dear_answers_become_rarer_when_they_cost_more_than_they_earn():
    """All rewards alike, a large multiplier: log-probabilities of answers follow minus their cost."""
    config = replace(CONFIG, epochs=2, minibatches=1, optim=replace(CONFIG.optim, learning_rate=1e-4))
    state = state_of(config)
    responses = answer(state.engine, PROMPTS, config.sampling(0))
    rollouts = score(state, PROMPTS, responses, config)._replace(
        stopped_B=torch.ones(6, dtype=torch.bool)
    )
    costs = of_prompts((2.0, -2.0), (2.0, -2.0), (2.0, -2.0))
    signals = credit(rollouts, of_prompts(*[(0.0, 0.0)] * 3), costs, config, beta=0.0, multiplier=5.0)
    before = rollouts.logp_BT.sum(1)
    improve(state, rollouts, signals, config)
    moved = (score(state, PROMPTS, responses, config).logp_BT.sum(1) - before).tolist()
    assert all(down < 0 for down in moved[0::2]) and all(up > 0 for up in moved[1::2]), moved


def test_the_ratio_is_one_before_the_first_update():
    config = replace(CONFIG, epochs=1, minibatches=1)
    row = step(state_of(config), PROMPTS, config).row
    assert row["clipped"] == 0 and row["kl_old"] == pytest.approx(0.0, abs=1e-9) and row["sampler_gap"] < 1e-5


@pytest.mark.parametrize("kind", ["detached", "shared"])
def test_the_token_budget_changes_no_update(kind):
    found = []
    for budget in (1, 10**6):
        config = replace(CONFIG, token_budget=budget, epochs=1, cost_critic=kind, multiplier=MultiplierConfig(initial=1.0))
        state = state_of(config)
        row = step(state, PROMPTS, config).row
        found.append((row, torch.cat([p.detach().flatten() for p in state.networks.parameters()])))
    assert found[0][0]["grad_norm"] == pytest.approx(found[1][0]["grad_norm"], rel=1e-4)
    assert found[0][0]["cost_value_loss"] == pytest.approx(found[1][0]["cost_value_loss"], rel=1e-4)
    assert float((found[0][1] - found[1][1]).norm()) < 0.01 * float(found[1][0]["lr"]) * len(found[0][1]) ** 0.5


def test_a_step_reports_its_costs_and_how_sure_it_is():
    config = replace(
        CONFIG, threshold=-1.0, responses_per_prompt=4, multiplier=MultiplierConfig(learning_rate=0.5, bound="ucb")
    )
    state = state_of(config)
    responses = answer(state.engine, PROMPTS, config.sampling(0))  # the step draws the same answers again
    values = low_tokens([], responses)
    row = step(state, PROMPTS, config).row
    unsafe = binomtest(sum(value > 0 for value in values), 12)
    interval = unsafe.proportion_ci(0.95, method="exact")
    assert 0 < unsafe.statistic < 1
    assert (row["unsafe"], row["unsafe_low"], row["unsafe_high"]) == pytest.approx(
        (unsafe.statistic, interval.low, interval.high), abs=1e-6
    )
    assert row["cost"] == pytest.approx(sum(values) / 12, abs=1e-5)
    means = [sum(values[at : at + 4]) / 4 for at in (0, 4, 8)]
    assert row["cost_bound"] == pytest.approx(
        ttest_1samp(means, 0, alternative="less").confidence_interval(0.95).high, abs=1e-5
    )
    assert row["multiplier"] == pytest.approx(0.5 * (row["cost_bound"] + 1.0), abs=1e-5)
    assert {"cost_value_loss", "cost_explained_variance", "value_loss", "explained_variance"} <= set(row)


def test_the_multiplier_and_its_window_go_on_from_step_to_step():
    """Two steps of three prompts: the second bound is over all six, and what it adds is added to what was there."""
    config = replace(CONFIG, threshold=-1.0, multiplier=MultiplierConfig(learning_rate=0.5))
    state, means, rows = state_of(config), [], []
    for number in range(2):
        responses = answer(state.engine, PROMPTS, config.sampling(number))
        values = low_tokens([], responses)
        means += [sum(values[at : at + 2]) / 2 for at in (0, 2, 4)]
        rows.append(step(state, PROMPTS, config).row)
        state.engine.refresh()
        assert rows[-1]["cost_bound"] == pytest.approx(sum(means) / len(means), abs=1e-5)
    assert 0 < rows[0]["multiplier"] < rows[1]["multiplier"]
    assert rows[1]["multiplier"] == pytest.approx(rows[0]["multiplier"] + 0.5 * (rows[1]["cost_bound"] + 1.0), abs=1e-5)


def test_the_policy_pays_the_price_that_this_step_set():
    """A multiplier that rises from 0 to its maximum in the first step, and one that stood there before: the same update."""
    found = []
    for initial, delay in ((0.0, 0), (2.0, 1)):
        rule = MultiplierConfig(initial=initial, maximum=2.0, learning_rate=100.0, delay_steps=delay)
        config = replace(CONFIG, threshold=-9.0, multiplier=rule)
        state = state_of(config)
        assert step(state, PROMPTS, config).row["multiplier"] == 2.0
        found.append(weights(state))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# -- the run -------------------------------------------------------------------------------------------------------


def test_costs_stay_on_their_own_scale_whatever_the_reward_is_put_to(tmp_path, cost_file):
    """`normalise_on` moves the reward's origin and leaves the cost's, whose sign means something."""
    config = replace(CONFIG, cost=f"python:{cost_file}:none", steps=1, normalise_on=3, reward="rule:length")
    rl(config, prompts=PROMPTS, folder=tmp_path / "r")
    (row,) = Run(tmp_path / "r").metrics()
    assert -1.006 <= row["cost"] <= -1.001 and row["unsafe"] == 0.0 and row["multiplier"] == 0.0


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(tmp_path, cost_file):
    """The multiplier, its window and the critic of costs come back too."""
    config = replace(
        CONFIG,
        cost=f"python:{cost_file}:low",
        steps=4,
        prompts_per_step=2,
        threshold=-1.0,
        lora=LoraConfig(rank=2),
        save=SaveConfig(every_steps=1),
        multiplier=MultiplierConfig(learning_rate=0.3, window=5, bound="ucb"),
    )

    def run(name: str, **more):
        return rl(config, prompts=PROMPTS, judge=FunctionJudge(first_letters), folder=tmp_path / name, **more).path

    def stop(what, done, total):
        if done == 3:
            raise Stopped("stopped")  # after step 3, before its checkpoint: step 3 is done again

    whole = run("whole")
    with pytest.raises(Stopped):
        run("cut", progress=stop)
    resumed = run("cut", resume=True)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    rows = [
        [{k: v for k, v in row.items() if k not in CLOCK_FIELDS} for row in Run(tmp_path / name).metrics()]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1] and len({row["multiplier"] for row in rows[0]}) == 4
    assert rows[0][-1]["cost_value_loss"] > 0


def test_the_algorithm_is_registered():
    assert ALGORITHMS["ppo_lagrangian"].config is PPOLagrangianConfig


def test_faults_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        bind(PPOLagrangianConfig, {"cost_coef": -1, "clip": 2.0, "kl_shaping": "cost", "multiplier": {"bound": "max"}})
    assert "kl_shaping must be one of 'both', 'reward'" in str(caught.value)
    assert "multiplier.bound must be one of 'mean', 'ucb'" in str(caught.value)
    with pytest.raises(ValueError) as caught:
        PPOLagrangianConfig(cost_coef=-1, clip=2.0)
    assert [line.split()[0] for line in str(caught.value).split("\n")] == ["clip", "cost_coef", "cost"]
    with pytest.raises(ValueError) as caught:
        MultiplierConfig(learning_rate=0, initial=20.0, window=1, confidence=0.05)
    assert [line.split()[0] for line in str(caught.value).split("\n")] == ["learning_rate", "initial", "window", "confidence"]
