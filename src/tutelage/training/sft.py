"""Supervised fine-tuning on conversations (InstructGPT step 1, Ouyang et al. 2022, https://arxiv.org/abs/2203.02155)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from tutelage.algos.cross_entropy import normalisers
from tutelage.core.config import to_dict
from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Example
from tutelage.models.heads import decoder_and_head
from tutelage.models.load import Loaded
from tutelage.models.prefix import pads
from tutelage.store.runs import Run, begin_or_reopen
from tutelage.text.mask import Row, rows_of
from tutelage.text.pack import micro_batches
from tutelage.training.batch import collate, forward
from tutelage.training.first_evaluation import place, recalled
from tutelage.training.loop import LoopConfig, Micro, Outcome, fit
from tutelage.training.networks import LoraConfig, fast_matmuls, load_trainable, manifest_of, save_result
from tutelage.training.optim import OptimConfig
from tutelage.training.row_file import RowFile
from tutelage.training.state import SaveConfig, seed_all


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig:
    """A run of `tutelage sft`."""

    model: str = "smollm2-135m"
    data: str = "starter:instructions"  # snapshot, file, hf:NAME or starter:NAME
    seed: int = 0
    loss: Literal["completion", "all"] = "completion"  # train on the assistant's tokens, or on all
    normaliser: Literal["token", "example", "sum"] = "token"
    frozen_layers: int = 0  # lowest layers (and the embedding) that stay as they are
    max_tokens: int = 512  # rows are cut here
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # bfloat16 weights keep float32 masters
    device: str = "auto"
    gradient_checkpointing: bool = False
    chunk: int = 512  # positions whose logits exist at once
    lora: LoraConfig = field(default_factory=LoraConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=2))
    optim: OptimConfig = field(default_factory=OptimConfig)
    save: SaveConfig = field(default_factory=SaveConfig)


EVALUATED = 1024  # rows that are sorted by length at a time


class SFTResult(NamedTuple):
    path: Path  # the model, in Hugging Face format
    outcome: Outcome
    skipped: int  # examples of which no trained token was left after cutting to max_tokens


class SFTTask:
    """Weighted cross-entropy over the trained tokens of rows; a micro-batch is a token budget's worth of them."""

    def __init__(self, loaded: Loaded, train: Sequence[Row], val: Sequence[Row], config: SFTConfig):
        self.train, self.val, self.config = train, val, config
        self.rows = len(train)
        self.decoder, self.head = decoder_and_head(loaded.model)
        self.device = next(loaded.model.parameters()).device

    def micro(self, at: list[int]) -> Iterator[Micro]:
        yield from self._losses([self.train[i] for i in at], self.config.normaliser)

    def _losses(self, rows: list[Row], normaliser: str) -> Iterator[Micro]:
        # the first token of a row has no predecessor: its weight cannot count
        divide_by = normalisers(normaliser, [sum(row.weights[1:]) for row in rows])
        lengths = [len(row.token_ids) for row in rows]
        for group in micro_batches(lengths, token_budget=self.config.loop.token_budget, padded=pads(self.decoder)):
            batch = collate([rows[i] for i in group], device=self.device)
            out = forward(self.decoder, self.head, batch.token_BT, batch.acted_BT, chunk=self.config.chunk, entropy=False)
            nll_BT = -out.logp_BT * batch.weight_BT
            divide_B = torch.tensor([divide_by[i] for i in group], device=self.device)
            yield Micro((nll_BT.sum(1) / divide_B).sum(), {
                "loss": float(nll_BT.detach().sum()), "count": float(batch.weight_BT.sum()), "tokens": int(batch.real_BT.sum())})

    def evaluate(self) -> dict[str, float]:
        if not self.val:
            return {}
        loss = count = 0.0
        for start in range(0, len(self.val), EVALUATED):  # of like lengths side by side, without all of them in memory
            for micro in self._losses(self.val[start:start + EVALUATED], "token"):
                loss, count = loss + micro.sums["loss"], count + micro.sums["count"]
        return {"eval_loss": round(loss / count, 6)}


def sft(
    config: SFTConfig,
    *,
    train: Sequence[Example],
    val: Sequence[Example] = (),
    folder: Path | str,
    data_id: str = "",
    resume: bool = False,
    cache: Path | str | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> SFTResult:
    """Fine-tune on `train`, evaluate on `val`, leave the model in `folder`/final.

    `cache`: a folder that keeps what the model was worth before training, for the next run with it (None: it is found anew).
    UserError where no example has a trained token.  Resumes where `resume` and `folder` holds a run.
    """
    resolved = to_dict(config)
    run = begin_or_reopen(folder, kind="sft", config=resolved, seed=config.seed, resume=resume, parents=(config.model, data_id))
    if run.finished():
        return SFTResult(run.final, Outcome(run.manifest["steps"], run.manifest["best"], False), run.manifest["skipped"])
    seed_all(config.seed)
    with fast_matmuls(config.device):
        loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora,
                                frozen_layers=config.frozen_layers, gradient_checkpointing=config.gradient_checkpointing)
        run.hold_to({f"model {config.model}": loaded.digest})
        rows, skipped = tokenise(loaded, train, config, folder=run.folder)
        val_rows, _ = tokenise(loaded, val, config, folder=run.folder)
        task = SFTTask(loaded, rows, val_rows, config)
        first = None if cache is None else lambda: recalled(_known(cache, loaded, val_rows, config), task.evaluate)
        outcome = fit(run, task, loaded.model, loop=config.loop, optim=config.optim, save=config.save, seed=config.seed,
                      first=first,
                      progress=progress, warn=warn)
        return _finish(run, loaded, outcome, resolved, data_id, skipped)


def _known(cache: Path | str, loaded: Loaded, val: RowFile, config: SFTConfig) -> Path:
    """Where the evaluation before the first step stands: adapters begin as nothing, and frozen layers are read like others."""
    weights = next(loaded.model.parameters())
    return place(cache, kind="sft", model=loaded.digest, dtype=str(weights.dtype), device=weights.device.type, rows=val.digest(),
                 lora=to_dict(config.lora), chunk=config.chunk, token_budget=config.loop.token_budget)


def tokenise(loaded: Loaded, examples: Sequence[Example], config: SFTConfig, *, folder: Path | str | None = None) -> tuple[RowFile, int]:
    """Rows, on disk in `folder` (None: where the system has its temporary files), and the number of examples that gave none."""
    rows = RowFile(folder)
    skipped = 0
    for example in examples:
        made = rows_of(loaded.tokenizer, example, all_tokens=config.loss == "all", max_tokens=config.max_tokens)
        rows.extend(made)
        skipped += not made
    if examples and not rows:
        raise UserError(f"none of the {len(examples)} examples has a token to train on within max_tokens={config.max_tokens}; "
                        "raise max_tokens, or look at them with: tutelage data inspect --tokens")
    return rows, skipped


def _finish(run: Run, loaded: Loaded, outcome: Outcome, config: dict[str, Any], data_id: str, skipped: int) -> SFTResult:
    manifest = manifest_of(loaded, kind="sft", run=run.id, config=config, data=data_id, role="policy")
    run.finish(lambda folder: save_result(loaded, folder, manifest), steps=outcome.steps, best=outcome.best, skipped=skipped)
    return SFTResult(run.final, outcome, skipped)
