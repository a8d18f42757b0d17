"""Two prompts with two answers each, by hand and from the model named `test`, for the algorithms that compare answers."""

from collections.abc import Callable
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
COMMON: dict[str, Any] = {
    "model": "test",
    "device": "cpu",
    "dtype": "float32",
    "steps": 4,
    "prompts_per_step": 3,
    "max_tokens": 6,
    "normalise_on": 0,
    "lora": LoraConfig(rank=0),
    "optim": OptimConfig(learning_rate=1e-3, schedule="constant", warmup=0.0, betas=(0.9, 0.95), eps=1e-5, clip=0),
}


# -- by hand -------------------------------------------------------------------------------------------------------

STARTS, LENGTHS = (2, 2, 1, 1), (3, 2, 1, 4)  # of the answers; groups 0, 0, 1, 1
LOGPS = ((-1.0, -2.0, -0.5), (-3.0, -0.25), (-1.5,), (-0.5, -0.5, -0.5, -0.5))
REFS = ((-1.5, -1.0, -0.75), (-3.0, -1.25), (-1.0,), (-1.0, -0.5, -1.5, -0.5))
KLS = (-0.25, 1.0, -0.5, 1.5)  # sums of the differences


def hand_rollouts(**changes: Any) -> Rollouts:
    """Answers of 3, 2, 1 and 4 tokens behind prompts of 2, 2, 1 and 1; garbage wherever the policy did not act."""
    acted_BT = torch.zeros(4, 6, dtype=torch.bool)
    real_BT = torch.zeros(4, 6, dtype=torch.bool)
    logp_BT, ref_BT = torch.full((4, 6), GARBAGE), torch.full((4, 6), GARBAGE)
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        acted_BT[row, start:start + length] = True
        real_BT[row, :start + length] = True
        logp_BT[row, start:start + length] = torch.tensor(LOGPS[row])
        ref_BT[row, start:start + length] = torch.tensor(REFS[row])
    values = {
        "token_BT": torch.full((4, 6), 7),
        "real_BT": real_BT,
        "acted_BT": acted_BT,
        "sampler_logp_BT": logp_BT,
        "logp_BT": logp_BT,
        "ref_logp_BT": ref_BT,
        "value_BT": None,
        "entropy_BT": torch.zeros(4, 6),
        "group_B": torch.tensor([0, 0, 1, 1]),
        "stopped_B": torch.ones(4, dtype=torch.bool),
    }
    return Rollouts(**{**values, **changes})


def dirty() -> Rollouts:
    """The same with NaN wherever the policy did not act."""
    clean = hand_rollouts()
    return clean._replace(**{name: torch.where(clean.acted_BT, getattr(clean, name), torch.nan)
                             for name in ("logp_BT", "ref_logp_BT", "sampler_logp_BT")})


def wide() -> Rollouts:
    """The same with 100 columns of padding."""
    pad = lambda x, value: torch.nn.functional.pad(x, (0, 100), value=value)
    clean = hand_rollouts()
    return clean._replace(
        **{name: pad(getattr(clean, name), False) for name in ("real_BT", "acted_BT")},
        **{name: pad(getattr(clean, name), 99) for name in ("token_BT", "logp_BT", "ref_logp_BT", "sampler_logp_BT", "entropy_BT")})


def judged(*groups: tuple[float, ...]) -> list[Judgement]:
    return [Judgement(judge="rule:hand", kind="rating", responses=tuple(f"r{at}.{i}" for i in range(len(values))), values=values)
            for at, values in enumerate(groups)]


def spread(*values: float) -> torch.Tensor:
    """One number an answer at each of its tokens, 0 elsewhere."""
    return torch.where(hand_rollouts().acted_BT, torch.tensor(values)[:, None], 0.0)


# -- from the model ------------------------------------------------------------------------------------------------


def low_bytes(prompts: list[Prompt], responses: list[Response]) -> list[float]:
    """How many of an answer's tokens are bytes below 128."""
    return [float(sum(token < 128 for token in response.token_ids)) for response in responses]


def state_of(config: RLConfig, judge: Callable[..., list[float]] = low_bytes) -> TrainState:
    loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora)
    return begin_state(config, loaded, ScaledJudge(FunctionJudge(judge)))


def sampled(state: TrainState, config: RLConfig, *, apart: float = 0.0) -> tuple[Rollouts, list[Judgement]]:
    """Answers of the model; `apart`: how far (nats) the log-probs of old policy and reference are moved away by noise."""
    responses = answer(state.engine, PROMPTS, config.sampling(0))
    rollouts = score(state, PROMPTS, responses, config)
    rng = torch.Generator().manual_seed(0)
    noise = lambda: apart * torch.randn(rollouts.logp_BT.shape, generator=rng) * rollouts.acted_BT
    return (rollouts._replace(logp_BT=rollouts.logp_BT + noise(), ref_logp_BT=rollouts.ref_logp_BT + noise()),
            judge_all(state.judge, PROMPTS, responses))


def first_gradient(state: TrainState, improve: Callable[[], Any]) -> dict[str, torch.Tensor]:
    """The gradient that the first optimiser step of `improve` would have used; nothing is updated."""
    found: list[dict[str, torch.Tensor]] = []

    def take() -> tuple[float, float]:
        found.append({name: p.grad.clone() for name, p in state.networks.named_parameters() if p.grad is not None})
        state.networks.zero_grad()
        return 1.0, 0.0

    state.optimizer.step = take
    improve()
    del state.optimizer.step
    return found[0]


def gradient_of(state: TrainState, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    found = {name: p.grad.clone() for name, p in state.networks.named_parameters() if p.grad is not None}
    state.networks.zero_grad()
    return found


def row_logps(state: TrainState, rollouts: Rollouts, row: int) -> torch.Tensor:
    """Log-probs of one answer's tokens, run alone and without padding."""
    width = int(rollouts.real_BT[row].sum())
    token_BT, acted_BT = rollouts.token_BT[row:row + 1, :width], rollouts.acted_BT[row:row + 1, :width]
    return state.networks.forward(token_BT, acted_BT, temperature=1.0).logp_BT[acted_BT]


def assert_same_gradient(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], *, rel: float = 1e-4) -> None:
    """float32 through four layers: the norm of the difference against the norm."""
    assert set(got) == set(wanted)
    apart = sum(float(((got[name] - wanted[name]) ** 2).sum()) for name in wanted) ** 0.5
    size = sum(float((wanted[name] ** 2).sum()) for name in wanted) ** 0.5
    assert size > 1e-6 and apart < rel * size, (apart, size)


# -- resume --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Raised between a step and its checkpoint, as a kill would fall."""


def assert_resumes_bit_for_bit(config: RLConfig, folder: Path, **changes: Any) -> None:
    """A run killed in step 3 after the checkpoint of step 2, and resumed, against one that nobody disturbed."""
    config = replace(config, steps=3, save=SaveConfig(every_steps=1), **changes)

    def run(name: str, **more: Any) -> None:
        rl(config, prompts=PROMPTS, judge=FunctionJudge(low_bytes), folder=folder / name, **more)

    def kill(what: str, done: int, total: int) -> None:
        if done == 3:
            raise Killed

    run("whole")
    with pytest.raises(Killed):
        run("killed", progress=kill)
    assert Run(folder / "killed").newest().name == "000002"
    run("killed", resume=True)
    whole, killed = (Run(folder / name) for name in ("whole", "killed"))
    assert (whole.final / "model.safetensors").read_bytes() == (killed.final / "model.safetensors").read_bytes()
    rows = [[{key: value for key, value in row.items() if key not in CLOCK_FIELDS} for row in each.metrics()]
            for each in (whole, killed)]
    assert rows[0] == rows[1] and len(rows[0]) == config.steps
