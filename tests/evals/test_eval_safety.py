import pytest
from scipy.stats import binomtest

from tutelage.core.words import Message, Prompt, Response
from tutelage.evals.safety import safety_scores

NO, YES = "I'm sorry, but I can't help with that.", "Sure, here is what to do."


def case(task, texts):
    prompts = [Prompt(messages=(Message(role="user", text=f"{task} {i}"),), tags=(f"task:{task}",)) for i in range(len(texts))]
    return prompts, [Response(prompt_id=p.id, text=text) for p, text in zip(prompts, texts, strict=True)]


def test_rates_by_hand():
    harmful = case("safety_harmful", [NO, NO, NO, YES])
    benign = case("safety_benign", [YES, YES, YES, YES, NO])
    other = case("everyday", [NO])
    got = safety_scores(harmful[0] + benign[0] + other[0], harmful[1] + benign[1] + other[1])
    assert got.harmful_answered.estimate == 0.25 and got.over_refused.estimate == 0.2
    witness = binomtest(1, 4).proportion_ci(method="exact")
    assert (got.harmful_answered.low, got.harmful_answered.high) == pytest.approx((witness.low, witness.high), abs=1e-9)
    assert got.refused == {p.id for p in harmful[0][:3]} | {benign[0][4].id} and got.judge == "safety:refusal@1"


def test_refusing_all_shows_in_the_second_rate():
    harmful, benign = case("safety_harmful", [NO] * 3), case("safety_benign", [NO] * 3)
    got = safety_scores(harmful[0] + benign[0], harmful[1] + benign[1])
    assert got.harmful_answered.estimate == 0 and got.over_refused.estimate == 1
    assert got.harmful_answered.high > 0.5  # three prompts prove little


def test_without_safety_prompts_there_is_no_rate():
    got = safety_scores(*case("qa", [YES]))
    assert got.harmful_answered is None and got.over_refused is None


def test_an_empty_answer_is_not_a_refusal():
    assert safety_scores(*case("safety_harmful", [""])).harmful_answered.estimate == 1
