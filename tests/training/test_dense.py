"""Rewards on spans as rewards on tokens: where they stand, what is credited, and several rewards with weights."""

from dataclasses import replace

import pytest
import torch
import toys
import yaml

from tutelage.core.config import bind, to_dict
from tutelage.core.errors import ConfigError, UserError
from tutelage.core.words import Judgement, Response, Span
from tutelage.data.spans import read_spans
from tutelage.judges.ensemble import NormalisedSum, scale_of
from tutelage.judges.rules import FunctionJudge
from tutelage.judges.spans import RepetitionSpans, SpanJudge, StepJudge, sentences_of
from tutelage.models.tiny import byte_tokenizer
from tutelage.store.runs import Run
from tutelage.training import a2c, ppo, rloo
from tutelage.training.dense import span_rewards, step_rewards, token_rewards
from tutelage.training.networks import LoraConfig, load_trainable
from tutelage.training.on_policy import RewardPart
from tutelage.training.optim import OptimConfig
from tutelage.training.rl import ScaledJudge, begin_state, judge_by_name, judge_of, rl
from tutelage.training.rollouts import answer, judge_all, score

TOKENIZER = byte_tokenizer()
END = 258
PROMPTS = [toys.ask("hi"), toys.ask("a longer question"), toys.ask("?")]
HERE = {"model": "test", "device": "cpu", "dtype": "float32"}
SMALL = {
    "steps": 2,
    "prompts_per_step": 3,
    "responses_per_prompt": 2,
    "max_tokens": 6,
    "normalise_on": 0,
    "lora": LoraConfig(rank=0),
    "optim": OptimConfig(learning_rate=1e-3, schedule="constant", warmup=0.0, eps=1e-5),
}
CONFIG = ppo.PPOConfig(**HERE, **SMALL, epochs=1, minibatches=1)


def sampled(text: str, *, index: int = 0, ids=None) -> Response:
    ids = tuple(ids or [*text.encode(), END])
    return Response(prompt_id=PROMPTS[0].id, text=text, index=index, token_ids=ids, logps=(-1.0,) * len(ids))


def said(*spans: Span, of=()) -> Judgement:
    return Judgement(judge="rule:hand", kind="spans", responses=tuple(r.id for r in of), values=(0.0,) * len(of), spans=spans)


def span(response: Response, start: int, end: int, value: float) -> Span:
    return Span(response=response.id, start=start, end=end, label="x", value=value)


def acted_of(*responses: Response, first: int = 2, pad: int = 1) -> torch.Tensor:
    width = first + len(responses) + max(len(r.token_ids) for r in responses) + pad
    acted_BT = torch.zeros(len(responses), width, dtype=torch.bool)
    for row, response in enumerate(responses):
        acted_BT[row, first + row : first + row + len(response.token_ids)] = True
    return acted_BT


# -- characters -> tokens ------------------------------------------------------------------------------------------


def test_a_span_stands_at_the_last_token_that_it_covers():
    one, two = sampled("abcd"), sampled("é中!", index=1)  # 2 + 3 + 1 bytes
    acted_BT = acted_of(one, two)
    marks = said(
        span(one, 0, 2, 1.0),
        span(one, 1, 2, 0.5),
        span(one, 2, 4, -2.0),
        span(two, 0, 1, 3.0),
        span(two, 1, 3, 4.0),
        of=(one, two),
    )
    found = span_rewards(TOKENIZER, [one, two], [marks], acted_BT)
    wanted = torch.zeros(acted_BT.shape)
    wanted[0, 2 + 1] = 1.5  # both spans that end behind "b"
    wanted[0, 2 + 3] = -2.0  # "d", not the end token behind it
    wanted[1, 3 + 1] = 3.0  # the second byte of é
    wanted[1, 3 + 5] = 4.0  # "!"
    assert torch.equal(found, wanted)


def test_spans_hold_where_encoding_the_text_again_would_not():
    """C3: sampled bytes that are no UTF-8 decode to replacement characters, three bytes each when encoded."""
    odd = sampled("\ufffd\ufffdok", ids=[200, 201, *b"ok", END])
    found = span_rewards(TOKENIZER, [odd], [said(span(odd, 2, 3, 1.0), of=(odd,))], acted_of(odd))
    assert found.nonzero().tolist() == [[0, 2 + 2]]


def test_a_stop_string_that_was_cut_off_is_no_part_of_the_text_and_changes_no_place():
    cut = replace(sampled("ab###"), text="ab")
    assert span_rewards(TOKENIZER, [cut], [said(span(cut, 0, 2, 1.0), of=(cut,))], acted_of(cut)).nonzero().tolist() == [[0, 3]]
    with pytest.raises(UserError, match="the span 0 to 3 does not lie inside response .* of 2 characters"):
        span_rewards(TOKENIZER, [cut], [said(span(cut, 0, 3, 1.0), of=(cut,))], acted_of(cut))


def test_a_span_of_a_response_that_was_not_asked_about_is_refused():
    one, two = sampled("a"), sampled("b", index=1)
    with pytest.raises(UserError, match="rule:hand gave a span for response .*, which it was not asked about"):
        span_rewards(TOKENIZER, [one], [said(span(two, 0, 1, 1.0), of=(two,))], acted_of(one))


def test_step_rewards_stand_at_the_marks():
    one = sampled("2+2\n=4")
    found = step_rewards(TOKENIZER, [one], [[0.5, -1.0]], acted_of(one))
    assert {tuple(at): found[tuple(at)].item() for at in found.nonzero().tolist()} == {(0, 2 + 3): 0.5, (0, 2 + 5): -1.0}
    with pytest.raises(UserError, match="2 steps end with .* but 1 values"):
        step_rewards(TOKENIZER, [one], [[0.5]], acted_of(one))
    assert step_rewards(TOKENIZER, [one], [[0.5, -1.0]], acted_of(one), mark="=").nonzero().tolist() == [[0, 2 + 4], [0, 2 + 5]]


def test_the_values_of_all_spans_arrive_whatever_the_tokens():
    """The sum over tokens is the sum over spans: nothing is lost, doubled or put on another row."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: int(torch.randint(n, (), generator=generator))
    responses, marks, wanted = [], [], []
    for index in range(20):
        text = "".join("aé中😀 \n"[draw(6)] for _ in range(1 + draw(12)))
        responses.append(sampled(text, index=index))
        starts = [draw(len(text)) for _ in range(draw(4))]
        marks += [span(responses[-1], s, s + 1 + draw(len(text) - s), 1.0 + draw(9)) for s in starts]
        wanted.append(sum(m.value for m in marks if m.response == responses[-1].id))
    acted_BT = acted_of(*responses)
    found = span_rewards(TOKENIZER, responses, [said(*marks, of=responses)], acted_BT)
    assert found.sum(1).tolist() == wanted and not found[~acted_BT].any()


# -- credit --------------------------------------------------------------------------------------------------------


def rollouts_by_hand(tmp=None, **changes):
    """One answer "abc" + end behind two prompt tokens, values .1 .2 .3 .4, no KL; garbage elsewhere."""
    acted_BT = torch.tensor([[False, False, True, True, True, True, False]])
    value_BT = torch.where(acted_BT, torch.tensor([[9.0, 9.0, 0.1, 0.2, 0.3, 0.4, 9.0]]), 99.0)
    zeros_BT = torch.zeros(1, 7)
    given = dict(
        token_BT=torch.zeros(1, 7, dtype=torch.int64),
        real_BT=torch.ones(1, 7, dtype=torch.bool),
        acted_BT=acted_BT,
        sampler_logp_BT=zeros_BT,
        logp_BT=zeros_BT,
        ref_logp_BT=zeros_BT,
        value_BT=value_BT,
        entropy_BT=zeros_BT,
        group_B=torch.tensor([0]),
        stopped_B=torch.tensor([True]),
    )
    return ppo.Rollouts(**{**given, **changes})


@pytest.mark.parametrize("module", [ppo, a2c], ids=["ppo", "a2c"])
def test_credit_of_dense_rewards_by_hand(module):
    """r = [0, 2, 0, 1]: an answer worth 3, of which a span earns 2 at the second token; the rest stands at the last."""
    one = sampled("abc")
    judgement = Judgement(judge="rule:hand", kind="rating", responses=(one.id,), values=(3.0,), spans=(span(one, 0, 2, 2.0),))
    dense_BT = span_rewards(TOKENIZER, [one], [judgement], rollouts_by_hand().acted_BT)
    config = replace(CONFIG, lam=0.5) if module is ppo else a2c.A2CConfig(**HERE, **SMALL, lam=0.5)
    signal = module.credit(rollouts_by_hand(dense_BT=dense_BT), [judgement], config, beta=0.0)
    assert signal.reward_BT[0].tolist() == [0, 0, 0, 2.0, 0, 1.0, 0] and signal.score_B.tolist() == [3.0]
    a_3 = 1.0 - 0.4
    a_2 = 0.0 + 0.4 - 0.3 + 0.5 * a_3
    a_1 = 2.0 + 0.3 - 0.2 + 0.5 * a_2
    a_0 = 0.0 + 0.2 - 0.1 + 0.5 * a_1
    wanted = torch.tensor([a_0, a_1, a_2, a_3]) + torch.tensor([0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(signal.return_BT[0, 2:6], wanted)


def test_without_credit_for_tokens_an_answer_is_worth_its_whole_value():
    one = sampled("abc")
    judgement = Judgement(judge="rule:hand", kind="rating", responses=(one.id,), values=(3.0,), spans=(span(one, 0, 2, 2.0),))
    assert ppo.credit(rollouts_by_hand(), [judgement], CONFIG, beta=0.0).score_B.tolist() == [3.0]
    assert token_rewards(torch.tensor([3.0]), rollouts_by_hand())[0].tolist() == [0, 0, 0, 0, 0, 3.0, 0]


@pytest.mark.parametrize("module", [ppo, a2c], ids=["ppo", "a2c"])
@pytest.mark.parametrize("changes, worth", [
    ({"score_clip": 1.0}, 1.0),  # of the whole value, which is 3
    ({"length_penalty": 0.25}, 2.0),  # four tokens
    ({"missing_eos": -1.0, "cut": True}, -1.0),
    ({"missing_eos": None, "cut": True}, 3.0),
])
def test_whatever_its_spans_earn_an_answer_is_paid_its_score(module, changes, worth):
    """The span keeps its 2 at its token; what is left of the score stands at the end."""
    one = sampled("abc")
    judgement = Judgement(judge="rule:hand", kind="rating", responses=(one.id,), values=(3.0,), spans=(span(one, 0, 2, 2.0),))
    dense_BT = span_rewards(TOKENIZER, [one], [judgement], rollouts_by_hand().acted_BT)
    changes = dict(changes)
    rollouts = rollouts_by_hand(dense_BT=dense_BT, stopped_B=torch.tensor([not changes.pop("cut", False)]))
    config = replace(CONFIG if module is ppo else a2c.A2CConfig(**HERE, **SMALL), **changes)
    signal = module.credit(rollouts, [judgement], config, beta=0.0)
    assert signal.reward_BT[0].tolist() == [0, 0, 0, 2.0, 0, worth - 2.0, 0] and signal.score_B.tolist() == [worth]


def test_after_normalisation_too_an_answer_that_never_ends_earns_less_than_one_that_does():
    """Steps of +1 where the mean answer has five of them: the mean taken off a whole answer is not lost on one cut off."""
    whole, cut = sampled("1\n2\n3\n4\n5"), sampled("1\n2\n3\n4\n5", index=1)
    judge = ScaledJudge(StepJudge(lambda prompts, steps: [[1.0] * len(each) for each in steps]), bias=5.0, gain=1.0)
    responses = [whole, cut]
    judgements = judge.judge([(PROMPTS[0], responses)])
    acted_BT = acted_of(*responses)
    zeros_BT, dense_BT = torch.zeros(acted_BT.shape), span_rewards(TOKENIZER, responses, judgements, acted_BT)
    rollouts = rollouts_by_hand(token_BT=zeros_BT.long(), real_BT=acted_BT, acted_BT=acted_BT, sampler_logp_BT=zeros_BT,
                                logp_BT=zeros_BT, ref_logp_BT=zeros_BT, value_BT=zeros_BT, entropy_BT=zeros_BT,
                                group_B=torch.tensor([0, 0]), stopped_B=torch.tensor([True, False]), dense_BT=dense_BT)
    signal = ppo.credit(rollouts, judgements, CONFIG, beta=0.0)
    assert dense_BT.sum(1).tolist() == [5.0, 5.0] and signal.reward_BT.sum(1).tolist() == [0.0, -1.0]


def test_a_penalty_for_every_token_above_the_target():
    judgement = Judgement(judge="rule:hand", kind="rating", responses=("r",), values=(1.0,))
    score_of = lambda **more: ppo.credit(rollouts_by_hand(), [judgement], replace(CONFIG, **more), beta=0.0).score_B.item()
    assert score_of(length_penalty=0.25) == 0.0  # four tokens, the end token among them
    assert score_of(length_penalty=0.25, length_target=3) == 0.75
    assert score_of(length_penalty=0.25, length_target=9) == 1.0
    assert score_of(length_penalty=0.25, score_clip=0.5) == -0.5  # after the clip
    cut = rollouts_by_hand(stopped_B=torch.tensor([False]))
    assert (
        ppo.credit(cut, [judgement], replace(CONFIG, length_penalty=0.25), beta=0.0).score_B.item() == -1.0
    )  # missing_eos alone
    with pytest.raises(ValueError, match="length_target without length_penalty does nothing"):
        replace(CONFIG, length_target=3)


# -- a step --------------------------------------------------------------------------------------------------------


def first_half(prompts, responses):
    """One span over the first half of every answer that has two characters, worth half a point a plain character."""
    return [[(0, len(r.text) // 2, value)] if value else [] for r, value in zip(responses, worth(responses), strict=True)]


def worth(responses):
    return [0.5 * sum(letter.isascii() for letter in r.text) * (len(r.text) > 1) for r in responses]


def state_of(config, judge):
    loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora)
    return begin_state(config, loaded, ScaledJudge(judge))


def test_what_was_sampled_is_what_is_rewarded():
    """Over real samples of bytes: each answer's dense rewards add up to what its judge said, before its last token."""
    state = state_of(CONFIG, SpanJudge(first_half))
    responses = answer(state.engine, PROMPTS, replace(CONFIG.sampling(0), max_tokens=12))
    judgements = judge_all(state.judge, PROMPTS, responses)
    rollouts = score(state, PROMPTS, responses, CONFIG, judgements=judgements)
    assert any(worth(responses)) and [value for j in judgements for value in j.values] == worth(responses)
    assert rollouts.dense_BT.sum(1).tolist() == worth(responses)
    assert not rollouts.dense_BT[~rollouts.acted_BT].any()
    assert score(state, PROMPTS, responses, CONFIG).dense_BT is None


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "rloo"])
def test_a_run_with_a_judge_of_spans_logs_the_whole_reward(tmp_path, algorithm):
    config = {"ppo": CONFIG, "a2c": a2c.A2CConfig(**HERE, **SMALL), "rloo": rloo.RLOOConfig(**HERE, **SMALL)}[algorithm]
    rl(config, prompts=PROMPTS, judge=SpanJudge(first_half), folder=tmp_path / "r")
    rows = Run(tmp_path / "r").metrics()
    responses = answer(state_of(config, SpanJudge(first_half)).engine, PROMPTS, config.sampling(0))  # the first step's
    assert rows[0]["reward"] == pytest.approx(sum(worth(responses)) / len(responses), abs=1e-5) and rows[0]["reward"] > 0
    if algorithm == "rloo":
        assert all("reward/spans" not in row for row in rows)
    else:
        assert all(row["reward/spans"] == pytest.approx(row["reward"], abs=1e-5) for row in rows)


def test_spans_are_normalised_with_their_answers(tmp_path):
    config = replace(CONFIG, normalise_on=3, steps=1)
    state = state_of(config, SpanJudge(first_half))
    responses = answer(state.engine, PROMPTS, replace(config.sampling(0), n=1, step=2**31))
    bias, gain = scale_of(worth(responses))
    assert gain != 1.0
    first = worth(answer(state.engine, PROMPTS, config.sampling(0)))
    mean = sum(first) / len(first)
    rl(config, prompts=PROMPTS, judge=SpanJudge(first_half), folder=tmp_path / "r")
    row = Run(tmp_path / "r").metrics()[0]
    assert row["reward/spans"] == pytest.approx(mean * gain, abs=1e-4)
    assert row["reward"] == pytest.approx((mean - bias) * gain, abs=1e-4)


def test_a_span_that_is_not_finite_stops_the_run(tmp_path):
    class Bad:
        id = "bad"

        def judge(self, items):
            return [
                Judgement(
                    judge="bad",
                    kind="spans",
                    responses=tuple(r.id for r in rs),
                    values=(0.0,) * len(rs),
                    spans=(Span(response=rs[0].id, start=0, end=1, label="", value=float("inf")),),
                )
                for _, rs in items
            ]

    with pytest.raises(UserError, match="a reward must be a finite number"):
        rl(CONFIG, prompts=PROMPTS, judge=Bad(), folder=tmp_path / "r")


def test_the_token_budget_changes_no_update_of_dense_rewards(tmp_path):
    norms = []
    for budget in (1, 10**6):
        rl(
            replace(CONFIG, token_budget=budget, steps=1),
            prompts=PROMPTS,
            judge=SpanJudge(first_half),
            folder=tmp_path / str(budget),
        )
        norms.append([row["grad_norm"] for row in Run(tmp_path / str(budget)).metrics()])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


# -- rewards by name -----------------------------------------------------------------------------------------------


def test_judges_of_spans_by_name(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def spans(prompts, responses):\n    return [[(0, 1, 1.0)] for r in responses]\n\n"
        "def steps(prompts, steps):\n    return [[float(len(s)) for s in each] for each in steps]\n"
    )
    by_span, by_step = (
        judge_by_name(f"python-spans:{tmp_path}/mine.py:spans"),
        judge_by_name(f"python-steps:{tmp_path}/mine.py:steps"),
    )
    assert isinstance(by_span, SpanJudge) and isinstance(by_step, StepJudge)
    items = [(PROMPTS[0], [sampled("a\nbc")])]
    assert [s.value for s in by_span.judge(items)[0].spans] == [1.0]
    assert [s.value for s in by_step.judge(items)[0].spans] == [2.0, 2.0]
    assert isinstance(judge_by_name("rule:repetition-spans"), RepetitionSpans)


# -- several rewards -----------------------------------------------------------------------------------------------


def low(prompts, responses):
    return [float(sum(token < 128 for token in r.token_ids)) for r in responses]


def long(prompts, responses):
    return [100.0 * len(r.token_ids) for r in responses]


def write_rewards(folder):
    (folder / "mine.py").write_text(
        "def low(prompts, responses):\n    return [float(sum(t < 128 for t in r.token_ids)) for r in responses]\n\n"
        "def long(prompts, responses):\n    return [100.0 * len(r.token_ids) for r in responses]\n"
    )
    return {
        "low": {"reward": f"python:{folder}/mine.py:low", "weight": 0.7},
        "long": {"reward": f"python:{folder}/mine.py:long"},
    }


def test_rewards_are_read_from_a_recipe_and_every_fault_is_named(tmp_path):
    config = bind(ppo.PPOConfig, {"rewards": write_rewards(tmp_path)})
    assert config.rewards["low"].weight == 0.7 and config.rewards["long"] == RewardPart(
        reward=f"python:{tmp_path}/mine.py:long"
    )
    assert (
        bind(ppo.PPOConfig, to_dict(config)) == config == bind(ppo.PPOConfig, yaml.safe_load(yaml.safe_dump(to_dict(config))))
    )
    assert config.reward_names() == tuple(part.reward for part in config.rewards.values())
    with pytest.raises(ConfigError) as caught:
        bind(ppo.PPOConfig, {"rewards": {"a": {"reward": "rule:length", "wieght": 1}, "b": {}}})
    assert 'unknown key "wieght" in rewards.a; did you mean "weight"' in str(caught.value)
    assert 'missing key "rewards.b.reward"' in str(caught.value)
    part = RewardPart(reward="rule:length")
    for more, message in [
        ({"reward": "rule:repetition", "rewards": {"a": part}}, "give reward or rewards, not both"),
        ({"rewards": {"a b": part}}, "named by letters, digits and underscores"),
        ({"rewards": {"spans": part}}, "and not 'spans'"),
        ({"rewards": {"a": replace(part, weight=0.0)}}, r"rewards.a.weight must be a finite number other than 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ppo.PPOConfig(**more)


def test_several_rewards_are_normalised_weighed_and_reported_one_by_one(tmp_path):
    config = replace(
        CONFIG,
        normalise_on=3,
        missing_eos=None,
        score_clip=None,
        rewards=bind(ppo.PPOConfig, {"rewards": write_rewards(tmp_path)}).rewards,
    )
    rl(config, prompts=PROMPTS, folder=tmp_path / "r")
    for row in Run(tmp_path / "r").metrics():
        assert row["reward"] == pytest.approx(0.7 * row["reward/low"] + row["reward/long"], abs=1e-4)
    assert Run(tmp_path / "r").manifest["parents"] == ["test", *config.reward_names(), ""]
    # by hand: the scales are those of the reference's answers
    state = state_of(config, judge_of(config))
    responses = answer(state.engine, PROMPTS, replace(config.sampling(0), n=1, step=2**31))
    values = torch.tensor(low(None, responses))
    first = answer(state.engine, PROMPTS, config.sampling(0))
    spread = values.std(unbiased=False).item()
    wanted = (torch.tensor(low(None, first)).mean().item() - values.mean().item()) / (spread if spread > 1e-6 else 1.0)
    assert Run(tmp_path / "r").metrics()[0]["reward/low"] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("dense", [False, True], ids=["several", "spans"])
def test_a_run_that_was_cut_and_resumed_ends_with_the_same_bits(tmp_path, dense):
    class Enough(Exception):
        pass

    def stop(what, done, total):
        if done == 2:
            raise Enough

    config = replace(CONFIG, steps=3, normalise_on=3, save=replace(CONFIG.save, every_steps=1))
    judge = SpanJudge(first_half) if dense else None
    if not dense:
        config = replace(config, rewards=bind(ppo.PPOConfig, {"rewards": write_rewards(tmp_path)}).rewards)
    whole = rl(config, prompts=PROMPTS, judge=judge, folder=tmp_path / "whole")
    with pytest.raises(Enough):
        rl(config, prompts=PROMPTS, judge=judge, folder=tmp_path / "cut", progress=stop)
    assert sorted(p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()) == ["000001"]
    judge = SpanJudge(first_half) if dense else None  # a fresh one: nothing of it may be remembered but what was saved
    again = rl(config, prompts=PROMPTS, judge=judge, folder=tmp_path / "cut", resume=True)
    assert (again.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    apart = ("time", "seconds", "samples_per_second", "rss_gb")
    rows = [
        [{k: v for k, v in row.items() if k not in apart} for row in Run(tmp_path / name).metrics()]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 3


def test_the_judge_of_several_rewards_is_made_of_the_named_ones():
    judge = judge_of(
        replace(CONFIG, rewards={"a": RewardPart(reward="rule:length"), "b": RewardPart(reward="rule:repetition", weight=2.0)})
    )
    assert (
        isinstance(judge, NormalisedSum) and judge.names == ("a", "b") and [weight for _, weight in judge.members] == [1.0, 2.0]
    )
    assert judge_of(CONFIG).id == "rule:length@1"
    assert isinstance(FunctionJudge(low), FunctionJudge)


# -- people's spans ------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_every_span_of_the_fine_grained_set_becomes_a_token_reward(shared_data):
    """FineGrainedRLHF, 362 answers: the rewards of an answer add up to its number of errors, each at a token of its own end."""
    answers = read_spans(shared_data / "preference" / "finegrained_qa_feedback.jsonl.gz")
    assert len(answers) == 362
    responses = [replace(each.response, token_ids=(*each.response.text.encode(), END), logps=None) for each in answers]
    marked = [each for each in answers if each.spans]
    assert len(marked) > 300
    judgements = [each.judgement("human:finegrained") for each in answers]
    found = span_rewards(TOKENIZER, responses, judgements, acted_of(*responses, first=1))
    assert found.sum(1).tolist() == [-float(len(each.spans)) for each in answers]
    for row, each in enumerate(answers):
        columns = found[row].nonzero()[:, 0] - 1 - row  # positions in the response
        wanted = {len(each.response.text[: s.end].encode()) - 1 for s in each.spans}  # the last byte of what the span covers
        assert set(columns.tolist()) == wanted
    # most errors are whole sentences or clauses: our sentences see them
    touched = sum(
        any(s.start < end and start < s.end for start, end in sentences_of(each.response.text))
        for each in marked
        for s in each.spans
    )
    assert touched == sum(len(each.spans) for each in marked)
