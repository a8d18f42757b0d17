"""Sequence classification: fine-tune an encoder or a decoder to name the class of a text.

What is saved is transformers' AutoModelForSequenceClassification with its tokenizer, so that
`pipeline("text-classification", folder)` gives the same answers.  The text goes in as it is, without a chat template.

Two traps are avoided: decoders of transformers look for the last token by pad id, so the pad token becomes one that
never ends a text (where pad = eos it would be cut off); and class weights divide by the weight of the whole step, so that
micro-batching changes nothing.  Left out: several labels a text, and regression.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tutelage.core.config import to_dict
from tutelage.core.errors import UserError, nearest
from tutelage.core.files import write_json
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Example, Label, Preference, Prompt, Response
from tutelage.models.heads import harmless_pad
from tutelage.models.load import best_device, best_dtype, dropout_off, obtain, save, weights_digest
from tutelage.models.quiet import quiet_transformers
from tutelage.store.runs import Run, begin_or_reopen, versions
from tutelage.text.mask import Row
from tutelage.text.pack import micro_batches
from tutelage.training.batch import collate
from tutelage.training.classify_report import ClassifyReport, report_of
from tutelage.training.loop import LoopConfig, Micro, Outcome, fit
from tutelage.training.networks import fast_matmuls
from tutelage.training.optim import OptimConfig
from tutelage.training.state import SaveConfig, seed_all


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyConfig:
    """A run of `tutelage classify`."""

    model: str = "smollm2-135m"  # any encoder or decoder that transformers can put a classifier on
    data: str = "starter:instructions"
    target: str = "label"  # what to predict: label (of labelled records), or tag:NAME (tag:task, tag:lang)
    labels: tuple[str, ...] = ()  # the classes, in order; empty = those of the training rows, sorted
    seed: int = 0
    train: Literal["all", "head"] = "all"  # head = the classification layer alone, on a frozen trunk
    balance: bool = False  # every class weighs the same in the loss, however rare
    max_tokens: int = 256  # texts are cut here
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=3))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=5e-5))
    save: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self):
        faults = []
        if self.target != "label" and not (self.target.startswith("tag:") and self.target[4:]):
            faults.append(f"target must be label or tag:NAME (for instance tag:task); got {self.target!r}")
        twice = [name for name, count in Counter(self.labels).items() if count > 1]
        if twice:
            faults.append(f"labels must differ; twice: {', '.join(twice)}")
        if self.max_tokens < 2:
            faults.append(f"max_tokens must be >= 2; got {self.max_tokens}")
        if faults:
            raise ValueError("\n".join(faults))


class ClassifyResult(NamedTuple):
    path: Path  # the classifier, in Hugging Face format, with report.json beside it
    outcome: Outcome
    report: ClassifyReport | None  # on the test rows, else on the validation rows, else None


class Item(NamedTuple):
    """One tokenised text and its class."""

    row: Row
    label: int
    weight: float


def to_labels(records: Sequence[Any], target: str) -> list[Label]:
    """Labels to learn from any kind of record: their own (`label`), or the value of a tag (`tag:task`).

    Records without one are left out.
    """
    found = (_to_label(record, target) for record in records)
    return [label for label in found if label is not None]


def _to_label(record: Any, target: str) -> Label | None:
    if target == "label" and isinstance(record, Label):
        name = record.label
        return record if name is not None and record.weight > 0 else None
    prompt = _prompt_of(record)
    if prompt is None:
        return None
    name = prompt.label if target == "label" else prompt.tag(target.removeprefix("tag:"))
    if not name:
        return None
    return Label(prompt=prompt, response=Response(prompt_id=prompt.id, text=name), label=name)


def _prompt_of(record: Any) -> Prompt | None:
    if isinstance(record, (Preference, Label)):
        return record.prompt
    if isinstance(record, Example):  # the conversation up to its first answer
        opening = next(at for at, message in enumerate(record.messages) if message.role == "assistant")
        if not opening:
            return None
        return Prompt(messages=record.messages[:opening], group=record.group, tags=record.tags, source=record.source)
    return record


def text_of(label: Label) -> str:
    """What the classifier reads: the user's words, and the answer where it is the answer that was labelled."""
    asked = [message.text for message in label.prompt.messages if message.role != "system" and message.text.strip()]
    answer = label.response.text.strip()
    return "\n".join(asked if answer == label.label or not answer else [*asked, answer])


def classes_of(train: Sequence[Label], given: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes in order: `given`, or those that occur.  UserError where there is nothing to tell apart."""
    counts = Counter(label.label for label in train if label.label is not None)
    if given:
        unknown = sorted(set(counts) - set(given))
        if unknown:
            raise UserError(
                f"the training rows hold the label {unknown[0]!r}, which is not in `labels`{nearest(unknown[0], given)}; "
                f"add it{f' (and {len(unknown) - 1} more)' if len(unknown) > 1 else ''}, or leave `labels` empty"
            )
        return tuple(given)
    if len(counts) < 2:
        raise UserError(
            f"a classifier needs two classes or more; the {len(train)} training rows hold "
            f"{'only ' + repr(next(iter(counts))) if counts else 'no label'}. "
            "Choose what to predict with target=label or target=tag:NAME"
        )
    return tuple(sorted(counts))


class ClassifyTask:
    """Weighted cross-entropy over classes; one `row` of the loop is a text."""

    def __init__(
        self, model: PreTrainedModel, train: Sequence[Item], val: Sequence[Item], config: ClassifyConfig, classes: int
    ):
        self.model, self.train, self.val, self.config = model, train, val, config
        self.rows = len(train)
        self.device = next(model.parameters()).device
        counts = Counter(item.label for item in train)
        self.weight_K = [
            len(train) / (len(counts) * counts[k]) if config.balance and counts[k] else 1.0 for k in range(classes)
        ]

    def micro(self, at: list[int]) -> Iterator[Micro]:
        items = [self.train[i] for i in at]
        count = sum(item.weight * self.weight_K[item.label] for item in items)
        for members, logit_BK in self.logits(items):
            truth_B = torch.tensor([items[i].label for i in members], device=self.device)
            weight_B = logit_BK.new_tensor([items[i].weight * self.weight_K[items[i].label] for i in members])
            loss_B = F.cross_entropy(logit_BK, truth_B, reduction="none") * weight_B
            right_B = (logit_BK.argmax(1) == truth_B) * weight_B
            yield Micro(
                loss_B.sum() / max(count, 1e-8),
                {
                    "loss": float(loss_B.detach().sum()),
                    "accuracy": float(right_B.sum()),
                    "count": float(weight_B.sum()),
                    "tokens": sum(len(items[i].row.token_ids) for i in members),
                },
            )

    def logits(self, items: Sequence[Item]) -> Iterator[tuple[list[int], Tensor]]:
        """Positions in `items` and their float32 logits [B, K], a token budget's worth at a time."""
        pad_id = self.model.config.get_text_config().pad_token_id or 0
        for members in micro_batches(
            [len(item.row.token_ids) for item in items], token_budget=self.config.loop.token_budget
        ):
            batch = collate([items[i].row for i in members], device=self.device, pad_id=pad_id)
            yield members, self.model(input_ids=batch.token_BT, attention_mask=batch.real_BT.long()).logits.float()

    @torch.no_grad()
    def predict(self, items: Sequence[Item]) -> tuple[list[int], float]:
        """The class of each item, in order, and the mean cross-entropy in nats."""
        predicted, nll = [0] * len(items), 0.0
        for members, logit_BK in self.logits(items):
            truth_B = torch.tensor([items[i].label for i in members], device=self.device)
            nll += float(F.cross_entropy(logit_BK, truth_B, reduction="sum"))
            for i, k in zip(members, logit_BK.argmax(1).tolist(), strict=True):
                predicted[i] = k
        return predicted, nll / max(1, len(items))

    def evaluate(self) -> dict[str, float]:
        if not self.val:
            return {}
        predicted, loss = self.predict(self.val)
        report = report_of([item.label for item in self.val], predicted, self.config.labels, split="val")
        return {"eval_loss": round(loss, 6), "eval_accuracy": report.accuracy, "eval_f1": report.macro_f1}


def classify(
    config: ClassifyConfig,
    *,
    train: Sequence[Label],
    val: Sequence[Label] = (),
    test: Sequence[Label] = (),
    folder: Path | str,
    data_id: str = "",
    resume: bool = False,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> ClassifyResult:
    """Fine-tune a classifier on `train`, keep its best weights by `val`, report on `test` (else on `val`).

    UserError where there are fewer than two classes.  Resumes where `resume` and `folder` holds a run.
    """
    resolved = to_dict(config)
    run = begin_or_reopen(
        folder, kind="classify", config=resolved, seed=config.seed, resume=resume, parents=(config.model, data_id)
    )
    if run.finished():
        facts = run.manifest
        report = ClassifyReport.from_dict(facts["report"]) if facts["report"] else None
        return ClassifyResult(run.final, Outcome(facts["steps"], facts["best"], False), report)
    labels = classes_of(train, config.labels)
    config = replace(config, labels=labels)
    seed_all(config.seed)
    with fast_matmuls(config.device):
        model, tokenizer, digest = load_classifier(config, progress=progress)
        run.hold_to({f"model {config.model}": digest})
        length = min(
            config.max_tokens,
            getattr(model.config.get_text_config(), "max_position_embeddings", None) or config.max_tokens,
        )
        tokenised = lambda rows, what: _items(tokenizer, rows, labels, model, length, what=what, warn=warn)
        val_items = tokenised(val, "validation")
        task = ClassifyTask(model, tokenised(train, "training"), val_items, config, len(labels))
        outcome = fit(
            run,
            task,
            model,
            loop=config.loop,
            optim=config.optim,
            save=config.save,
            seed=config.seed,
            progress=progress,
            warn=warn,
        )
        model.eval()
        test_items = tokenised(test, "test")
        held_out, split = (test_items, "test") if test_items else (val_items, "val")
        report = report_of([item.label for item in held_out], task.predict(held_out)[0], labels, split=split)
    manifest = {
        "kind": "classify",
        "run": run.id,
        "base": config.model,
        "parents": [digest, data_id],
        "role": "classifier",
        "labels": list(labels),
        "config": resolved,
        "versions": versions(),
    }
    return _finish(run, model, tokenizer, outcome, report, manifest)


def load_classifier(
    config: ClassifyConfig, *, progress: Progress = silent
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """A model with a fresh classification layer for `config.labels`, its tokenizer, and the digest of what it was made of."""
    path = obtain(config.model, progress=progress)
    device = best_device(config.device)
    dtype = "float32" if config.model == "test" and config.dtype == "auto" else config.dtype
    names = dict(enumerate(config.labels))
    try:
        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(
                path,
                num_labels=len(names),
                id2label=names,
                label2id={name: k for k, name in names.items()},
                problem_type="single_label_classification",
                dtype=best_dtype(dtype, device=device),
                use_safetensors=True,
                ignore_mismatched_sizes=True,
            )  # a checkpoint may bring a layer for other classes
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded as a classifier: {str(error).strip().splitlines()[0]}") from error
    pad_id = harmless_pad(tokenizer, model.config)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    model.config.get_text_config().pad_token_id = pad_id
    model = dropout_off(model.to(device))
    model.requires_grad_(config.train == "all")
    if config.train == "head":
        trunk = set(map(id, model.base_model.parameters()))
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) not in trunk)
    return model, tokenizer, weights_digest(path)


def _items(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Label],
    labels: tuple[str, ...],
    model: PreTrainedModel,
    length: int,
    *,
    what: str,
    warn: Callable[[str], None],
) -> list[Item]:
    """Tokenised rows.  Rows of a class that training never saw cannot be got right and are left out, with a warning."""
    place = {name: k for k, name in enumerate(labels)}
    unseen = Counter(row.label for row in rows if row.label not in place)
    if unseen:
        warn(
            f"{sum(unseen.values())} {what} row(s) have a label that the training rows do not hold and are left out: "
            f"{', '.join(repr(name) for name, _ in unseen.most_common(5))}"
        )
    pad_id = model.config.get_text_config().pad_token_id
    return [
        Item(Row(ids, [1.0] * len(ids)), place[row.label], row.weight)
        for row in rows
        if row.label in place
        for ids in [_encode(tokenizer, text_of(row), length, pad_id)]
    ]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, length: int, pad_id: int) -> list[int]:
    ids = list(tokenizer(text, truncation=True, max_length=length)["input_ids"])
    while (
        len(ids) > 1 and ids[-1] == pad_id
    ):  # a text that spells the pad token: decoders would look for their last token before it
        ids.pop()
    return ids


def _finish(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outcome: Outcome,
    report: ClassifyReport | None,
    manifest: dict[str, Any],
) -> ClassifyResult:
    facts = report.to_dict() if report else None

    def write(folder: Path) -> None:
        save(model, tokenizer, folder, manifest=manifest)
        write_json(folder / "report.json", facts)

    run.finish(
        write,
        steps=outcome.steps,
        best={key: value for key, value in outcome.best.items() if math.isfinite(value)},
        report=facts,
    )
    return ClassifyResult(run.final, outcome, report)
