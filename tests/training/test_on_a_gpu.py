"""The same work on a CUDA device as on the CPU, in float32.  Skipped without one: no run on a GPU stands behind these yet."""

from dataclasses import replace

import pytest
import torch
import toys

from tutelage.core.words import Sampling
from tutelage.judges.rules import FunctionJudge
from tutelage.models.load import load
from tutelage.rollout.local import LocalEngine
from tutelage.store.runs import Run
from tutelage.training.grpo import GRPOConfig
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.ppo import PPOConfig
from tutelage.training.rl import rl
from tutelage.training.sft import SFTConfig, sft

pytestmark = [pytest.mark.device, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BOTH = ("cpu", "cuda")


def rows_of(folder) -> list[dict]:
    return list(Run(folder).metrics())


def test_fine_tuning_has_the_same_losses(tmp_path):
    config = SFTConfig(model="test", dtype="float32", loop=LoopConfig(max_steps=5, rows_per_step=4))
    chats = [toys.chat(f"question {n}", "ab"[n % 2] * (n + 1)) for n in range(20)]
    for device in BOTH:
        sft(replace(config, device=device), train=chats, val=chats[:4], folder=tmp_path / device)
    losses = [[row["loss"] for row in rows_of(tmp_path / device) if "loss" in row] for device in BOTH]
    assert len(losses[0]) == 5 and losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_answers_and_their_log_probs_are_the_same():
    found = []
    for device in BOTH:
        loaded = load("test", dtype="float32", device=device)
        engine = LocalEngine(loaded.model, loaded.tokenizer, policy="p")
        found.append(sorted(engine.respond([(toys.ask(f"q{n}"), Sampling(n=2, max_tokens=8, seed=1)) for n in range(3)]),
                            key=lambda response: (response.prompt_id, response.index)))
    for mine, theirs in zip(*found, strict=True):
        assert mine.token_ids == theirs.token_ids and mine.logps == pytest.approx(theirs.logps, abs=1e-4)


def test_eight_bit_weights_are_refused_there():
    loaded = load("test", dtype="float32", device="cuda")
    with pytest.raises(ValueError, match="8-bit weights need a CPU"):
        LocalEngine(loaded.model, loaded.tokenizer, policy="p", int8=True)


@pytest.mark.parametrize("kind", [PPOConfig, GRPOConfig])
@pytest.mark.parametrize("rank", [0, 4])
def test_the_first_steps_of_rl_are_the_same(tmp_path, kind, rank):
    config = kind(model="test", dtype="float32", steps=2, prompts_per_step=4, responses_per_prompt=2, max_tokens=6, normalise_on=0,
                  missing_eos=None, lora=LoraConfig(rank=rank))
    for device in BOTH:
        rl(replace(config, device=device), prompts=[toys.ask(f"q{n}") for n in range(8)], folder=tmp_path / device,
           judge=FunctionJudge(lambda prompts, responses: [sum(r.token_ids) / 1000 for r in responses]))
    cpu, cuda = (rows_of(tmp_path / device)[0] for device in BOTH)
    for name in ("reward", "kl", "entropy", "grad_norm", "sampler_gap"):
        assert cuda[name] == pytest.approx(cpu[name], rel=1e-3, abs=1e-4), name
