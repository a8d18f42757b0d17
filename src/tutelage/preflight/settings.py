"""Checks of the configuration alone: numbers that are allowed and still make no sense for the method."""

from collections.abc import Iterator
from typing import NamedTuple

from tutelage.preflight.findings import Finding
from tutelage.preflight.setup import Setup, is_folder


class Range(NamedTuple):
    low: float
    high: float


# Learning rates of AdamW that published runs used, with room on both sides: (all weights, adapters).  For 100 million
# parameters and more; smaller models bear more.  rl: lm-human-preferences 1e-5, N+ 3e-6, OpenRLHF 5e-7; prefer: DPO 5e-7,
# ORPO 8e-6.
LEARNING_RATES = {
    "sft": (Range(1e-6, 1e-3), Range(1e-5, 5e-3)),
    "reward": (Range(5e-7, 5e-4), Range(1e-6, 3e-3)),
    "cost": (Range(5e-7, 5e-4), Range(1e-6, 3e-3)),
    "span-reward": (Range(5e-7, 5e-4), Range(1e-6, 3e-3)),
    "prefer": (Range(1e-8, 2e-4), Range(1e-7, 1e-3)),
    "rl": (Range(1e-8, 3e-4), Range(1e-7, 1e-3)),
    "classify": (Range(1e-6, 1e-3), Range(1e-5, 1e-1)),  # the second: the classification layer alone
}
IMITATING = ("best_of_n", "expert_iteration")  # train on picked answers, and have no KL penalty


def learning_rate(setup: Setup) -> Iterator[Finding]:
    rate = setup.config.optim.learning_rate
    some_weights = setup.lora_rank > 0 or getattr(setup.config, "train", "all") == "head"
    given = LEARNING_RATES[setup.command][some_weights]
    size = setup.size.parameters if setup.size else 10**8
    bears = min(100.0, max(1.0, (1e8 / size) ** 0.5))
    low, high = given.low, given.high * bears
    if low <= rate <= high:
        return
    what = "adapters" if setup.lora_rank else "the classification layer" if some_weights else "all weights"
    effect = "the weights will be ruined within a few steps" if rate > high else "nothing will be learned"
    yield Finding(
        code="learning-rate", severity="error" if rate > 10 * high else "warning",
        cause=f"optim.learning_rate is {rate:g}; training {what} with {setup.method} is usual between {low:g} and {high:.2g} "
              f"for this model: {effect}",
        cure=f"set optim.learning_rate between {low:g} and {high:.2g}",
        reference="RLHF_CORRECTNESS 4.1, 4.5 (7e-4 is A2C's rate for small networks); trl #5174")


def temperature(setup: Setup) -> Iterator[Finding]:
    value = setup.config.temperature
    if 0.2 <= value <= 2.0:
        return
    effect = ("answers to a prompt hardly differ, so there is nothing to learn from" if value < 1
              else "answers are close to noise, and the policy that is trained is not the one that will be used")
    yield Finding(
        code="temperature", severity="warning", cause=f"temperature is {value:g}: {effect}",
        cure="set temperature between 0.5 and 1.2", reference="C8")


def group_size(setup: Setup) -> Iterator[Finding]:
    """One answer a prompt is refused by the configuration itself; two are allowed, and tell GRPO next to nothing."""
    if setup.method == "grpo" and setup.config.responses_per_prompt == 2 and getattr(setup.config, "scale", "") == "group_std":
        yield Finding(
            code="group-size", severity="warning",
            cause="with 2 responses_per_prompt divided by their own spread, GRPO's advantages only ever have one size and 0: "
                  "by how much one answer is better is lost",
            cure="set responses_per_prompt to 4 or more, or scale=none", reference="RLHF_CORRECTNESS 4.6")


def kl_off(setup: Setup) -> Iterator[Finding]:
    learned = [key for key, name in setup.judge_names.items() if key != "cost" and is_folder(name)]
    if setup.config.beta == 0 and learned and setup.method not in IMITATING:
        yield Finding(
            code="kl-off", severity="warning",
            cause=f"beta is 0 and {learned[0]} is a learned model: the policy will leave the texts that the reward model "
                  "knows, and its score will rise where answers get worse",
            cure="set beta (0.01 to 0.1), and watch a second judge; kl_target alone leaves a beta of 0 as it is, since it "
                 "multiplies it",
            reference="RLHF_CORRECTNESS 4.1, 4.3; Gao et al. 2022 (https://arxiv.org/abs/2210.10760); trl #204")

