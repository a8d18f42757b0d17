"""PPO on language: credit by hand, the sampled policy is the trained one, and an update that moves the right way."""

from dataclasses import replace

import pytest
import torch
import toys

from tutelage.core.words import Judgement, Prompt, Response, Sampling
from tutelage.judges.rules import FunctionJudge
from tutelage.models.load import load
from tutelage.training.batch import Rollouts
from tutelage.training.networks import LoraConfig, load_trainable
from tutelage.training.on_policy import improve as improve_on
from tutelage.training.on_policy import place_scores
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo import PPOConfig, credit, improve, leave_one_out, step
from tutelage.training.rl import ScaledJudge, begin_state, rl
from tutelage.training.rollouts import answer, judge_all, score

GARBAGE = 99.0
CONFIG = PPOConfig(
    model="test",
    device="cpu",
    dtype="float32",
    steps=4,
    prompts_per_step=3,
    responses_per_prompt=2,
    max_tokens=6,
    normalise_on=0,
    epochs=1,
    minibatches=1,
    lora=LoraConfig(rank=0),
    optim=OptimConfig(learning_rate=1e-3, schedule="constant", warmup=0.0, betas=(0.9, 0.95), eps=1e-5),
)
PROMPTS = [toys.ask("hi"), toys.ask("a longer question"), toys.ask("?")]


def first_letters(prompts: list[Prompt], responses: list[Response]) -> list[float]:
    """1 for an answer whose first token is a byte below 128, else 0: half of all at first."""
    return [float(response.token_ids[0] < 128) for response in responses]


def state_of(config: PPOConfig = CONFIG, judge=None):
    loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora)
    return begin_state(config, loaded, ScaledJudge(judge or FunctionJudge(first_letters)))


def judged(*values: float) -> list[Judgement]:
    return [
        Judgement(judge="rule:hand", kind="rating", responses=(f"r{at}",), values=(value,)) for at, value in enumerate(values)
    ]


def rollouts_of(**changes) -> Rollouts:
    """Two answers of 3 and 2 tokens behind prompts of 2 and 1; garbage wherever the policy did not act."""
    acted_BT = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bool)
    spread = lambda first, second: torch.tensor(
        [[GARBAGE, GARBAGE, *first, GARBAGE], [GARBAGE, *second, GARBAGE, GARBAGE, GARBAGE]]
    )
    logp_BT, ref_BT = spread([-1.0, -2.0, -0.5], [-3.0, -0.25]), spread([-1.5, -1.0, -0.75], [-3.0, -1.25])
    values = {
        "token_BT": torch.full((2, 6), 7),
        "real_BT": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.bool),
        "acted_BT": acted_BT,
        "sampler_logp_BT": logp_BT,
        "logp_BT": logp_BT,
        "ref_logp_BT": ref_BT,
        "value_BT": spread([0.1, 0.2, 0.3], [-0.1, 0.4]),
        "entropy_BT": torch.zeros(2, 6),
        "group_B": torch.tensor([0, 1]),
        "stopped_B": torch.tensor([True, True]),
    }
    return Rollouts(**{**values, **changes})


# -- credit --------------------------------------------------------------------------------------------------------


def test_the_last_tokens_advantage_is_score_minus_kl_minus_value():
    """C14, exactly: A_EOS = score - beta * kl - V_EOS; before standardisation the return is A + V."""
    signal = credit(rollouts_of(), judged(1.0, 2.0), CONFIG, beta=0.1)
    kl = [-0.5 + 0.75, -0.25 + 1.25]  # logp - ref at the last tokens
    assert signal.return_BT[0, 4].item() == pytest.approx(1.0 - 0.1 * kl[0])
    assert signal.return_BT[1, 2].item() == pytest.approx(2.0 - 0.1 * kl[1])


def test_credit_by_hand():
    """GAE backwards at gamma 1, lambda 0.95, beta 0.1, over the first answer: kl .5, -1, .25; values .1, .2, .3."""
    signal = credit(rollouts_of(), judged(1.0, 2.0), CONFIG, beta=0.1)
    a_2 = 1.0 - 0.025 - 0.3  # 0.675
    a_1 = 0.1 + 0.3 - 0.2 + 0.95 * a_2  # reward -0.1 * -1
    a_0 = -0.05 + 0.2 - 0.1 + 0.95 * a_1
    b_1 = 2.0 - 0.1 - 0.4
    b_0 = 0.0 + 0.4 + 0.1 + 0.95 * b_1
    raw = torch.tensor([a_0, a_1, a_2, b_0, b_1])
    acted_BT = rollouts_of().acted_BT
    torch.testing.assert_close(signal.kl_BT[acted_BT], torch.tensor([0.5, -1.0, 0.25, 0.0, 1.0]))
    torch.testing.assert_close(signal.return_BT[acted_BT], raw + torch.tensor([0.1, 0.2, 0.3, -0.1, 0.4]))
    torch.testing.assert_close(
        signal.advantage_BT[acted_BT], (raw - raw.mean()) / raw.std(unbiased=False), rtol=1e-5, atol=1e-6
    )


def test_nothing_of_the_prompt_or_the_padding_gets_through():
    signal = credit(rollouts_of(), judged(1.0, 2.0), CONFIG, beta=0.1)
    other = {
        name: torch.where(rollouts_of().acted_BT, getattr(rollouts_of(), name), torch.nan)
        for name in ("logp_BT", "ref_logp_BT", "value_BT", "sampler_logp_BT")
    }
    for got, wanted in zip(credit(rollouts_of(**other), judged(1.0, 2.0), CONFIG, beta=0.1), signal, strict=True):
        assert torch.equal(got, wanted)
    for x_BT in signal[1:]:
        assert (x_BT[~rollouts_of().acted_BT] == 0).all()


def test_more_padding_gives_the_same_advantages():
    wide = {
        name: torch.nn.functional.pad(
            getattr(rollouts_of(), name), (0, 100), value=False if name in ("real_BT", "acted_BT") else 99
        )
        for name in ("token_BT", "real_BT", "acted_BT", "sampler_logp_BT", "logp_BT", "ref_logp_BT", "value_BT", "entropy_BT")
    }
    got = credit(rollouts_of(**wide), judged(1.0, 2.0), CONFIG, beta=0.1)
    assert torch.equal(got.advantage_BT[:, :6], credit(rollouts_of(), judged(1.0, 2.0), CONFIG, beta=0.1).advantage_BT)


def test_an_answer_that_never_ended_gets_the_penalty_whatever_the_judge_said():
    signal = credit(rollouts_of(stopped_B=torch.tensor([True, False])), judged(1.0, 2.0), CONFIG, beta=0.0)
    assert signal.score_B.tolist() == [1.0, -1.0]
    assert signal.reward_BT[1].tolist() == [0, 0, -1.0, 0, 0, 0]


def test_leave_one_out_is_the_score_minus_the_mean_of_the_others():
    """The identity of RLOO: A_i = k / (k - 1) * (R_i - mean R), in each group; alone in a group: 0."""
    score_B, group_B = torch.tensor([1.0, 5.0, 3.0, 2.0, -4.0, 7.0]), torch.tensor([0, 1, 0, 0, 1, 2])
    # group 0 (k = 3, mean 2): -1, 1, 0 times 3/2; group 1 (k = 2, mean 0.5): 4.5, -4.5 times 2
    assert leave_one_out(score_B, group_B).tolist() == [-1.5, 9.0, 1.5, 0.0, -9.0, 0.0]


def test_the_baseline_changes_what_is_credited_and_not_what_is_reported():
    together = rollouts_of(group_B=torch.tensor([0, 0]))
    signal = credit(together, judged(1.0, 2.0), replace(CONFIG, baseline="leave_one_out"), beta=0.0)
    assert signal.score_B.tolist() == [1.0, 2.0]
    assert signal.reward_BT[0, 4] == -1.0 and signal.reward_BT[1, 2] == 1.0
    with pytest.raises(ValueError, match="baseline leave_one_out compares the responses of a prompt"):
        replace(CONFIG, baseline="leave_one_out", responses_per_prompt=1)


def test_scores_are_clipped_before_they_are_placed():
    assert credit(rollouts_of(), judged(40.0, -40.0), replace(CONFIG, score_clip=5.0), beta=0.0).score_B.tolist() == [5.0, -5.0]


def test_scores_stand_at_the_last_acted_token_and_nowhere_else():
    acted_BT = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    wanted = [[0, 0, 1.0, 0], [0, 0, 0, 2.0], [0, 3.0, 0, 0], [0, 0, 0, 0]]  # the last row acted nowhere
    assert place_scores(torch.tensor([1.0, 2.0, 3.0, 4.0]), acted_BT).tolist() == wanted


def test_one_answer_of_one_token_is_no_nan():
    acted_BT = torch.tensor([[False, True]])
    zeros_BT = torch.zeros(1, 2)
    one = Rollouts(
        token_BT=torch.zeros(1, 2, dtype=torch.int64),
        real_BT=torch.ones(1, 2, dtype=torch.bool),
        acted_BT=acted_BT,
        sampler_logp_BT=zeros_BT,
        logp_BT=zeros_BT,
        ref_logp_BT=zeros_BT,
        value_BT=zeros_BT,
        entropy_BT=zeros_BT,
        group_B=torch.tensor([0]),
        stopped_B=torch.tensor([True]),
    )
    assert torch.isfinite(credit(one, judged(1.0), CONFIG, beta=0.1).advantage_BT).all()


# -- sampler and trainer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.3])
def test_the_ratio_is_one_before_the_first_update(temperature):
    """C8: max |ratio - 1| < 1e-5 in float32 between what was sampled and what is trained."""
    config = replace(CONFIG, temperature=temperature, max_tokens=12)
    state = state_of(config)
    state.networks.policy.base_model.norm.weight.data.mul_(5)  # random logits are almost flat: give temperature something to do
    responses = answer(state.engine, PROMPTS, config.sampling(0))
    rollouts = score(state, PROMPTS, responses, config)
    gap_BT = (rollouts.logp_BT - rollouts.sampler_logp_BT).exp() - 1
    assert rollouts.acted_BT.sum() > 20 and rollouts.logp_BT[rollouts.acted_BT].std() > 0.1
    assert gap_BT.abs().max() < 1e-5
    sums = improve(state, rollouts, credit(rollouts, judge_all(state.judge, PROMPTS, responses), config, beta=0.0), config)
    assert sums["ratio"] / sums["tokens"] == pytest.approx(1.0, abs=1e-5) and sums["clipped"] == 0


def test_the_sampled_ids_are_scored_and_not_their_text():
    """C3: invalid UTF-8 decodes to a replacement character, which encodes to other bytes."""
    prompt = PROMPTS[0]
    ids = (200, 201, 258)
    tokenizer = load("test", device="cpu").tokenizer
    response = Response(prompt_id=prompt.id, text=tokenizer.decode(ids[:2]), token_ids=ids, logps=(-1.0, -2.0, -3.0))
    assert tokenizer(response.text, add_special_tokens=False)["input_ids"] != list(ids[:2])
    rollouts = score(state_of(), [prompt], [response], CONFIG)
    assert rollouts.token_BT[rollouts.acted_BT].tolist() == list(ids)
    assert rollouts.sampler_logp_BT[rollouts.acted_BT].tolist() == [-1.0, -2.0, -3.0]


def test_the_end_token_is_acted_on_though_it_is_the_pad_token():
    """C1: in the model `test` pad is eos is id 258; the shorter row is padded and its own end still counts."""
    tokenizer = load("test", device="cpu").tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 258
    found = [
        Response(prompt_id=PROMPTS[0].id, text="a", token_ids=(97, 258), logps=(-1.0, -1.0)),
        Response(prompt_id=PROMPTS[0].id, text="abcd", index=1, token_ids=(97, 98, 99, 100, 258), logps=(-1.0,) * 5),
    ]
    rollouts = score(state_of(), PROMPTS[:1], found, CONFIG)
    assert rollouts.acted_BT.sum(1).tolist() == [2, 5] and rollouts.stopped_B.tolist() == [True, True]
    assert [row[mask][-1].item() for row, mask in zip(rollouts.token_BT, rollouts.acted_BT, strict=True)] == [258, 258]
    assert (rollouts.logp_BT[rollouts.acted_BT] < 0).all()


def test_a_stop_string_ends_an_answer_as_an_end_token_does():
    """C12: the penalty goes by how an answer ended, not by which id stands last."""
    state = state_of()
    state.networks.policy.get_output_embeddings().weight.data.zero_()  # every token alike: bytes come up that make text
    responses = list(state.engine.respond([(PROMPTS[0], Sampling(n=6, max_tokens=40, stop=tuple("abcdefghijklm")))]))
    by_string = [r for r in responses if r.finish == "stop" and r.token_ids[-1] != 258]
    assert by_string
    rollouts = score(state, PROMPTS[:1], responses, CONFIG)
    signal = credit(
        rollouts, judge_all(FunctionJudge(lambda ps, rs: [0.5] * len(rs)), PROMPTS[:1], responses), CONFIG, beta=0.0
    )
    assert [float(s) for s in signal.score_B] == [0.5 if r.finish == "stop" else -1.0 for r in responses]


# -- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4], ids=["frozen copy", "adapters off"])
def test_kl_is_zero_at_first_and_the_reference_stays_where_it_was(rank):
    config = replace(CONFIG, lora=LoraConfig(rank=rank))
    state = state_of(config)
    responses = answer(state.engine, PROMPTS, config.sampling(0))
    args = (state, PROMPTS, responses, config)
    before = score(*args)
    # full: the same weights in a second copy; LoRA: fresh adapters have B = 0
    torch.testing.assert_close(before.logp_BT, before.ref_logp_BT, rtol=0, atol=1e-6)
    for _ in range(3):
        step(state, PROMPTS, config)
    after = score(*args)
    torch.testing.assert_close(after.ref_logp_BT, before.ref_logp_BT, rtol=0, atol=1e-6)
    assert (after.logp_BT - after.ref_logp_BT).abs().max() > 1e-3


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_the_critic_begins_silent_and_learns(value):
    config = replace(CONFIG, value=value, value_coef=1.0, value_clip=None, epochs=4)
    state = state_of(config)
    responses = answer(state.engine, PROMPTS, config.sampling(0))
    judgements = [replace(j, values=tuple(3.0 for _ in j.values), id="") for j in judge_all(state.judge, PROMPTS, responses)]
    rollouts = score(state, PROMPTS, responses, config)
    assert (rollouts.value_BT == 0).all()
    signal = credit(rollouts, judgements, replace(config, missing_eos=3.0), beta=0.0)
    for _ in range(5):
        improve(state, rollouts, signal, config)
    after = score(state, PROMPTS, responses, config)
    acted = rollouts.acted_BT
    assert (after.value_BT[acted] - 3.0).abs().mean() < 1.5 < 3.0
    own = state.networks.value_trunk is not None
    assert own == (value == "separate")
    if own:  # a trunk of its own, in full: none of its tensors is the policy's
        theirs = {p.data_ptr() for p in state.networks.policy.parameters()}
        assert all(p.requires_grad and p.data_ptr() not in theirs for p in state.networks.value_trunk.parameters())


# -- improve -------------------------------------------------------------------------------------------------------


def chosen_logps(state, rollouts) -> torch.Tensor:
    with torch.no_grad():
        out = state.networks.forward(rollouts.token_BT, rollouts.acted_BT, temperature=1.0)
    return out.logp_BT.sum(1)


def test_improve_makes_better_answers_likelier_and_worse_ones_less():
    config = replace(CONFIG, epochs=2, optim=replace(CONFIG.optim, learning_rate=1e-4))
    state = state_of(config)
    responses = answer(state.engine, PROMPTS, config.sampling(0))
    rollouts = score(state, PROMPTS, responses, config)
    values = iter([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    judgements = [
        replace(j, values=tuple(next(values) for _ in j.values), id="") for j in judge_all(state.judge, PROMPTS, responses)
    ]
    rollouts = rollouts._replace(stopped_B=torch.ones(6, dtype=torch.bool))
    before = chosen_logps(state, rollouts)
    improve(state, rollouts, credit(rollouts, judgements, config, beta=0.0), config)
    moved = (chosen_logps(state, rollouts) - before).tolist()
    assert all(up > 0 for up in moved[0::2]) and all(down < 0 for down in moved[1::2]), moved


def test_the_token_budget_changes_no_update():
    found = []
    for budget in (1, 10**6):
        config = replace(CONFIG, token_budget=budget, epochs=1, minibatches=2)
        state = state_of(config)
        row = step(state, PROMPTS, config).row
        found.append((row, torch.cat([p.detach().flatten() for p in state.networks.parameters()])))
    assert found[0][0]["policy_loss"] == pytest.approx(found[1][0]["policy_loss"], abs=1e-5)
    # AdamW forgives a wrong scale; the norm of the gradient does not (C22)
    assert found[0][0]["grad_norm"] == pytest.approx(found[1][0]["grad_norm"], rel=1e-4)
    start = torch.cat([p.detach().flatten() for p in state_of().networks.parameters()])
    assert float((found[0][1] - found[1][1]).norm()) < 0.01 * float((found[0][1] - start).norm())


def test_epochs_stop_when_the_policy_has_moved_too_far():
    config = replace(CONFIG, epochs=10, kl_stop=1e-7, optim=replace(CONFIG.optim, learning_rate=1e-2))
    row = step(state_of(config), PROMPTS, config).row
    assert row["stopped_early"] == 1
    assert step(state_of(CONFIG), PROMPTS, CONFIG).row["stopped_early"] == 0


@pytest.mark.parametrize("kls, epochs", [((0.0, 0.02, 0.06, 0.12), 3), ((0.0, 0.029, 0.029, 0.029), 4), ((0.031, 0.0), 1)])
def test_it_is_the_epochs_own_kl_that_stops_them(kls, epochs):
    """kl_stop 0.02 allows 0.03: the third epoch's 0.06 stops, though the mean so far is 0.027."""
    state = state_of()
    responses = answer(state.engine, PROMPTS, CONFIG.sampling(0))
    rollouts = score(state, PROMPTS, responses, CONFIG)
    tokens, seen = float(rollouts.acted_BT.sum()), []

    def loss(part, new):
        at = int(sum(seen) // tokens)  # the epoch: how often all tokens have been seen
        seen.append(float(part.acted_BT.sum()))
        return part.share(0.0 * new.logp_BT), {"kl_old": kls[at] * seen[-1]}

    sums = improve_on(state, rollouts, CONFIG, loss, epochs=len(kls), minibatches=2, kl_stop=0.02)
    assert sums["tokens"] == epochs * tokens and sums["stopped_early"] == (epochs < len(kls))


@pytest.mark.parametrize("settings, said", [
    ({"kl_target": 0.0}, "kl_target must be > 0 nats a response"),
    ({"kl_target": -1.0}, "kl_target must be > 0"),
    ({"kl_target": 6.0, "beta": 0.0}, "beta 0 stays 0 whatever kl_target is"),
    ({"kl_target": 6.0, "kl_horizon": 5.0}, "kl_horizon must be at least the 6 responses of a step; got 5"),
    ({"kl_horizon": 500.0}, "kl_horizon belongs to kl_target, which is null"),
    ({"chunk": 0}, "chunk must be >= 1; got 0"),
    ({"value_clip": 0.0}, "value_clip must be > 0"),
    ({"ptx_rows": 4}, "ptx_rows belongs to ptx_coef above 0"),
])
def test_settings_that_do_nothing_or_harm_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        replace(CONFIG, prompts_per_step=3, responses_per_prompt=2, **settings)


# -- the run -------------------------------------------------------------------------------------------------------


def test_a_reward_that_is_no_number_stops_the_run_and_names_the_prompt(tmp_path):
    def broken(prompts, responses):
        return [float("nan") if prompt.messages[0].text == "?" else 1.0 for prompt in prompts]

    with pytest.raises(ValueError, match=r"nan .*'\?'"):
        rl(CONFIG, prompts=PROMPTS, judge=FunctionJudge(broken), folder=tmp_path / "r")


def test_faults_are_reported_together():
    with pytest.raises(ValueError) as caught:
        PPOConfig(
            steps=0,
            clip=2.0,
            temperature=0.0,
            gamma=1.5,
            dual_clip=0.5,
            prompts_per_step=1,
            responses_per_prompt=1,
            minibatches=2,
        )
    assert len(str(caught.value).split("\n")) == 6
