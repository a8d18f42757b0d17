"""Reward models of spans: which token is judged, which label a sentence gets, and where the loss looks."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
import toys

from tutelage.core.errors import UserError
from tutelage.core.words import Response, Span
from tutelage.data.spans import Spanned, read_spans, spanned
from tutelage.judges.span_model import SpanModelJudge, marked, token_logits
from tutelage.models.tiny import byte_tokenizer
from tutelage.text.chat import render_prompt
from tutelage.text.mask import answer_row
from tutelage.training.loop import LoopConfig
from tutelage.training.rl import judge_by_name
from tutelage.training.span_reward import (
    SpanRewardConfig,
    SpanRewardTask,
    items_of,
    label_of,
    load_token_classifier,
    span_reward,
)

TOKENIZER = byte_tokenizer()
PROMPT = toys.ask("Why?")
CONFIG = SpanRewardConfig(model="test", device="cpu", dtype="float32", loop=LoopConfig(max_steps=1, rows_per_step=4))
LABELS = ("none", "bad", "worse")


def given(text: str, *spans: tuple[int, int, str]) -> Spanned:
    response = Response(prompt_id=PROMPT.id, text=text)
    return Spanned(
        PROMPT, response, tuple(Span(response=response.id, start=s, end=e, label=label, value=-1.0) for s, e, label in spans)
    )


SOME = [given("One. Two is long.", (0, 4, "bad")), given("Só, 好的。是"), given("A! B!", (3, 5, "worse"), (0, 2, "bad"))]


def test_sentences_are_judged_at_their_last_token():
    read = marked(TOKENIZER, PROMPT, "One. 好的。是", max_tokens=512)
    first = len(render_prompt(TOKENIZER, PROMPT))
    assert read.row == answer_row(TOKENIZER, PROMPT, "One. 好的。是")
    assert [at - first for at in read.at] == [3, 5 + 9 - 1, 5 + 9 + 3 - 1]
    short = marked(TOKENIZER, PROMPT, "One. Two is long.", max_tokens=10)  # the prompt goes first, then the answer's end
    assert short.sentences == [(0, 4)] and short.at == [3] and len(short.row.token_ids) == 10
    assert marked(TOKENIZER, PROMPT, "", max_tokens=64).sentences == []


@pytest.mark.parametrize(
    "spans, label",
    [
        ([], "none"),
        ([(20, 30, "bad")], "none"),
        ([(10, 12, "bad")], "none"),  # touches at its end only
        ([(9, 12, "bad")], "bad"),
        ([(0, 3, "bad"), (3, 10, "worse")], "worse"),
    ],
)
def test_a_sentence_takes_the_label_that_covers_most_of_it(spans, label):
    assert label_of((0, 10), [Span(response="r", start=s, end=e, label=name) for s, e, name in spans]) == label


def test_labels_of_answers():
    items = items_of(TOKENIZER, [*SOME, given("")], LABELS, CONFIG)
    assert [item.labels for item in items] == [[1, 0], [0, 0], [1, 2]]  # the empty answer is left out
    with pytest.raises(UserError, match="labelled 'worse', and the labels are none, bad"):
        items_of(TOKENIZER, SOME, ("none", "bad"), CONFIG)


def test_the_loss_is_the_cross_entropy_at_the_ends_of_sentences_and_nowhere_else():
    """Witness: log-softmax answer by answer, unpadded; padding, order and micro-batches change nothing."""
    model, _, _ = load_token_classifier(CONFIG, LABELS)
    items = items_of(TOKENIZER, SOME, LABELS, CONFIG)
    wanted = 0.0
    for item in items:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([item.marked.row.token_ids])).logits[0].log_softmax(-1)
        wanted -= sum(logp[at, label].item() for at, label in zip(item.marked.at, item.labels, strict=True))
    grads = []
    for budget in (1, 10**6):
        task = SpanRewardTask(model, items, (), replace(CONFIG, loop=replace(CONFIG.loop, token_budget=budget)))
        model.zero_grad()
        micros = list(task.micro([2, 0, 1]))
        for micro in micros:
            micro.loss.backward()
        assert len(micros) == (3 if budget == 1 else 1)
        assert sum(micro.sums["loss"] for micro in micros) == pytest.approx(wanted, rel=1e-5)
        assert float(sum(micro.loss.detach() for micro in micros)) == pytest.approx(wanted / 6, rel=1e-5)
        grads.append(model.score.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_a_judge_reads_one_minus_twice_the_probability_of_an_error():
    model, tokenizer, _ = load_token_classifier(CONFIG, LABELS)
    judge = SpanModelJudge(model.eval(), tokenizer, id="m")
    read = [marked(tokenizer, PROMPT, each.response.text, max_tokens=512) for each in SOME]
    found = judge.judge([(PROMPT, [replace(each.response, id=f"r{at}") for at, each in enumerate(SOME)])])[0]
    at = 0
    for row, item in enumerate(read):
        with torch.no_grad():
            p = token_logits(model, [item.row])[0].softmax(-1)
        for (start, end), place in zip(item.sentences, item.at, strict=True):
            span = found.spans[at]
            assert (span.response, span.start, span.end) == (f"r{row}", start, end)
            assert span.value == pytest.approx(p[place, 0].item() - p[place, 1:].sum().item(), abs=1e-5)
            at += 1
    assert at == len(found.spans) == 6 and toys.remainders(found) == pytest.approx((0.0, 0.0, 0.0))


def test_a_run_leaves_a_reward_that_rl_knows(tmp_path):
    made = span_reward(CONFIG, train=SOME, val=SOME[:1], folder=tmp_path / "r")
    assert isinstance(judge_by_name(str(made.path), device="cpu"), SpanModelJudge)
    assert span_reward(CONFIG, train=SOME, val=SOME[:1], folder=tmp_path / "r", resume=True).path == made.path
    with pytest.raises(UserError, match="none of the 1 answers has a marked span"):
        span_reward(CONFIG, train=SOME[1:2], folder=tmp_path / "none")


def test_both_forms_of_files_are_read(tmp_path):
    fine = {
        "question": "Q?",
        "passages": [["T", "One.", "Two."]],
        "prediction 1": "A. B.",
        "prediction 2": "x",
        "feedback": {"errors": [{"error type": "Redundant", "start": 3, "end": 5, "explanation": ""}]},
        "preference": [0] * 6,
    }
    plain = {"prompt": "Q?", "response": "A. B.", "spans": [{"start": 0, "end": 2, "label": "good", "value": 0.5}]}
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(fine) + "\n" + json.dumps(plain) + "\n")
    first, second = read_spans(tmp_path / "a.jsonl.gz")
    assert first.prompt.messages[0].text == "T One. Two.\n\nQuestion: Q?" and first.response.text == "A. B."
    assert [(s.start, s.end, s.label, s.value) for s in first.spans] == [(3, 5, "Redundant", -1.0)]
    assert second.judgement("human:x").spans[0].value == 0.5 and second.spans[0].response == second.response.id
    for row, message in [
        ({**plain, "spans": [{"start": 0, "end": 9, "label": "x"}]}, "leaves the answer of 5 characters"),
        ({"prompt": "Q?", "response": "A."}, "no field 'spans'"),
    ]:
        (tmp_path / "b.jsonl").write_text(json.dumps(plain) + "\n" + json.dumps(row) + "\n")
        with pytest.raises(UserError, match=f"line 2: no answer with spans: .*{message}"):
            read_spans(tmp_path / "b.jsonl")
    assert spanned(plain) == second


@pytest.mark.shared
def test_a_reward_model_of_spans_trains_on_what_people_marked(shared_data, tmp_path):
    """FineGrainedRLHF: the loss on held-out sentences falls below what it was before the first step."""
    answers = read_spans(shared_data / "preference" / "finegrained_qa_feedback.jsonl.gz")
    config = replace(CONFIG, max_tokens=384, loop=LoopConfig(max_steps=4, rows_per_step=8, token_budget=4096, eval_every=4))
    config = replace(config, optim=replace(config.optim, learning_rate=1e-3))
    labels = sorted({span.label for each in answers for span in each.spans})
    assert len(labels) >= 3
    config = replace(config, labels=tuple(labels))
    made = span_reward(config, train=answers[:32], val=answers[32:48], folder=tmp_path / "r")
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert losses[-1] < losses[0] - 0.1, losses
    assert made.outcome.steps == 4
