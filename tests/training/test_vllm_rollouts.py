"""Runs of `tutelage rl` whose answers a server draws: what is learned, corrected, resumed and left behind."""

import pytest
import toys
from test_policy_gradients_learn import SEED, share_of_e
from vllm_stub import read, serving

from tutelage.judges.rules import FunctionJudge
from tutelage.store.runs import Run
from tutelage.training.grpo import GRPOConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.rl import rl
from tutelage.training.state import SaveConfig


@pytest.fixture(scope="module")
def babbler(tmp_path_factory):
    return toys.babbler(tmp_path_factory.mktemp("babbler"))


def run_of(stub, babbler, folder, *, steps=10, prompts=8, judge=share_of_e, **more):
    config = GRPOConfig(model=str(babbler), steps=steps, prompts_per_step=prompts, responses_per_prompt=4, max_tokens=8, beta=0.02,
                        device="cpu", dtype="float32", seed=SEED, normalise_on=0,
                        missing_eos=-0.5, lora=LoraConfig(rank=0), token_budget=8192,
                        rollout_address=stub.address, save=SaveConfig(every_steps=2, every_seconds=0),
                        optim=OptimConfig(learning_rate=1e-3, schedule="constant", betas=(0.9, 0.95), eps=1e-5))
    rl(config, prompts=[toys.ask(f"q{number}") for number in range(8)], judge=FunctionJudge(judge), folder=folder, **more)
    return [row for row in Run(folder).metrics() if "reward" in row]


def test_it_learns_as_with_answers_drawn_here(babbler, tmp_path):
    """The margin of test_policy_gradients_learn.py; the server has the weights of every step."""
    with serving(babbler) as stub:
        rows = run_of(stub, babbler, tmp_path / "rl")
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[-3:]) / 3 - rewards[0] > 0.4, rewards
    assert all(row["sampler_gap"] < 1e-4 and row["effective"] > 0.999 for row in rows)
    assert len([path for path, _ in stub.told if path == "/collective_rpc"]) == 10
    assert not (tmp_path / "rl" / "exchange").exists()


def test_a_run_that_was_stopped_goes_on_where_it_was(babbler, tmp_path):
    calls, small = [], {"steps": 5, "prompts": 2}

    def stops(prompts, responses):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return share_of_e(prompts, responses)

    with serving(babbler) as stub:
        whole = run_of(stub, babbler, tmp_path / "whole", **small)
    with serving(babbler) as stub:
        with pytest.raises(KeyboardInterrupt):
            run_of(stub, babbler, tmp_path / "cut", judge=stops, **small)
        stub.model = read(babbler)  # it was started anew, and knows nothing of the run
        found = run_of(stub, babbler, tmp_path / "cut", resume=True, **small)
    assert [row["reward"] for row in found] == pytest.approx([row["reward"] for row in whole], abs=1e-5)


@pytest.mark.parametrize(("values", "words"), [
    ({"rollout_address": "localhost:8000"}, "rollout_address must be the address of a vLLM server"),
    ({"rollout_address": "http://localhost:8000/v1", "rollout_weights": "int8"}, "leave one out"),
])
def test_settings_that_contradict_one_another_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        GRPOConfig(**values)
