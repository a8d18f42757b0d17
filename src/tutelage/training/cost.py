"""Cost models: how harmful an answer is, and on which side of 0 it stands (C > 0 unsafe, C < 0 safe).

After "Safe RLHF" (Dai et al. 2023, https://arxiv.org/abs/2310.12773, section 3.2): pairs say which answer does more harm,
flags say which answers do any.  Helpfulness does not enter: the more harmful answer of a pair is the one that is flagged
unsafe, whichever of the two was preferred.

The machinery is the reward model's (`training/reward.py`): answers of a prompt stand in one batch element, each is run once,
and the pairs of an element share a weight of 1.  Two things differ.  The head has no bias, so that plain transformers, whose
format has no place for one, reads the same sign.  And an answer's flag counts once, in however many pairs it stands.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tutelage.algos.lagrangian import cost_loss
from tutelage.core.config import to_dict
from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Label, Preference
from tutelage.models.heads import RewardModel, reward_model, save_scalar
from tutelage.stats.ranking import auc
from tutelage.store.runs import begin_or_reopen
from tutelage.text.mask import Row, answer_row
from tutelage.text.pack import micro_batches
from tutelage.training.loop import LoopConfig, Outcome, fit, ratios
from tutelage.training.networks import LoraConfig, fast_matmuls, load_trainable, manifest_of
from tutelage.training.optim import OptimConfig
from tutelage.training.reward import Group, Pair, RewardTask
from tutelage.training.state import SaveConfig, seed_all


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig:
    """A run of `tutelage cost`."""

    model: str = "smollm2-135m"
    data: str = "starter:preferences"
    seed: int = 0
    balance: bool = False  # unsafe answers weigh as much as safe ones in the sign terms, however rare
    by_preference: bool = False  # where flags do not tell the answers of a pair apart, the rejected one did more harm
    frozen_layers: int = 0  # lowest layers (and the embedding) that stay as they are
    max_tokens: int = 512
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    save: SaveConfig = field(default_factory=SaveConfig)


class CostResult(NamedTuple):
    path: Path
    outcome: Outcome


def groups_of(tokenizer: Any, items: Sequence[Preference | Label], config: CostConfig) -> list[Group]:
    """Preferences and labels gathered by prompt, in order of first appearance.

    In a Group's pairs `chosen` is the answer that costs more; its ratings are flags (answer, 1 unsafe or 0 safe, weight).
    A prompt of which nothing is known is left out.
    """
    by_prompt: dict[str, list[Preference | Label]] = {}
    for item in items:
        by_prompt.setdefault(item.prompt.id, []).append(item)
    groups = (_group(tokenizer, members, config) for members in by_prompt.values())
    return [group for group in groups if group.pairs or group.ratings]


def _group(tokenizer: Any, members: Sequence[Preference | Label], config: CostConfig) -> Group:
    rows: list[Row] = []
    place: dict[str, int] = {}
    pairs: list[Pair] = []
    once: dict[tuple[int, bool], float] = {}  # flags that came with pairs: the same flag of the same answer counts once
    flags: list[tuple[int, float, float]] = []

    def at(text: str) -> int:
        if text not in place:
            place[text] = len(rows)
            rows.append(answer_row(tokenizer, members[0].prompt, text, max_tokens=config.max_tokens))
        return place[text]

    for item in members:
        if isinstance(item, Label):
            if item.unsafe is not None:
                flags.append((at(item.response.text), float(item.unsafe), item.weight))
            continue
        sides = ((item.chosen.text, item.chosen_unsafe), (item.rejected.text, item.rejected_unsafe))
        for text, unsafe in sides:
            if unsafe is not None:
                once.setdefault((at(text), unsafe), item.weight)
        harm = _more_harmful(item, by_preference=config.by_preference)
        if harm:
            worse, better = harm
            pairs.append(Pair(at(worse), at(better), 0.0, 1.0, item.weight))
    share = 1 / max(1, len(pairs))
    flags += [(answer, float(unsafe), weight) for (answer, unsafe), weight in once.items()]
    return Group(rows, [pair._replace(weight=pair.weight * share) for pair in pairs], flags)


def _more_harmful(item: Preference, *, by_preference: bool) -> tuple[str, str] | None:
    """(more, less harmful answer) of a pair; None where nothing tells them apart."""
    known = item.chosen_unsafe is not None and item.rejected_unsafe is not None
    if known and item.chosen_unsafe != item.rejected_unsafe:
        sides = (item.chosen.text, item.rejected.text)
        return sides if item.chosen_unsafe else sides[::-1]
    if by_preference and item.soft_label > 0.5:
        return item.rejected.text, item.chosen.text
    return None


def balanced(groups: Sequence[Group], counts: dict[float, float]) -> list[Group]:
    """The groups with the weights of flags changed so that both kinds, whose total weights are `counts`, weigh the same."""
    half = sum(counts.values()) / 2
    return [group._replace(ratings=[(answer, flag, weight * half / counts[flag]) for answer, flag, weight in group.ratings])
            for group in groups]


def flag_counts(groups: Sequence[Group]) -> dict[float, float]:
    """Total weight of safe (0.0) and unsafe (1.0) flags."""
    out = {0.0: 0.0, 1.0: 0.0}
    for group in groups:
        for _, flag, weight in group.ratings:
            out[flag] += weight
    return out


class CostTask(RewardTask):
    """Pair and sign losses over groups; one `row` of the loop is a group."""

    def _loss(self, groups: Sequence[Group], scores_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Weighted losses of every pair and flag, and the sums to log."""
        pairs, flags = placed(groups)
        unsafe_F = torch.tensor([flag > 0.5 for _, flag, _ in flags], dtype=torch.bool, device=scores_N.device)
        out = cost_loss(scores_N[[pair.chosen for pair in pairs]], scores_N[[pair.rejected for pair in pairs]],
                        scores_N[[answer for answer, *_ in flags]], unsafe_F)
        weight_P = scores_N.new_tensor([pair.weight for pair in pairs])
        weight_F = scores_N.new_tensor([weight for *_, weight in flags])
        sums = {"pair_accuracy": float((out.ranked_P * weight_P).sum()), "pair_accuracy_count": float(weight_P.sum()),
                "sign_accuracy": float((out.called_N * weight_F).sum()), "sign_accuracy_count": float(weight_F.sum()),
                "count": float(weight_P.sum() + weight_F.sum())}
        return torch.cat([out.pair_P * weight_P, out.sign_N * weight_F]), sums

    def evaluate(self) -> dict[str, float]:
        """Loss, accuracies by weight, and the area under the ROC curve where both kinds are held out."""
        if not self.val:
            return {}
        sums: Counter = Counter()
        costs: dict[float, list[float]] = {0.0: [], 1.0: []}
        for members in micro_batches([group.tokens() for group in self.val], token_budget=self.config.loop.token_budget):
            groups = [self.val[i] for i in members]
            scores_N, _ = self._scores(groups)
            loss_P, more = self._loss(groups, scores_N)
            sums.update({**more, "loss": float(loss_P.sum())})
            for answer, flag, _ in placed(groups)[1]:
                costs[flag].append(float(scores_N[answer]))
        out = {f"eval_{key}": value for key, value in ratios(sums).items()}
        return {**out, "eval_auc": round(auc(costs[1.0], costs[0.0]), 6)} if costs[1.0] and costs[0.0] else out


def placed(groups: Sequence[Group]) -> tuple[list[Pair], list[tuple[int, float, float]]]:
    """Pairs and flags of several groups, with positions counted over the answers of all of them."""
    base, pairs, flags = 0, [], []
    for group in groups:
        pairs += [pair._replace(chosen=base + pair.chosen, rejected=base + pair.rejected) for pair in group.pairs]
        flags += [(base + answer, flag, weight) for answer, flag, weight in group.ratings]
        base += len(group.rows)
    return pairs, flags


def cost(
    config: CostConfig,
    *,
    train: Sequence[Preference | Label],
    val: Sequence[Preference | Label] = (),
    folder: Path | str,
    data_id: str = "",
    resume: bool = False,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> CostResult:
    """Train a cost model; it is left in `folder`/final, loadable as AutoModelForSequenceClassification with one label.

    UserError where not both kinds are flagged, safe and unsafe.  Resumes where `resume` and `folder` holds a run.
    """
    resolved = to_dict(config)
    run = begin_or_reopen(folder, kind="cost", config=resolved, seed=config.seed, resume=resume,
                          parents=(config.model, data_id))
    if run.finished():
        return CostResult(run.final, Outcome(run.manifest["steps"], run.manifest["best"], False))
    seed_all(config.seed)
    with fast_matmuls(config.device):
        loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora,
                                frozen_layers=config.frozen_layers, gradient_checkpointing=config.gradient_checkpointing)
        run.hold_to({f"model {config.model}": loaded.digest})
        groups, held = groups_of(loaded.tokenizer, train, config), groups_of(loaded.tokenizer, val, config)
        counts = flag_counts(groups)
        if not all(counts.values()):
            raise UserError(f"among the {len(train)} training records, answers of weight {counts[1.0]:g} are flagged unsafe and of "
                            f"weight {counts[0.0]:g} safe; a cost model needs both (chosen_unsafe and rejected_unsafe of "
                            "preferences, unsafe of labels): only they tell it where 0 lies")
        if config.balance:
            groups, held = balanced(groups, counts), balanced(held, counts)
        network = unbiased(reward_model(loaded.model, seed=config.seed))
        task = CostTask(network, groups, held, config)
        outcome = fit(run, task, network, loop=config.loop, optim=config.optim, save=config.save, seed=config.seed,
                      progress=progress, warn=warn)
        manifest = manifest_of(loaded, kind="cost", run=run.id, config=resolved, data=data_id, role="cost")
        run.finish(lambda folder: save_scalar(network, loaded.tokenizer, folder, manifest=manifest),
                   steps=outcome.steps, best={key: value for key, value in outcome.best.items() if math.isfinite(value)})
        return CostResult(run.final, outcome)


def unbiased(network: RewardModel) -> RewardModel:
    """The model with its head's bias held at 0: the format that it is saved in has none, and here the sign means something."""
    network.head.score.bias.requires_grad_(False)
    return network
