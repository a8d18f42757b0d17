"""Best-of-n: answer several times and keep what the judge likes best (Stiennon et al. 2020, https://arxiv.org/abs/2009.01325).

`best_of_n` is the inference-time policy: no training, n times the cost.  The algorithm of that name distils it: each step
draws n answers a prompt from the policy as it is, and takes one step of SFT on the best (BOND and BoNBoN aim at the same
target by other losses: Sessa et al. 2024, https://arxiv.org/abs/2407.14622; Gui et al. 2024, https://arxiv.org/abs/2406.00832).

What to know: the answers come from the moving policy, so `kl_bound` holds for one step's best-of-n against that step's
policy and not for the run; nothing holds the policy to the reference, so `beta` must be 0 and `kl` is only watched; the
likelihood that is raised is that of the policy as it was sampled, at `temperature`; prompts whose answers all
score alike are left out of a step, since learning one of them feeds the policy nothing but its own noise.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tutelage.algos.best_of_n import best_of_group, kl_bound
from tutelage.algos.groups import flat_groups
from tutelage.algos.kl import k1
from tutelage.algos.policy_gradient import policy_gradient_loss
from tutelage.core.protocols import Engine, Judge
from tutelage.core.words import Judgement, Prompt, Response, Sampling
from tutelage.training.batch import Forward, Rollouts
from tutelage.training.on_policy import (
    Part,
    RewardSignal,
    RLConfig,
    Stats,
    TrainState,
    over_tokens,
    place_scores,
    report,
    scores_of,
)
from tutelage.training.on_policy import improve as improve_with
from tutelage.training.rollouts import answer, judge_all, score


def best_of_n(engine: Engine, judge: Judge, prompts: Sequence[Prompt], sampling: Sampling) -> list[Response]:
    """The answer to each prompt, of `sampling.n`, that the judge values most; the first of equal ones."""
    responses = answer(engine, prompts, sampling)
    return best_responses(responses, judge_all(judge, prompts, responses))


def best_responses(responses: Sequence[Response], judgements: Sequence[Judgement]) -> list[Response]:
    """One response a judgement: that of the highest value, the first of equal ones."""
    by_id = {response.id: response for response in responses}
    # max takes the first of equal ones
    return [by_id[max(zip(j.values, j.responses, strict=True), key=lambda each: each[0])[1]] for j in judgements]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfNConfig(RLConfig):
    """A run of `tutelage rl` with `algorithm: best_of_n`."""

    algorithm: Literal["best_of_n"] = "best_of_n"
    responses_per_prompt: int = 4  # the n
    beta: float = 0.0

    def faults(self) -> list[str]:
        return RLConfig.faults(self) + imitation_faults(self)


def imitation_faults(config: RLConfig) -> list[str]:
    """Of algorithms that train on picked answers."""
    out = []
    if config.responses_per_prompt == 1:
        out.append(f"{config.algorithm} picks among the responses of a prompt: set responses_per_prompt to 2 or more")
    if config.beta > 0 or config.kl_target is not None:
        out.append(f"{config.algorithm} trains on its own best answers and has no KL penalty: "
                   "set beta to 0 and kl_target to null, and watch kl")
    return out


def step(state: TrainState, prompts: Sequence[Prompt], config: BestOfNConfig) -> Stats:
    """One iteration: answer n times, judge, keep the best, one step of SFT on them."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    rollouts = score(state, prompts, responses, config)
    signal = credit(rollouts, judgements, config)
    sums = imitate(state, rollouts, signal, config)
    return report(state, responses, judgements, rollouts, signal, sums, in_groups=True, kl_bound=kl_bound(config.responses_per_prompt),
                  **picked_facts(rollouts, judgements, signal))


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: BestOfNConfig) -> RewardSignal:
    """Advantage 1 for the tokens of each prompt's best answer, 0 for all others.  Pure."""
    score_B = scores_of(rollouts, judgements, config)
    return picked(rollouts, score_B, best_of_group(score_B, rollouts.group_B) & differ(score_B, rollouts.group_B), config)


def differ(score_B: Tensor, group_B: Tensor) -> Tensor:
    """bool [B], False for answers to a prompt that all score alike: to learn one of them is to learn one's own noise."""
    return ~flat_groups(score_B.double(), group_B)  # float64: float32 calls equal scores of 1000.1 different


def picked(rollouts: Rollouts, score_B: Tensor, keep_B: Tensor, config: RLConfig) -> RewardSignal:
    """Credit for answers to be imitated: SFT is the policy gradient with advantage 1.

    An answer that the length limit cut off is no example to follow, be it the best of its group (where `missing_eos` is set).
    """
    acted_BT = rollouts.acted_BT
    if config.missing_eos is not None:
        keep_B = keep_B & rollouts.stopped_B
    return RewardSignal(score_B, k1(rollouts.logp_BT, rollouts.ref_logp_BT, acted_BT), place_scores(score_B, acted_BT),
                        over_tokens(keep_B.float(), acted_BT))


def imitate(state: TrainState, rollouts: Rollouts, signal: RewardSignal, config: RLConfig, *, epochs: int = 1,
            minibatches: int = 1) -> Counter:
    """SFT on the answers that were kept: mean of -log p over their tokens.  Returns sums over updates."""

    def loss(part: Part, new: Forward) -> tuple[Tensor, dict[str, float]]:
        loss_BT = policy_gradient_loss(new.logp_BT, part.cut(signal.advantage_BT), part.acted_BT)
        return part.share(loss_BT), {"policy_loss": float(loss_BT.detach().sum())}

    return improve_with(state, rollouts, config, loss, epochs=epochs, minibatches=minibatches, rows=kept_rows(signal))


def kept_rows(signal: RewardSignal) -> list[int]:
    return (signal.advantage_BT > 0).any(1).nonzero()[:, 0].tolist()


def picked_facts(rollouts: Rollouts, judgements: Sequence[Judgement], signal: RewardSignal) -> dict[str, float]:
    """Metrics of what was picked."""
    return {"reward_best": sum(max(j.values) for j in judgements) / len(judgements),
            "kept": len(kept_rows(signal)) / len(rollouts.group_B)}
