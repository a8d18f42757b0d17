"""What the tests of the policy gradients share: rollouts by hand, a state of the model `test`, gradients, a killed run."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys

from tutelage.core.words import Judgement, Prompt, Response
from tutelage.judges.rules import FunctionJudge
from tutelage.store.runs import CLOCK_FIELDS, Run
from tutelage.training.batch import Rollouts
from tutelage.training.networks import LoraConfig, load_trainable
from tutelage.training.on_policy import RLConfig, TrainState
from tutelage.training.optim import OptimConfig
from tutelage.training.rl import ScaledJudge, begin_state, rl
from tutelage.training.rollouts import answer, judge_all, score
from tutelage.training.state import SaveConfig

GARBAGE = 99.0
PROMPTS = [toys.ask("hi"), toys.ask("a longer question"), toys.ask("?")]
SMALL: dict[str, Any] = {
    "model": "test", "device": "cpu", "dtype": "float32", "steps": 4, "prompts_per_step": 3, "responses_per_prompt": 2,
    "max_tokens": 6, "normalise_on": 0, "missing_eos": None, "lora": LoraConfig(rank=0),
    "optim": OptimConfig(learning_rate=1e-3, schedule="constant", warmup=0.0, betas=(0.9, 0.95), eps=1e-5)}


def judged(*values: float) -> list[Judgement]:
    return [Judgement(judge="rule:hand", kind="rating", responses=(f"r{at}",), values=(value,))
            for at, value in enumerate(values)]


def rollouts_of(**changes: Any) -> Rollouts:
    """Two answers of 3 and 2 tokens behind prompts of 2 and 1; garbage wherever the policy did not act.

    KL by token: .5, -1, .25 (sum -.25) and 0, 1 (sum 1); values .1, .2, .3 and -.1, .4.
    """
    acted_BT = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bool)
    spread = lambda first, second: torch.tensor(
        [[GARBAGE, GARBAGE, *first, GARBAGE], [GARBAGE, *second, GARBAGE, GARBAGE, GARBAGE]])
    logp_BT, ref_BT = spread([-1.0, -2.0, -0.5], [-3.0, -0.25]), spread([-1.5, -1.0, -0.75], [-3.0, -1.25])
    values = {
        "token_BT": torch.full((2, 6), 7),
        "real_BT": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.bool),
        "acted_BT": acted_BT, "sampler_logp_BT": logp_BT, "logp_BT": logp_BT, "ref_logp_BT": ref_BT,
        "value_BT": spread([0.1, 0.2, 0.3], [-0.1, 0.4]), "entropy_BT": torch.zeros(2, 6),
        "group_B": torch.tensor([0, 0]), "stopped_B": torch.tensor([True, True])}
    return Rollouts(**{**values, **changes})


def dirty_and_wide() -> list[Rollouts]:
    """The same rollouts with NaN wherever the policy did not act, and with 100 more columns of padding."""
    clean = rollouts_of()
    names = ("logp_BT", "ref_logp_BT", "value_BT", "sampler_logp_BT")
    dirty = {name: torch.where(clean.acted_BT, getattr(clean, name), torch.nan) for name in names}
    masks = ("real_BT", "acted_BT")
    wide = {name: torch.nn.functional.pad(getattr(clean, name), (0, 100), value=False if name in masks else 99)
            for name in (*names, *masks, "token_BT", "entropy_BT")}
    return [rollouts_of(**dirty), rollouts_of(**wide)]


def low_ids(prompts: list[Prompt], responses: list[Response]) -> list[float]:
    """The share of an answer's tokens with an id below 128: about half of all at first, and seldom the same twice."""
    return [sum(token < 128 for token in response.token_ids) / len(response.token_ids) for response in responses]


def state_of(config: RLConfig, judge: Any = None) -> TrainState:
    loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora)
    return begin_state(config, loaded, ScaledJudge(judge or FunctionJudge(low_ids)))


def rolled(state: TrainState, config: RLConfig) -> tuple[Rollouts, list[Judgement]]:
    """Answers to the three prompts, judged and scored; the first counts 1 token, the second 2, and so on, so that means over
    tokens and over responses differ."""
    responses = answer(state.engine, PROMPTS, config.sampling(state.step))
    rollouts = score(state, PROMPTS, responses, config)
    first_BT = rollouts.acted_BT.cumsum(1) <= torch.arange(1, len(responses) + 1)[:, None]
    return rollouts._replace(acted_BT=rollouts.acted_BT & first_BT), judge_all(state.judge, PROMPTS, responses)


def moved(state: TrainState, rollouts: Rollouts) -> list[float]:
    """How much likelier each response has become, in nats."""
    with torch.no_grad():
        now_BT = state.networks.forward(rollouts.token_BT, rollouts.acted_BT, temperature=1.0).logp_BT
    return torch.where(rollouts.acted_BT, now_BT - rollouts.logp_BT, 0.0).sum(1).tolist()


def flat_gradient(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def gradients_of(state: TrainState, act: Any) -> torch.Tensor:
    """All gradients at the first optimiser update that `act` makes, in one vector."""
    taken = state.optimizer.step
    found: list[torch.Tensor] = []

    def step() -> tuple[float, float]:
        if not found:
            found.append(flat_gradient(state.optimizer.masters.values()))
        return taken()

    state.optimizer.step = step
    act()
    state.optimizer.step = taken
    return found[0]


def close(got: torch.Tensor, wanted: torch.Tensor, *, rel: float = 1e-5) -> bool:
    """Two gradients in float32 that differ by roundings only."""
    assert float(wanted.norm()) > 1e-6
    return float((got - wanted).norm()) <= rel * float(wanted.norm())


class Killed(Exception):
    """What ends a run in the middle."""


def survives_a_kill(config: RLConfig, folder: Path, **more: Any) -> list[dict[str, Any]]:
    """A run that dies in step 3 and is resumed leaves the weights and the metrics of one that never died; returns those."""
    config = replace(config, save=SaveConfig(every_steps=1))
    ask = [toys.ask(f"question {number}") for number in range(5)]  # 3 a step: an epoch ends with a step of 2
    judge = FunctionJudge(low_ids)

    def die(what: str, done: int, total: int) -> None:
        if done == 3:
            raise Killed

    whole = rl(config, prompts=ask, judge=judge, folder=folder / "whole", **more)
    with pytest.raises(Killed):
        rl(config, prompts=ask, judge=judge, folder=folder / "cut", progress=die, **more)
    assert len(Run(folder / "cut").metrics()) == 3 and Run(folder / "cut").newest().name == "000002"
    resumed = rl(config, prompts=ask, judge=judge, folder=folder / "cut", resume=True, **more)
    assert (whole.path / "model.safetensors").read_bytes() == (resumed.path / "model.safetensors").read_bytes()
    rows = [[{key: value for key, value in row.items() if key not in CLOCK_FIELDS} for row in Run(folder / name).metrics()]
            for name in ("whole", "cut")]
    assert rows[0] == rows[1] and len(rows[0]) == config.steps
    return rows[0]
