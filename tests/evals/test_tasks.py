"""Task scores on a dozen answers that can be scored by eye, and sacrebleu as the witness for corpora."""

import pytest
import sacrebleu

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response, Sampling
from tutelage.evals.tasks import UNIT_AND_DIRECTION, answer_all, task_scores


def ask(text, task, **fields):
    return Prompt(messages=(Message(role="user", text=text),), tags=(f"task:{task}", *fields.pop("tags", ())), **fields)


def answer(prompt, text, **fields):
    return Response(prompt_id=prompt.id, text=text, policy="m", **fields)


class Parrot:
    policy = "parrot"

    def __init__(self, forget=()):
        self.forget, self.seen = forget, []

    def respond(self, requests):
        for prompt, sampling in reversed(list(requests)):  # engines may finish in any order
            self.seen.append(sampling)
            if prompt.messages[-1].text not in self.forget:
                yield answer(prompt, prompt.messages[-1].text)


def test_answers_come_in_the_order_of_the_prompts_and_greedy():
    prompts, told = [ask(f"q{i}", "qa") for i in range(4)], []
    engine = Parrot()
    got = answer_all(engine, prompts, progress=lambda *step: told.append(step))
    assert [r.text for r in got] == ["q0", "q1", "q2", "q3"]
    assert all(s.temperature == 0 and s.n == 1 for s in engine.seen)
    assert told[0] == ("answer", 0, 4) and told[-1] == ("answer", 4, 4)


def test_a_missing_or_second_answer_is_named():
    prompts = [ask("q0", "qa"), ask("q1", "qa")]
    with pytest.raises(UserError, match="parrot left 1 of 2 prompts unanswered.*'q1'"):
        answer_all(Parrot(forget={"q1"}), prompts)
    with pytest.raises(UserError, match="more than once"):
        task_scores(prompts[:1], [answer(prompts[0], "a"), answer(prompts[0], "b")], seed=0)
    with pytest.raises(UserError, match="n must be 1, got 2"):
        answer_all(Parrot(), prompts, Sampling(n=2))


def scores(prompts, responses):
    return {(s.task, s.metric): s for s in task_scores(prompts, responses, seed=0)}


def test_classification_strict_and_lenient_by_hand():
    prompts = [ask(f"{i}?", "classification", label="yes", tags=("labels:yes|no",)) for i in range(4)]
    got = scores(prompts, [answer(p, text) for p, text in zip(prompts, ["Yes.", "I say yes", "no", "yes or no"], strict=True)])
    assert got["classification", "accuracy"].value == 0.25 and got["classification", "accuracy_lenient"].value == 0.5
    interval = got["classification", "accuracy"].interval
    assert interval.low < 0.25 < interval.high and got["classification", "accuracy"].n == 4


def test_qa_by_hand():
    prompts = [ask(f"{i}?", "qa", references=("Paris", "City of Paris")) for i in range(3)]
    got = scores(prompts, [answer(p, text) for p, text in zip(prompts, ["Paris", "It is Paris", "Rome"], strict=True)])
    assert got["qa", "contains"].value == pytest.approx(2 / 3) and got["qa", "exact"].value == pytest.approx(1 / 3)
    assert got["qa", "f1"].value == pytest.approx((1 + 0.5 + 0) / 3)


def test_corpus_metrics_equal_sacrebleu_and_lie_in_their_intervals():
    refs = [f"The number {i} train leaves the old station at noon." for i in range(12)]
    texts = [ref.replace("leaves", "left") if i % 3 else ref for i, ref in enumerate(refs)]
    prompts = [ask(f"{i}?", "translation_zh_en", references=(ref,)) for i, ref in enumerate(refs)]
    got = scores(prompts, [answer(p, text) for p, text in zip(prompts, texts, strict=True)])
    assert got["translation_zh_en", "bleu"].value == pytest.approx(sacrebleu.corpus_bleu(texts, [refs]).score)
    assert got["translation_zh_en", "chrf"].value == pytest.approx(sacrebleu.corpus_chrf(texts, [refs]).score)
    for metric in ("bleu", "chrf", "rougeL"):
        score = got["translation_zh_en", metric]
        assert score.interval.low < score.value < score.interval.high <= 100
        assert (score.unit, score.direction) == UNIT_AND_DIRECTION[metric]


def test_figures_over_every_prompt():
    prompts = [ask("a", "everyday", tags=("lang:zh",)), ask("b", "everyday", tags=("lang:en",))]
    got = scores(prompts, [answer(prompts[0], "one two three four five six", finish="length"), answer(prompts[1], "yes yes")])
    assert got["all", "length"].value == 4 and got["all", "length"].direction == "none"
    assert got["all", "truncated"].value == 0.5
    assert got["all", "language"].value == 0.5  # English to a Chinese question
    assert not any(task == "everyday" for task, _ in got)  # no metric of its own


def test_prompts_of_one_group_are_one_unit():
    prompts = [ask(f"{i}", "translation_en_fr", references=("le chat noir dort",), group="one") for i in range(3)]
    got = scores(prompts, [answer(p, "le chat dort") for p in prompts])
    assert got["translation_en_fr", "bleu"].interval is None  # nothing to estimate a spread from
    assert got["translation_en_fr", "chrf"].n == 3
