"""How much time a PPO step saves when each prompt goes through the networks once for all of its responses.

    python benchmarks/prefix_sharing.py [--steps 3] [--prompts 8] [--responses 4] [--tokens 48]

SmolLM2-135M-Instruct, prompts of the starter set, upper half trained, the settings of the demo.  Both ways answer the same
prompts, take turns, and are timed in one process; the medians of the steps and their ratio are printed.
"""

import argparse
import statistics
import time
from dataclasses import replace

from tutelage.core.words import Judgement
from tutelage.data import starter
from tutelage.judges.reward_model import RewardJudge
from tutelage.models import prefix
from tutelage.models.heads import reward_model
from tutelage.models.load import load
from tutelage.pipeline.demo import DemoConfig
from tutelage.training import ppo
from tutelage.training.networks import fast_matmuls, load_trainable
from tutelage.training.rl import ScaledJudge, begin_state, fitting
from tutelage.training.rollouts import answer, judge_all, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("steps", 3), ("prompts", 8), ("responses", 4), ("tokens", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    config = replace(DemoConfig().ppo, model="smollm2-135m", prompts_per_step=args.prompts, responses_per_prompt=args.responses,
                     max_tokens=args.tokens)
    with fast_matmuls("cpu"):
        loaded = load_trainable(config.model, dtype="auto", device="cpu", lora=config.lora, frozen_layers=config.frozen_layers)
        scorer = load(config.model)
        judge = RewardJudge(reward_model(scorer.model.eval(), seed=0), scorer.tokenizer, id="reward:untrained")
        state = begin_state(config, loaded, ScaledJudge(judge))
        prompts, _ = fitting(loaded.tokenizer, [starter_prompt for starter_prompt in starter.evaluation()], config.max_prompt_tokens)
        found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for number in range(args.steps + 1):  # the first warms up
            asked = prompts[number * args.prompts:(number + 1) * args.prompts]
            responses = answer(state.engine, asked, config.sampling(number))
            for shared in (True, False):
                row = timed(state, asked, responses, config, shared=shared)
                if number:
                    found[shared].append(row)
    print(f"{'seconds, median of ' + str(args.steps):<24}{'row by row':>12}{'shared':>10}{'ratio':>8}")
    for name in ("judge", "score", "improve", "all"):
        alone, together = (statistics.median(row[name] for row in found[shared]) for shared in (False, True))
        print(f"{name:<24}{alone:>12.2f}{together:>10.2f}{alone / together:>8.2f}")


def timed(state, prompts, responses, config, *, shared: bool) -> dict[str, float]:
    known = prefix.PLAIN
    state.networks.shares = shared
    prefix.PLAIN = known if shared else frozenset()
    try:
        out: dict[str, float] = {}
        begun = time.perf_counter()
        judgements: list[Judgement] = judge_all(state.judge, prompts, responses)
        out["judge"] = time.perf_counter() - begun
        rollouts = score(state, prompts, responses, config)
        out["score"] = time.perf_counter() - begun - out["judge"]
        signal = ppo.credit(rollouts, judgements, config, beta=config.beta)
        ppo.improve(state, rollouts, signal, config)
        out["all"] = time.perf_counter() - begun
        out["improve"] = out["all"] - out["judge"] - out["score"]
        return out
    finally:
        prefix.PLAIN = known


if __name__ == "__main__":
    main()
