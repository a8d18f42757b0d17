"""Checks of the loaded model: what learns, in which numbers, and whether two passes agree."""

import math
from collections.abc import Iterator

import torch

from tutelage.core.errors import UserError
from tutelage.models.heads import lm_parts, plain_model
from tutelage.preflight.findings import Blocked, Finding, of
from tutelage.preflight.setup import Setup, some
from tutelage.text.mask import Row
from tutelage.training.batch import Batch, collate, forward

FEW = 6  # rows that go through the model
WIDEST = 256  # tokens of each


def nothing_to_train(setup: Setup) -> Iterator[Finding]:
    reference = "peft #282, #1410; trl #3926; alpaca-lora #352"
    try:
        model = setup.loaded.model
    except UserError:
        raise  # names its cause and cure itself
    except ValueError as error:  # peft: no layer of that name
        raise Blocked(Finding(
            code="nothing-to-train", cause=f"the adapters cannot be put on: {str(error).splitlines()[0]}",
            cure="set lora.targets=all-linear, or name linear layers of this model", reference=reference)) from error
    learns = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    frozen = sum(not p.requires_grad for p in adapters)
    if not learns and setup.command not in ("reward", "cost"):  # those have a new head, which learns
        raise Blocked(Finding(
            code="nothing-to-train", cause="no parameter of the model requires a gradient: the run would change nothing",
            cure="set lora.rank above 0, or train all weights (lora.rank=0, frozen_layers=0)", reference=reference))
    if setup.lora_rank and (not adapters or frozen):
        yield Finding(
            code="nothing-to-train", cause=f"lora.rank is {setup.lora_rank}, and "
                                           + (f"{of(frozen, len(adapters))} adapter weights are frozen" if adapters
                                              else "the model has no adapter"),
            cure="load the adapter for training (is_trainable=True), or begin from the merged model", reference=reference)


def float16(setup: Setup) -> Iterator[Finding]:
    halves = sum(p.dtype == torch.float16 for p in setup.loaded.model.parameters())
    if halves:
        yield Finding(
            code="float16", cause=f"{halves} weights of the model are float16, whose range ends at 65,504: activations "
                                  "overflow and the loss becomes NaN without a loss scaler (there is none here)",
            cure="set dtype=bfloat16 or dtype=float32", reference="C30; trl #3236, #878")


def pad_frozen(setup: Setup) -> Iterator[Finding]:
    embedding = plain_model(setup.loaded.model).get_input_embeddings()
    pad = getattr(embedding, "padding_idx", None)
    if pad is not None and pad in setup.ends:
        yield Finding(
            code="pad-frozen", cause=f"the embedding's padding_idx is {pad}, and that token also ends an answer: it gets no "
                                     "gradient, so its embedding stays as it is",
            cure="load the model with tutelage.load, or set model.get_input_embeddings().padding_idx = None",
            reference="C1; trl #6357, #976; Megatron-Bridge #4660")


def batch_of(setup: Setup) -> Batch:
    """A few rows, every token but the first of each acted."""
    long = [cut.token_ids[:WIDEST] for _, cut in setup.cut_rows if len(cut.token_ids) > 1]
    return collate([Row(ids, [1.0] * len(ids)) for ids in some(long, FEW)], device=next(setup.loaded.model.parameters()).device)


def passes(setup: Setup) -> Iterator[Finding]:
    """Two forward passes in training mode, without gradient."""
    model = setup.loaded.model
    if not any(len(cut.token_ids) > 1 for _, cut in setup.cut_rows):
        return
    decoder, lm_head, post = lm_parts(model)
    batch = batch_of(setup)
    look = lambda: forward(decoder, lambda hidden: post(lm_head(hidden)), batch.token_BT, batch.acted_BT, entropy=False).logp_BT
    was_training = model.training
    model.train()
    try:
        with torch.no_grad():
            first, second = look(), look()
    finally:
        model.train(was_training)
    if not bool(torch.isfinite(first).all()):
        yield Finding(
            code="not-finite", cause="log-probabilities of the training rows are NaN or infinite before the first step",
            cure="the weights are damaged or overflow: load the model again, or set dtype=float32", reference="C30; trl #3236")
        return
    apart = float((first - second).abs().max())
    if apart > 1e-3:
        yield Finding(
            code="dropout", cause=f"two passes over the same rows in training mode differ by up to {apart:.2g} nats: dropout "
                                  "(or other noise) is on, so the ratio of new to old probability is not 1 before the first "
                                  "update",
            cure="set every dropout of the model's configuration to 0 (tutelage.load does)", reference="C10; trl #3234, #2042")
    nll = -float(first.sum() / batch.acted_BT.sum())
    chance = math.log(plain_model(model).config.get_text_config().vocab_size)
    if nll > 1.25 * chance:
        yield Finding(
            code="worse-than-chance", severity="warning",
            cause=f"the model finds the training texts less likely than guessing would: {nll:.1f} nats a token, where guessing "
                  f"among its {round(math.exp(chance)):,} tokens costs {chance:.1f}",
            cure="the tokenizer is probably another model's (ids that mean other tokens): use the one that came with the "
                 "weights",
            reference="tokenizers #1609")
