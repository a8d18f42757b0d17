"""Reward models from preferences (Bradley-Terry) or ratings.

The score of a conversation is a linear function of the last hidden state at its last real token, found by the mask
(RLHF_CORRECTNESS C33).  All pairs of a prompt stand in one batch element, each answer is run once, and the element's
pairs share a weight of 1 (InstructGPT, Ouyang et al. 2022, section 3.5).  One epoch is the default (C34).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tutelage.algos.preference import bradley_terry_loss, rating_loss
from tutelage.core.config import to_dict
from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Label, Preference
from tutelage.models.heads import RewardModel, reward_model, save_scalar
from tutelage.models.load import Loaded
from tutelage.models.prefix import can_share
from tutelage.store.runs import Run, begin_or_reopen
from tutelage.text.mask import Row, answer_row
from tutelage.text.pack import begins_of, micro_batches
from tutelage.training.batch import collate
from tutelage.training.loop import LoopConfig, Micro, Outcome, fit, ratios
from tutelage.training.networks import LoraConfig, fast_matmuls, load_trainable, manifest_of
from tutelage.training.optim import OptimConfig
from tutelage.training.state import SaveConfig, seed_all


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """A run of `tutelage reward`."""

    model: str = "smollm2-135m"
    data: str = "starter:preferences"
    seed: int = 0
    margin: float = 0.0  # the loss asks for a difference of margin x (strength - 1); 0 = plain Bradley-Terry
    label_smoothing: float = 0.0  # probability that a judgement is upside down
    centre: float = 0.0  # weight of (chosen + rejected)^2
    weigh_by_strength: bool = False  # a pair counts as much as its strength
    frozen_layers: int = 0  # lowest layers (and the embedding) that stay as they are
    max_tokens: int = 512
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    save: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self):
        faults = []
        if not 0 <= self.label_smoothing < 0.5:
            faults.append(f"label_smoothing must be in [0, 0.5); got {self.label_smoothing}")
        if self.margin < 0 or self.centre < 0:
            faults.append(f"margin and centre must be >= 0; got {self.margin} and {self.centre}")
        if faults:
            raise ValueError("\n".join(faults))


class RewardResult(NamedTuple):
    path: Path
    outcome: Outcome


class Pair(NamedTuple):
    """Two answers of a group, by position, and what is known of them."""

    chosen: int
    rejected: int
    margin: float
    soft_label: float
    weight: float


class Group(NamedTuple):
    """A prompt with its answers, each tokenised once, and the pairs (or ratings) among them."""

    rows: list[Row]
    pairs: list[Pair]
    ratings: list[tuple[int, float, float]]  # (answer, rating, weight)

    def tokens(self, *, shared: bool = False) -> int:
        """What the group takes of a micro-batch's budget; `shared`: its prompt goes through the trunk once."""
        lengths = [len(row.token_ids) for row in self.rows]
        if not shared:
            return max(lengths) * len(lengths)
        common = begins_of([row.token_ids for row in self.rows], [0] * len(lengths))[0]
        return common + sum(lengths) - common * len(lengths)


def groups_of(tokenizer: Any, items: Sequence[Preference | Label], config: RewardConfig) -> list[Group]:
    """Preferences (and ratings) gathered by prompt, in order of first appearance."""
    by_prompt: dict[str, list[Preference | Label]] = {}
    for item in items:
        by_prompt.setdefault(item.prompt.id, []).append(item)
    return [_group(tokenizer, members, config) for members in by_prompt.values()]


def _group(tokenizer: Any, members: Sequence[Preference | Label], config: RewardConfig) -> Group:
    rows: list[Row] = []
    place: dict[str, int] = {}

    def at(text: str) -> int:
        if text not in place:
            place[text] = len(rows)
            rows.append(answer_row(tokenizer, members[0].prompt, text, max_tokens=config.max_tokens))
        return place[text]

    pairs, ratings = [], []
    for item in members:
        if isinstance(item, Preference):
            weight = item.weight * (item.strength if config.weigh_by_strength else 1.0)
            soft = config.label_smoothing + (1 - 2 * config.label_smoothing) * item.soft_label
            pairs.append(Pair(at(item.chosen.text), at(item.rejected.text), config.margin * (item.strength - 1), soft, weight))
        elif item.rating is not None or item.desirable is not None:
            rating = item.rating if item.rating is not None else float(item.desirable)
            ratings.append((at(item.response.text), rating, item.weight))
    share = 1 / max(1, len(pairs))
    return Group(rows, [pair._replace(weight=pair.weight * share) for pair in pairs], ratings)


class RewardTask:
    """Pair and rating losses over groups; one `row` of the loop is a group."""

    def __init__(self, network: RewardModel, train: Sequence[Group], val: Sequence[Group], config: RewardConfig):
        self.network, self.train, self.val, self.config = network, train, val, config
        self.rows = len(train)
        self.device = next(network.parameters()).device

    def micro(self, at: list[int]) -> Iterator[Micro]:
        yield from self._losses([self.train[i] for i in at])

    def _losses(self, groups: list[Group]) -> Iterator[Micro]:
        count = sum(pair.weight for g in groups for pair in g.pairs) + sum(w for g in groups for *_, w in g.ratings)
        budget = max(self.config.loop.token_budget, 1)
        shared = can_share(self.network.trunk)
        for members in micro_batches([group.tokens(shared=shared) for group in groups], token_budget=budget):
            chosen = [groups[i] for i in members]
            scores_N, batch_tokens = self._scores(chosen)
            loss_P, sums = self._loss(chosen, scores_N)
            yield Micro(loss_P.sum() / max(count, 1e-8), {**sums, "loss": float(loss_P.detach().sum()), "tokens": batch_tokens})

    def _scores(self, groups: Sequence[Group]) -> tuple[Tensor, int]:
        batch = collate([row for group in groups for row in group.rows], device=self.device)
        return self.network(batch.token_BT, batch.real_BT), int(batch.real_BT.sum())

    def _loss(self, groups: Sequence[Group], scores_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Weighted losses of every pair and rating, and the sums to log."""
        base, chosen, rejected, pairs, rated, ratings = 0, [], [], [], [], []
        for group in groups:
            chosen += [base + pair.chosen for pair in group.pairs]
            rejected += [base + pair.rejected for pair in group.pairs]
            pairs += group.pairs
            rated += [base + answer for answer, *_ in group.ratings]
            ratings += group.ratings
            base += len(group.rows)
        weight_P = scores_N.new_tensor([pair.weight for pair in pairs])
        out = bradley_terry_loss(
            scores_N[chosen], scores_N[rejected], margin_P=scores_N.new_tensor([pair.margin for pair in pairs]),
            soft_label_P=scores_N.new_tensor([pair.soft_label for pair in pairs]), centre=self.config.centre)
        weight_R = scores_N.new_tensor([weight for *_, weight in ratings])
        squares_R = rating_loss(scores_N[rated], scores_N.new_tensor([rating for _, rating, _ in ratings]))
        among = float(weight_P.sum())  # accuracy and margin are of pairs alone
        sums = {"accuracy": float((out.right_P * weight_P).sum()), "accuracy_count": among,
                "margin": float(((scores_N[chosen] - scores_N[rejected]) * weight_P).detach().sum()), "margin_count": among,
                "count": float(weight_P.sum() + weight_R.sum())}
        return torch.cat([out.loss_P * weight_P, squares_R * weight_R]), sums

    def evaluate(self) -> dict[str, float]:
        if not self.val:
            return {}
        sums: Counter = Counter()
        for micro in self._losses(list(self.val)):
            sums.update(micro.sums)
        found = ratios(sums)
        return {f"eval_{key}": found[key] for key in ("loss", "accuracy") if key in found}


def reward(
    config: RewardConfig,
    *,
    train: Sequence[Preference | Label],
    val: Sequence[Preference | Label] = (),
    folder: Path | str,
    data_id: str = "",
    resume: bool = False,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> RewardResult:
    """Train a reward model; it is left in `folder`/final, loadable as AutoModelForSequenceClassification with one label.

    UserError where there is neither a pair nor a rating.  Resumes where `resume` and `folder` holds a run.
    """
    resolved = to_dict(config)
    run = begin_or_reopen(folder, kind="reward", config=resolved, seed=config.seed, resume=resume, parents=(config.model, data_id))
    if run.finished():
        return RewardResult(run.final, Outcome(run.manifest["steps"], run.manifest["best"], False))
    seed_all(config.seed)
    with fast_matmuls(config.device):
        loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora,
                                frozen_layers=config.frozen_layers, gradient_checkpointing=config.gradient_checkpointing)
        run.hold_to({f"model {config.model}": loaded.digest})
        groups = [group for group in groups_of(loaded.tokenizer, train, config) if group.pairs or group.ratings]
        if not groups:
            raise UserError(f"no pair and no rating among the {len(train)} training records; a reward model needs preferences "
                            "(chosen and rejected answers) or rated answers")
        network = reward_model(loaded.model, seed=config.seed)
        task = RewardTask(network, groups, groups_of(loaded.tokenizer, val, config), config)
        outcome = fit(run, task, network, loop=config.loop, optim=config.optim, save=config.save, seed=config.seed,
                      progress=progress, warn=warn)
        return _finish(run, loaded, network, outcome, resolved, data_id)


def _finish(run: Run, loaded: Loaded, network: RewardModel, outcome: Outcome, config: dict[str, Any], data_id: str) -> RewardResult:
    manifest = manifest_of(loaded, kind="reward", run=run.id, config=config, data=data_id, role="reward")
    run.finish(lambda folder: save_scalar(network, loaded.tokenizer, folder, manifest=manifest),
               steps=outcome.steps, best={key: value for key, value in outcome.best.items() if math.isfinite(value)})
    return RewardResult(run.final, outcome)
