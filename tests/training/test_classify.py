"""Classification: the figures by hand, and an encoder and a decoder that learn a toy."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, pipeline

from tutelage.core.errors import UserError
from tutelage.core.files import read_json
from tutelage.core.words import Example, Label, Message, Prompt, Response
from tutelage.text.mask import Row
from tutelage.training.classify import (
    ClassifyConfig,
    ClassifyTask,
    Item,
    classes_of,
    classify,
    load_classifier,
    text_of,
    to_labels,
)
from tutelage.training.classify_report import ClassifyReport, confusion_matrix, f1_scores, report_of
from tutelage.training.loop import LoopConfig
from tutelage.training.optim import OptimConfig

FRUIT, TOOL = ("apple", "pear", "plum", "grape"), ("hammer", "saw", "drill", "pliers")


def labelled(text: str, label: str) -> Label:
    prompt = Prompt(messages=(Message(role="user", text=text),))
    return Label(prompt=prompt, response=Response(prompt_id=prompt.id, text=label), label=label)


def toy(count: int, *, seed: int) -> list[Label]:
    """Texts of filler words with one fruit or one tool among them."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(("fruit", "tool"))
        words = [draw.choice(("the", "a", "one", "that")), draw.choice(FRUIT if label == "fruit" else TOOL)]
        rows.append(labelled(" ".join(words), label))
    return rows


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "one", "that", *FRUIT, *TOOL]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    return str(folder)


def quick(model: str, **more) -> ClassifyConfig:
    return ClassifyConfig(
        model=model,
        device="cpu",
        dtype="float32",
        max_tokens=32,
        **{
            "loop": LoopConfig(epochs=6, rows_per_step=16, token_budget=512),
            "optim": OptimConfig(learning_rate=3e-3, warmup=0.1),
            **more,
        },
    )


def test_confusion_counts_truth_down_and_prediction_across():
    #                          truth: cat cat cat dog dog owl; called: cat dog dog dog owl owl
    got = confusion_matrix([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2], 3)
    assert got.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 1]]


def test_figures_worked_out_by_hand():
    report = report_of([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2], ["cat", "dog", "owl"], split="test")
    assert report.accuracy == 0.5  # cat, dog, owl once each of 6
    assert report.baseline == 0.5  # always saying cat: 3 of 6
    cat, dog, owl = report.classes
    assert (cat.precision, cat.recall, cat.f1) == (
        1.0,
        pytest.approx(1 / 3, abs=1e-6),
        0.5,
    )  # called once, rightly; 1 of 3 found
    assert (dog.precision, dog.recall, dog.f1) == (pytest.approx(1 / 3, abs=1e-6), 0.5, 0.4)  # 2·(1/3·1/2)/(5/6)
    assert (owl.precision, owl.recall, owl.f1) == (0.5, 1.0, pytest.approx(2 / 3, abs=1e-6))
    assert report.macro_f1 == pytest.approx((0.5 + 0.4 + 2 / 3) / 3, abs=1e-6)
    assert report.accuracy_low < 0.5 < report.accuracy_high


def test_f1_agrees_with_a_count_in_plain_python():
    draw = np.random.default_rng(0)
    truth, called = draw.integers(0, 5, 200), draw.integers(0, 5, 200)
    _, _, f1_K = f1_scores(confusion_matrix(truth, called, 5))
    for k in range(5):
        hits = sum(1 for t, c in zip(truth, called, strict=True) if t == c == k)
        false = sum(1 for t, c in zip(truth, called, strict=True) if c == k != t)
        missed = sum(1 for t, c in zip(truth, called, strict=True) if t == k != c)
        assert f1_K[k] == pytest.approx(2 * hits / (2 * hits + false + missed))


def test_a_class_that_never_occurs_does_not_pull_the_macro_f1_down():
    report = report_of([0, 1], [0, 1], ["a", "b", "never"], split="val")
    assert report.macro_f1 == 1.0 and report.classes[2].f1 == 0.0


def test_report_survives_json():
    report = report_of([0, 1, 1], [0, 1, 0], ["a", "b"], split="val")
    assert ClassifyReport.from_dict(report.to_dict()) == report


def test_labels_come_from_tags_labels_and_prompts():
    example = Example(
        messages=(Message(role="user", text="hi"), Message(role="assistant", text="hello")), tags=("task:greeting",)
    )
    prompt = Prompt(messages=(Message(role="user", text="good?"),), label="yes")
    assert [label.label for label in to_labels([example, prompt], "tag:task")] == ["greeting"]
    assert [label.label for label in to_labels([example, prompt, labelled("x", "no")], "label")] == ["yes", "no"]
    assert (
        text_of(to_labels([example], "tag:task")[0]) == "hi"
    )  # the answer is not shown: only the request is classified


def test_answer_is_read_only_where_the_answer_was_labelled():
    prompt = Prompt(messages=(Message(role="system", text="be kind"), Message(role="user", text="Q")))
    judged = Label(prompt=prompt, response=Response(prompt_id=prompt.id, text="A"), label="rude")
    assert text_of(judged) == "Q\nA"


def test_classes_are_checked():
    rows = toy(8, seed=1)
    assert classes_of(rows) == ("fruit", "tool")
    assert classes_of(rows, ["tool", "fruit", "other"]) == ("tool", "fruit", "other")
    with pytest.raises(UserError, match="'tool', which is not in `labels`"):
        classes_of(rows, ["fruit"])
    with pytest.raises(UserError, match="only 'fruit'"):
        classes_of([row for row in rows if row.label == "fruit"])
    with pytest.raises(ValueError, match="target must be"):
        ClassifyConfig(target="tags")


@pytest.mark.parametrize("which", ["bert", "test"])
def test_learns_a_toy_and_plain_transformers_gives_the_same_answers(which, tiny_bert, tmp_path):
    train, val, test = toy(96, seed=1), toy(24, seed=2), toy(40, seed=3)
    config = quick(
        tiny_bert if which == "bert" else "test", loop=LoopConfig(epochs=5, rows_per_step=16, token_budget=512)
    )
    result = classify(config, train=train, val=val, test=test, folder=tmp_path / "run")
    assert result.report.split == "test" and result.report.n == 40
    assert result.report.accuracy >= 0.95  # 8 words to tell apart, 5 epochs
    assert read_json(result.path / "report.json") == result.report.to_dict()
    told = pipeline("text-classification", model=str(result.path), device="cpu")
    texts = [text_of(row) for row in test]
    alone = [each["label"] for each in told(texts)]
    together = [each["label"] for each in told(texts, batch_size=8)]  # padded: the last real token must still be found
    assert alone == together
    right = sum(label == row.label for label, row in zip(alone, test, strict=True))
    assert right / len(test) == pytest.approx(result.report.accuracy)


def test_micro_batches_and_padding_change_neither_loss_nor_gradient(tiny_bert):
    config = quick(tiny_bert, labels=("fruit", "tool"), balance=True)
    model, tokenizer, _ = load_classifier(config)
    model.eval()
    draw = random.Random(0)
    items = [
        Item(
            Row(ids := [draw.randrange(4, 16) for _ in range(draw.randrange(2, 12))], [1.0] * len(ids)),
            int(at % 3 == 0),
            0.5 + at,
        )
        for at in range(7)
    ]

    def gradient(budget: int) -> tuple[float, torch.Tensor]:
        settings = dataclasses.replace(config, loop=LoopConfig(token_budget=budget))
        model.zero_grad()
        loss = sum(float(micro.loss.detach()) for micro in _backward(ClassifyTask(model, items, [], settings, 2)))
        return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, apart = gradient(10_000), gradient(1)
    assert whole[0] == pytest.approx(apart[0], rel=1e-5)
    torch.testing.assert_close(whole[1], apart[1], rtol=1e-4, atol=1e-6)


def _backward(task: ClassifyTask):
    for micro in task.micro(list(range(task.rows))):
        micro.loss.backward()
        yield micro


def test_only_the_head_moves_when_asked_for(tiny_bert, tmp_path):
    config = quick(tiny_bert, train="head", loop=LoopConfig(max_steps=2, rows_per_step=8))
    before = load_classifier(dataclasses.replace(config, labels=("fruit", "tool")))[0].base_model.state_dict()
    result = classify(config, train=toy(32, seed=1), val=toy(8, seed=2), folder=tmp_path / "run")
    after = load_classifier(dataclasses.replace(config, model=str(result.path), labels=("fruit", "tool")))[
        0
    ].base_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.report.split == "val"


def test_rare_class_weighs_as_much_as_the_common_one_when_balanced(tiny_bert):
    config = quick(tiny_bert, labels=("fruit", "tool"), balance=True)
    model, *_ = load_classifier(config)
    items = [Item(Row([4, 5], [1.0, 1.0]), int(at == 0), 1.0) for at in range(8)]  # one tool, seven fruits
    weights = ClassifyTask(model, items, [], config, 2).weight_K
    assert weights == [8 / (2 * 7), 8 / (2 * 1)]


def test_rows_of_an_unseen_class_are_left_out_and_named(tiny_bert, tmp_path):
    told = []
    result = classify(
        quick(tiny_bert, loop=LoopConfig(max_steps=1)),
        train=toy(16, seed=1),
        val=[*toy(4, seed=2), labelled("the spoon", "cutlery")],
        folder=tmp_path / "run",
        warn=told.append,
    )
    assert result.report.n == 4
    assert any("'cutlery'" in line for line in told)


def test_same_seed_same_weights_and_a_finished_run_is_handed_back(tiny_bert, tmp_path):
    config = quick(tiny_bert, loop=LoopConfig(max_steps=3, rows_per_step=8))
    rows = dict(train=toy(32, seed=1), val=toy(8, seed=2))
    one, two = (classify(config, **rows, folder=tmp_path / name) for name in ("one", "two"))
    assert (one.path / "model.safetensors").read_bytes() == (two.path / "model.safetensors").read_bytes()
    again = classify(config, **rows, folder=tmp_path / "one", resume=True)
    assert again == one
