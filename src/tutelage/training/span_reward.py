"""A reward model of parts of answers: which kind of error, if any, does each sentence hold?  (Wu et al. 2023,
https://arxiv.org/abs/2306.01693, section 3; process reward models are the same with steps for sentences.)

A token classifier whose loss is cross-entropy at the last token of each sentence of the answer, and nowhere else; the mean is
over the sentences of a step.  Label 0 is "none"; a sentence takes the label of the marked span that covers most of it.

Departures: sentences are found by a rule (no parser); the reward is read from the probabilities, not from the likeliest label;
one model tells all kinds of error apart.

What is saved is transformers' AutoModelForTokenClassification.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tutelage.core.config import to_dict
from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Span
from tutelage.data.spans import Spanned
from tutelage.judges.span_model import Marked, marked, token_logits
from tutelage.models.load import best_device, best_dtype, dropout_off, obtain, save, unpad_embedding, weights_digest
from tutelage.models.quiet import quiet_transformers
from tutelage.store.runs import begin_or_reopen, versions
from tutelage.text.pack import micro_batches
from tutelage.training.loop import LoopConfig, Micro, Outcome, fit, ratios
from tutelage.training.networks import fast_matmuls
from tutelage.training.optim import OptimConfig
from tutelage.training.state import SaveConfig, seed_all

NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRewardConfig:
    """How to train a reward model of spans."""

    model: str = "smollm2-135m"
    data: str = ""  # a file that data/spans.py reads; what is called from Python gets its answers as arguments
    val_share: float = 0.1  # of the prompts in the file, kept to look at
    seed: int = 0
    labels: tuple[str, ...] = ()  # kinds of error, in order; empty = those of the training answers, sorted
    max_tokens: int = 512
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    loop: LoopConfig = field(default_factory=LoopConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    save: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self):
        if NONE in self.labels:
            raise ValueError(f'labels are kinds of error; "{NONE}" is always there')
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share must be in [0, 1); got {self.val_share}")

    def kinds(self, answers: Sequence[Spanned]) -> tuple[str, ...]:
        """What a sentence may be: none, then the kinds of error.  UserError where no answer has a marked span."""
        labels = self.labels or tuple(sorted({span.label for each in answers for span in each.spans} - {NONE}))
        if not labels:
            raise UserError(f"none of the {len(answers)} answers has a marked span, so there is nothing to tell apart")
        return (NONE, *labels)


class SpanRewardResult(NamedTuple):
    path: Path
    outcome: Outcome


class Item(NamedTuple):
    marked: Marked
    labels: list[int]  # one a sentence


def label_of(sentence: tuple[int, int], spans: Sequence[Span]) -> str:
    """The label of the span that covers most of the sentence, "none" where none touches it.

    >>> label_of((0, 10), [Span(response="r", start=8, end=30, label="a"), Span(response="r", start=2, end=7, label="b")])
    'b'
    """
    start, end = sentence
    shared = [(min(end, span.end) - max(start, span.start), span.label) for span in spans]
    most = max(shared, key=lambda each: each[0], default=(0, NONE))
    return most[1] if most[0] > 0 else NONE


class SpanRewardTask:
    """Cross-entropy at the ends of sentences; one `row` of the loop is an answer."""

    def __init__(self, model: PreTrainedModel, train: Sequence[Item], val: Sequence[Item], config: SpanRewardConfig):
        self.model, self.train, self.val, self.config = model, train, val, config
        self.rows = len(train)

    def micro(self, at: list[int]) -> Iterator[Micro]:
        yield from self._losses([self.train[i] for i in at])

    def _losses(self, items: Sequence[Item]) -> Iterator[Micro]:
        count = sum(len(item.labels) for item in items)
        lengths = [len(item.marked.row.token_ids) for item in items]
        for members in micro_batches(lengths, token_budget=self.config.loop.token_budget):
            some = [items[i] for i in members]
            logit_BTK = token_logits(self.model, [item.marked.row for item in some])
            logit_NK = torch.cat([logit_TK[item.marked.at] for logit_TK, item in zip(logit_BTK, some, strict=True)])
            truth_N = torch.tensor([label for item in some for label in item.labels], device=logit_NK.device)
            loss = F.cross_entropy(logit_NK, truth_N, reduction="sum")
            right = float((logit_NK.argmax(1) == truth_N).sum())
            yield Micro(loss / max(count, 1), {"loss": float(loss.detach()), "count": float(len(truth_N)), "accuracy": right,
                                               "tokens": sum(lengths[i] for i in members)})

    def evaluate(self) -> dict[str, float]:
        if not self.val:
            return {}
        sums: Counter = Counter()
        for micro in self._losses(self.val):
            sums.update(micro.sums)
        found = ratios(sums)
        return {f"eval_{key}": found[key] for key in ("loss", "accuracy")}


def span_reward(
    config: SpanRewardConfig,
    *,
    train: Sequence[Spanned],
    val: Sequence[Spanned] = (),
    folder: Path | str,
    data_id: str = "",
    resume: bool = False,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> SpanRewardResult:
    """Train on answers with marked spans; the model is left in `folder`/final, and its folder is a `reward` of `tutelage rl`.

    UserError where no answer has a marked span.  Resumes where `resume` and `folder` holds a run.
    """
    resolved = to_dict(config)
    run = begin_or_reopen(folder, kind="span-reward", config=resolved, seed=config.seed, resume=resume,
                          parents=(config.model, data_id))
    if run.finished():
        return SpanRewardResult(run.final, Outcome(run.manifest["steps"], run.manifest["best"], False))
    labels = config.kinds(train)
    seed_all(config.seed)
    with fast_matmuls(config.device):
        model, tokenizer, digest = load_token_classifier(config, labels, progress=progress)
        run.hold_to({f"model {config.model}": digest})
        items = [items_of(tokenizer, part, labels, config) for part in (train, val)]
        if not items[0]:
            raise UserError(f"no sentence of the {len(train)} answers ends within max_tokens={config.max_tokens}; raise it")
        outcome = fit(run, SpanRewardTask(model, *items, config), model, loop=config.loop, optim=config.optim, save=config.save,
                      seed=config.seed, progress=progress, warn=warn)
    manifest = {"kind": "span-reward", "run": run.id, "base": config.model, "parents": [digest, data_id], "role": "reward",
                "labels": list(labels), "config": resolved, "versions": versions()}
    run.finish(lambda place: save(model, tokenizer, place, manifest=manifest), steps=outcome.steps,
               best={key: value for key, value in outcome.best.items() if math.isfinite(value)})
    return SpanRewardResult(run.final, outcome)


def items_of(tokenizer: Any, answers: Sequence[Spanned], labels: Sequence[str], config: SpanRewardConfig) -> list[Item]:
    """Answers as tokens, with a label for each sentence; those of which no sentence is left are left out.

    UserError for a label that training does not know.
    """
    place = {name: k for k, name in enumerate(labels)}
    out = []
    for each in answers:
        read = marked(tokenizer, each.prompt, each.response.text, max_tokens=config.max_tokens)
        names = [label_of(sentence, each.spans) for sentence in read.sentences]
        unknown = sorted(set(names) - set(place))
        if unknown:
            raise UserError(f"a span is labelled {unknown[0]!r}, and the labels are {', '.join(labels)}; name all in `labels`")
        if names:
            out.append(Item(read, [place[name] for name in names]))
    return out


def load_token_classifier(
    config: SpanRewardConfig, labels: Sequence[str], *, progress: Progress = silent
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """A model with a fresh layer for `labels`, its tokenizer, and the digest of what it was made of."""
    path, device = obtain(config.model, progress=progress), best_device(config.device)
    dtype = "float32" if config.model == "test" and config.dtype == "auto" else config.dtype
    names = dict(enumerate(labels))
    try:
        with quiet_transformers():
            model = AutoModelForTokenClassification.from_pretrained(
                path, num_labels=len(names), id2label=names, label2id={name: k for k, name in names.items()},
                dtype=best_dtype(dtype, device=device), use_safetensors=True, ignore_mismatched_sizes=True)
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded as a token classifier: {str(error).strip().splitlines()[0]}") from error
    return unpad_embedding(dropout_off(model.to(device))), tokenizer, weights_digest(path)
