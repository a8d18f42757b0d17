"""Offline preference training: DPO, cDPO, robust DPO, IPO, KTO, ORPO, SimPO on answers that were judged before.

The losses stand in algos/direct_preference.py and algos/kto.py, with their sources.  A row of the loop is a record: a pair,
or (KTO) a pair or a single answer called good or bad.  A pair's two answers ride in one micro-batch; a step's loss is the
weighted mean over all of its pairs (KTO: answers), however memory cuts it.

Departures from the papers: (1) KTO's mismatched answers are drawn once for the whole data, not within each batch (so does
TRL), so that the reference can be asked beforehand and a step of one row has an estimate; z is still that of the step's own
prompts.  (2) `sft_coef` adds the NLL per token of the better answer to any of the losses (for DPO that is RPO, Pang et al.
2024, https://arxiv.org/abs/2404.19733, eq. 1); the better one is by soft_label, and a tie adds nothing.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tutelage.algos import direct_preference as pairwise
from tutelage.algos.kto import balance, kto_loss, reference_point
from tutelage.core.config import to_dict
from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Label, Preference
from tutelage.models.load import Loaded
from tutelage.store.runs import Run, begin_or_reopen
from tutelage.text.mask import Row
from tutelage.text.pack import micro_batches
from tutelage.training.actor_critic import Networks
from tutelage.training.loop import LoopConfig, Micro, Outcome, fit, ratios
from tutelage.training.networks import LoraConfig, fast_matmuls, load_trainable, manifest_of, save_merged
from tutelage.training.optim import OptimConfig
from tutelage.training.preference_rows import Item, items_of
from tutelage.training.reference import answer_logps, kept_reference_logps, reference_logps
from tutelage.training.state import SaveConfig, seed_all

LOG_RATIO = ("dpo", "cdpo", "robust_dpo", "ipo")  # pairs, compared with a reference
REFERENCED = (*LOG_RATIO, "kto")
ONLY = {  # option -> the methods for which it means something
    "beta": (*REFERENCED, "simpo"),
    "label_smoothing": ("cdpo", "robust_dpo"),
    "ipo_normalise": ("ipo",),
    "simpo_gamma": ("simpo",),
    "orpo_lambda": ("orpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "sft_coef": (*REFERENCED, "simpo"),  # orpo has it already
    "reference_free": LOG_RATIO,
    "precompute_reference": REFERENCED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferConfig:
    """A run of `tutelage prefer`."""

    method: Literal["dpo", "cdpo", "robust_dpo", "ipo", "kto", "orpo", "simpo"] = "dpo"
    model: str = "smollm2-135m"
    data: str = "starter:preferences"
    seed: int = 0
    beta: float | None = None  # how strongly the policy is held to the reference; null = 0.1 (simpo: 2.0)
    label_smoothing: float = 0.0  # cdpo, robust_dpo: the share of judgements that are upside down
    ipo_normalise: Literal["length", "sum"] = "length"  # log-ratios per token, or of whole answers
    simpo_gamma: float = 1.0  # simpo: by how much the chosen answer's reward is to be the higher one
    orpo_lambda: float = 0.1  # orpo: weight of the odds-ratio term beside the NLL
    desirable_weight: float = 1.0  # kto: of good answers
    undesirable_weight: float = 1.0  # kto: of bad ones
    sft_coef: float = 0.0  # adds this x NLL per token of the better answer
    reference_free: bool = False  # dpo, cdpo, robust_dpo, ipo: as if the reference found every answer equally likely
    precompute_reference: bool | None = None  # ask the reference once, beforehand; null = yes, with LoRA no
    frozen_layers: int = 0  # lowest layers (and the embedding) that stay as they are
    max_tokens: int = 512  # of prompt and answer; a prompt loses its beginning first
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    chunk: int = 512  # positions whose logits exist at once
    lora: LoraConfig = field(default_factory=LoraConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=5e-6, warmup=0.1))
    save: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self):
        faults = self._out_of_place()
        if self.method in ONLY["label_smoothing"] and not 0 < self.label_smoothing < 0.5:
            faults.append(f"{self.method} needs label_smoothing, the share of judgements that are upside down, above 0 and "
                          f"below 0.5 (for instance 0.1); got {self.label_smoothing}")
        for name in ("beta", "desirable_weight", "undesirable_weight", "orpo_lambda"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                faults.append(f"{name} must be > 0; got {value}")
        for name, least in (("sft_coef", 0), ("simpo_gamma", 0), ("max_tokens", 1), ("chunk", 1)):
            if getattr(self, name) < least:
                faults.append(f"{name} must be >= {least}; got {getattr(self, name)}")
        if self.reference_free and self.precompute_reference:
            faults.append("precompute_reference has nothing to ask where reference_free is true: leave one of them out")
        if faults:
            raise ValueError("\n".join(faults))

    def _out_of_place(self) -> list[str]:
        """Options that were set and mean nothing to the method."""
        defaults = {each.name: each.default for each in fields(self)}
        return [f"{name} belongs to {', '.join(methods)}, and method is {self.method}: leave it out"
                for name, methods in ONLY.items() if self.method not in methods and getattr(self, name) != defaults[name]]

    def strength(self) -> float:
        """`beta`, or the method's own where it is null."""
        return self.beta if self.beta is not None else 2.0 if self.method == "simpo" else 0.1

    def asks_reference(self) -> bool:
        return self.method in REFERENCED and not self.reference_free

    def asks_beforehand(self) -> bool:
        wanted = self.precompute_reference if self.precompute_reference is not None else not self.lora.rank
        return self.asks_reference() and wanted


def pair_loss(config: PreferConfig) -> Callable[[pairwise.Pairs], pairwise.PairLosses]:
    """The loss that the method's name stands for (any but kto), with its options."""
    beta, share = config.strength(), config.label_smoothing
    return {
        "dpo": partial(pairwise.dpo_loss, beta=beta),
        "cdpo": partial(pairwise.cdpo_loss, beta=beta, label_smoothing=share),
        "robust_dpo": partial(pairwise.robust_dpo_loss, beta=beta, label_smoothing=share),
        "ipo": partial(pairwise.ipo_loss, beta=beta, normalise=config.ipo_normalise),
        "simpo": partial(pairwise.simpo_loss, beta=beta, gamma=config.simpo_gamma),
        "orpo": partial(pairwise.orpo_loss, weight=config.orpo_lambda),
    }[config.method]


class PreferResult(NamedTuple):
    path: Path  # the policy, in Hugging Face format, adapters merged
    outcome: Outcome


class PreferTask:
    """Preference losses over records; one `row` of the loop is a record.  N = answers, P = pairs."""

    def __init__(self, networks: Networks, train: Sequence[Item], val: Sequence[Item], config: PreferConfig):
        self.networks, self.train, self.val, self.config = networks, train, val, config
        self.rows = len(train)
        self.device = next(networks.policy.parameters()).device
        self.pair_loss = pair_loss(config) if config.method != "kto" else None

    def micro(self, at: list[int]) -> Iterator[Micro]:
        yield from self._losses([self.train[i] for i in at])

    def _losses(self, items: list[Item]) -> Iterator[Micro]:
        kto = self.pair_loss is None
        count = max(sum(item.weight * (len(item.rows) if kto else 1) for item in items), 1e-8)
        z = self._reference_point(items) if kto else None
        for members in micro_batches([item.tokens() for item in items], token_budget=self.config.loop.token_budget):
            part = [items[i] for i in members]
            rows = [row for item in part for row in item.rows]
            answers = answer_logps(self.networks, rows)
            ref_logp_N = self._reference(rows, [logp for item in part for logp in item.reference[:len(item.rows)]])
            found = (part, answers.logp_B, ref_logp_N, answers.count_B)
            loss, sums = self._kto(*found, z) if kto else self._pairs(*found)
            yield Micro(loss.sum() / count, {**sums, "loss": float(loss.detach().sum()), "tokens": answers.tokens})

    def _reference(self, rows: Sequence[Row], known: Sequence[float]) -> Tensor:
        """What the reference says of the rows: as it was asked beforehand, or now."""
        return torch.tensor(known, device=self.device) if known else reference_logps(self.networks, rows)

    def _pairs(self, items: Sequence[Item], logp_N: Tensor, ref_logp_N: Tensor, count_N: Tensor
               ) -> tuple[Tensor, dict[str, float]]:
        """Weighted losses per pair, and the sums to log."""
        weight_P = logp_N.new_tensor([item.weight for item in items])
        pairs = pairwise.Pairs(logp_N[0::2], logp_N[1::2], ref_logp_N[0::2], ref_logp_N[1::2], count_N[0::2], count_N[1::2],
                               logp_N.new_tensor([item.soft_label for item in items]))
        out = self.pair_loss(pairs)
        loss_P = out.loss_P
        if self.config.sft_coef:
            loss_P = loss_P - self.config.sft_coef * _better_mean_logp(pairs)
        found = {"accuracy": out.right_P, "margin": out.chosen_reward_P - out.rejected_reward_P,
                 "chosen_reward": out.chosen_reward_P, "rejected_reward": out.rejected_reward_P,
                 "chosen_logp": pairs.chosen_logp_P, "rejected_logp": pairs.rejected_logp_P}
        sums = {name: float((value_P.detach() * weight_P).sum()) for name, value_P in found.items()}
        return loss_P * weight_P, {**sums, "count": float(weight_P.sum())}

    def _kto(self, items: Sequence[Item], logp_N: Tensor, ref_logp_N: Tensor, count_N: Tensor, z: Tensor
             ) -> tuple[Tensor, dict[str, float]]:
        """Weighted losses per answer, and the sums to log: of good answers, of bad ones, and of the records that are pairs."""
        config = self.config
        weight_N = logp_N.new_tensor([item.weight for item in items for _ in item.rows])
        good_N = torch.tensor([good for item in items for good in item.good], device=self.device)
        out = kto_loss(logp_N, ref_logp_N, good_N, z=z, beta=config.strength(), desirable_weight=config.desirable_weight,
                       undesirable_weight=config.undesirable_weight)
        loss_N = out.loss_N
        if config.sft_coef:
            loss_N = loss_N - torch.where(good_N, config.sft_coef * logp_N / count_N.clamp(min=1), 0.0)
        sums = {"count": float(weight_N.sum()), "z": float(z * weight_N.sum()), **_ranking(items, out.reward_N.tolist())}
        for side, of_N in (("chosen", good_N), ("rejected", ~good_N)):
            share_N = torch.where(of_N, weight_N, 0.0)
            for name, value_N in ((f"{side}_reward", out.reward_N), (f"{side}_logp", logp_N.detach())):
                sums |= {name: float((value_N * share_N).sum()), f"{name}_count": float(share_N.sum())}
        return loss_N * weight_N, sums

    @torch.no_grad()
    def _reference_point(self, items: Sequence[Item]) -> Tensor:
        """KTO's z of a step: the policy's mean log-ratio on the strange answers of all of its rows."""
        rows = [row for item in items for row in item.strangers]
        known = [logp for item in items for logp in item.reference[len(item.rows):]]
        logps, refs = [torch.zeros(0, device=self.device)], [torch.zeros(0, device=self.device)]
        for members in micro_batches([len(row.token_ids) for row in rows], token_budget=self.config.loop.token_budget):
            part = [rows[i] for i in members]
            logps.append(answer_logps(self.networks, part).logp_B)
            refs.append(self._reference(part, [known[i] for i in members] if known else []))
        return reference_point(torch.cat(logps), torch.cat(refs))

    def evaluate(self) -> dict[str, float]:
        if not self.val:
            return {}
        sums: Counter = Counter()
        for micro in self._losses(list(self.val)):
            sums.update(micro.sums)
        return {f"eval_{key}": value for key, value in ratios(sums).items() if key != "tokens"}


def _better_mean_logp(pairs: pairwise.Pairs) -> Tensor:
    """Mean log-probability of a token of the better answer, [P]: `chosen`, or `rejected` where the judges came to prefer that
    (soft_label below 0.5); 0 for a tie."""
    chosen_P = pairs.chosen_logp_P / pairs.chosen_count_P.clamp(min=1)
    rejected_P = pairs.rejected_logp_P / pairs.rejected_count_P.clamp(min=1)
    likely_P = pairs.soft_label_P  # that chosen is the better one
    return torch.where(likely_P > 0.5, chosen_P, torch.where(likely_P < 0.5, rejected_P, 0.0))


def _ranking(items: Sequence[Item], rewards: Sequence[float]) -> dict[str, float]:
    """Sums of accuracy and margin over the records that are pairs, from the rewards of all answers in their order."""
    at, right, margin, count = 0, 0.0, 0.0, 0.0
    for item in items:
        mine = rewards[at:at + len(item.rows)]
        at += len(item.rows)
        if len(mine) == 2:
            better, worse = mine if item.good[0] else mine[::-1]
            right, margin = right + item.weight * (better > worse), margin + item.weight * (better - worse)
            count += item.weight
    return {"accuracy": right, "accuracy_count": count, "margin": margin, "margin_count": count}


def prefer(
    config: PreferConfig,
    *,
    train: Sequence[Preference | Label],
    val: Sequence[Preference | Label] = (),
    folder: Path | str,
    data_id: str = "",
    resume: bool = False,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> PreferResult:
    """Train a policy on judged answers; it is left in `folder`/final, a plain model in Hugging Face format.

    UserError where no record is of use to the method.  Resumes where `resume` and `folder` holds a run.
    """
    run = begin_or_reopen(folder, kind="prefer", config=to_dict(config), seed=config.seed, resume=resume,
                          parents=(config.model, data_id))
    if run.finished():
        return PreferResult(run.final, Outcome(run.manifest["steps"], run.manifest["best"], False))
    seed_all(config.seed)
    with fast_matmuls(config.device):
        loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora,
                                frozen_layers=config.frozen_layers, gradient_checkpointing=config.gradient_checkpointing)
        run.hold_to({f"model {config.model}": loaded.digest})
        read = partial(items_of, loaded.tokenizer, method=config.method, max_tokens=config.max_tokens, seed=config.seed)
        splits = [read(train), read(val)]
        _look_at(splits[0], len(train), config, warn)
        networks = networks_of(loaded, config)
        splits = with_reference(run, networks, splits, config, model=loaded.digest, progress=progress, warn=warn)
        outcome = fit(run, PreferTask(networks, *splits, config), loaded.model, loop=config.loop, optim=config.optim,
                      save=config.save, seed=config.seed, progress=progress, warn=warn)
        return _finish(run, loaded, outcome, config, data_id)


def _look_at(items: Sequence[Item], records: int, config: PreferConfig, warn: Callable[[str], None]) -> None:
    """UserError where there is nothing to learn from; warnings where something will not go as one may think."""
    kto = config.method == "kto"
    wants = "pairs that are no ties, or answers labelled desirable or not" if kto else "pairs of a chosen and a rejected answer"
    if not items:
        raise UserError(f"{config.method} learns from {wants}; none of the {records} training records is of use to it"
                        + ("" if kto else ". Single answers called good or bad are for method=kto"))
    if len(items) < records:
        warn(f"{records - len(items)} of the {records} training records are left out: {config.method} learns from {wants}")
    if not kto:
        return
    verdicts = Counter(good for item in items for good in item.good)
    found = balance(verdicts[True], verdicts[False], desirable_weight=config.desirable_weight,
                    undesirable_weight=config.undesirable_weight)
    if not found.fits:
        low, high = found.desirable_weight
        cure = f"; set desirable_weight between {low:.3g} and {high:.3g}" if 0 < low < math.inf else ""
        warn(f"kto: with these weights {verdicts[True]} good and {verdicts[False]} bad answers count {found.ratio:.3g} to 1; "
             f"between 1 and 4/3 to 1 is what works{cure}")
    if not any(item.strangers for item in items):
        warn("kto: all answers are to one prompt, so nothing tells how far the policy has moved: z stays 0")


def networks_of(loaded: Loaded, config: PreferConfig) -> Networks:
    """The policy, and a copy of it only where the reference is asked as it goes and there are no adapters to switch off."""
    copied = config.asks_reference() and not config.asks_beforehand() and not config.lora.rank
    return Networks(loaded.model, reference=copy.deepcopy(loaded.model) if copied else None, heads=(), chunk=config.chunk)


def with_reference(
    run: Run, networks: Networks, splits: Sequence[Sequence[Item]], config: PreferConfig, *, model: str,
    progress: Progress = silent, warn: Callable[[str], None] = lambda text: None,
) -> list[list[Item]]:
    """The items of each split with the reference's log-probabilities: 0 where there is none, () where it is asked later.

    `model`: digest of the reference's weights.
    """
    if config.asks_reference() and not config.asks_beforehand():
        return [list(items) for items in splits]
    rows = [row for items in splits for item in items for row in item.all_rows()]
    if config.asks_reference():
        logps = iter(kept_reference_logps(run, networks, rows, model=model, token_budget=config.loop.token_budget,
                                          progress=progress, warn=warn))
    else:
        logps = iter([0.0] * len(rows))
    return [[item._replace(reference=tuple(next(logps) for _ in item.all_rows())) for item in items] for items in splits]


def _finish(run: Run, loaded: Loaded, outcome: Outcome, config: PreferConfig, data_id: str) -> PreferResult:
    manifest = manifest_of(loaded, kind="prefer", run=run.id, config=to_dict(config), data=data_id, role="policy")
    run.finish(lambda folder: save_merged(loaded, folder, manifest), steps=outcome.steps,
               best={key: value for key, value in outcome.best.items() if math.isfinite(value)})
    return PreferResult(run.final, outcome)
