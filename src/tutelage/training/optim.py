"""AdamW or RMSprop over float32 master weights, with learning-rate schedule and gradient clipping.

Parameters in bfloat16 get a float32 copy that is what is optimised; gradients of all micro-batches are added up in
float32 (in a hook, as soon as the backward pass has made them, so that no bfloat16 gradient is kept).  Parameters
in float32 are their own master.  (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.1.)

A copy begins anywhere in the interval of numbers that round to its parameter (`dithered`).  Were it the parameter itself, no update
would be seen in the network before it came to half a step of bfloat16, 0.2 to 0.4 % of the weight: at usual rates, dozens of updates.
(Rounding that loses small updates: Zamirai et al. 2020, https://arxiv.org/abs/2010.06192, whose remedy is stochastic rounding.)
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

DRAWN = 65_521  # numbers that are drawn, and used over and over; prime, so that no row of a matrix has those of the row before


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019) or RMSprop (Hinton 2012) with warm-up and decay, by optimiser update."""

    kind: Literal["adamw", "rmsprop"] = "adamw"
    learning_rate: float = 2e-5
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = 0.03  # share of all updates
    floor: float = 0.0  # the schedule ends at floor x learning_rate
    weight_decay: float = 0.0  # on matrices only; adamw
    betas: tuple[float, ...] = (0.9, 0.95)  # adamw
    alpha: float = 0.99  # share of the mean squared gradient that an update keeps; rmsprop
    eps: float = 1e-8
    adam_style: Literal["torch", "tf"] = "torch"  # where eps stands; see Optimizer
    clip: float = 1.0  # global gradient norm; 0 = off

    def __post_init__(self):
        faults = []
        if not 0 < self.learning_rate < 1:
            faults.append(f"learning_rate must be between 0 and 1; got {self.learning_rate}")
        if not 0 <= self.warmup <= 1:
            faults.append(f"warmup is a share of all updates, from 0 to 1; got {self.warmup}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            faults.append(f"betas must be two numbers in [0, 1); got {self.betas}")
        if self.kind == "rmsprop" and self.adam_style == "tf":
            faults.append("adam_style belongs to kind adamw; leave it out")
        if not 0 <= self.alpha < 1:
            faults.append(f"alpha must be in [0, 1); got {self.alpha}")
        if self.kind == "rmsprop" and self.weight_decay:
            faults.append(f"weight_decay is decoupled, which rmsprop does not do; got {self.weight_decay}, set 0 or kind adamw")
        if self.clip < 0:
            faults.append(f"clip must be >= 0 (0 = off); got {self.clip}")
        if faults:
            raise ValueError("\n".join(faults))


def scale_at(config: OptimConfig, update: int, total: int) -> float:
    """Factor on the learning rate at `update` (from 0) of `total`: linear warm-up, then the schedule down to `floor`."""
    warm = round(config.warmup * total)
    if update < warm:
        return (update + 1) / (warm + 1)
    done = (update - warm) / max(1, total - warm)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return left if config.schedule == "constant" else config.floor + (1 - config.floor) * left


def dithered(x: Tensor) -> Tensor:
    """A float32 copy of a bfloat16 tensor: of each number, one drawn evenly from those that round to it.  Zeros stay zeros.

    So a change of a share s of the step to the next number is seen, rounded, in a share s of the weights: right on average, where
    without this it is seen in none.  The draw depends on the place in the tensor alone.

    >>> x = torch.randn(1000).bfloat16()
    >>> bool((dithered(x).bfloat16() == x).all()), bool((dithered(x) == x).any())
    (True, False)
    """
    if x.dtype != torch.bfloat16:
        return x.to(torch.float32, copy=True)
    out = x.float().contiguous()
    bit_N = out.view(-1).view(torch.int32)  # neighbours in bfloat16 are 2^16 apart; up to 2^15 - 1 either way rounds back
    drawn_L = _drawn().to(x.device)
    whole = bit_N.numel() // DRAWN * DRAWN
    bit_N[:whole].view(-1, DRAWN).add_(drawn_L)
    bit_N[whole:].add_(drawn_L[:bit_N.numel() - whole])
    return out if x.all() else out.masked_fill_(x == 0, 0.0)  # around zero, steps are too small to matter


@functools.cache
def _drawn() -> Tensor:
    return torch.randint(-0x7FFF, 0x8000, (DRAWN,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))


KEPT = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "rmsprop": ("step", "square_avg")}  # of each parameter, between updates
PREFIX = {"adamw": "adam", "rmsprop": "rmsprop"}  # in a checkpoint


class Optimizer:
    """AdamW or RMSprop on named parameters.  `backward` as usual, then `step`; state goes in and out as plain tensors.

    `adam_style: tf` adds eps before the second moment's bias is corrected, as TensorFlow and so lm-human-preferences do:
    lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps).  torch adds it afterwards, which makes the early steps larger.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, *, total_updates: int):
        self.config, self.total_updates, self.updates = config, total_updates, 0
        self.params: dict[str, nn.Parameter] = {name: p for name, p in named if p.requires_grad}
        assert self.params, "nothing to train: no parameter requires a gradient"
        self.masters: dict[str, Tensor] = {}
        self._hooks = []
        for name, p in self.params.items():
            if p.dtype == torch.float32:
                self.masters[name] = p
            else:
                self.masters[name] = dithered(p.detach())
                self._hooks.append(p.register_post_accumulate_grad_hook(self._gatherer(name)))
        matrices = [m for m in self.masters.values() if m.dim() >= 2]
        vectors = [m for m in self.masters.values() if m.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.inner = _inner([g for g in groups if g["params"]], config)
        self.kept, self.prefix = KEPT[config.kind], PREFIX[config.kind]

    def _gatherer(self, name: str):
        master = self.masters[name]

        def gather(p: Tensor) -> None:
            master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
            p.grad = None

        return gather

    def step(self) -> tuple[float, float]:
        """One update from the gradients gathered since the last; returns (gradient norm before clipping, learning rate).

        A gradient that is not finite changes nothing and returns its norm, for the caller to report.
        """
        lr = self.config.learning_rate * scale_at(self.config, self.updates, self.total_updates)
        trained = [m for m in self.masters.values() if m.grad is not None]
        norm = float(torch.nn.utils.get_total_norm([m.grad for m in trained], foreach=True))
        self.updates += 1
        if math.isfinite(norm):
            if self.config.clip and norm > self.config.clip:
                torch._foreach_mul_([m.grad for m in trained], self.config.clip / norm)
            for group in self.inner.param_groups:
                group["lr"] = lr
                if self.config.adam_style == "tf":  # the same quotient: eps is divided by what v's root is divided by
                    group["eps"] = self.config.eps / math.sqrt(1 - self.config.betas[1] ** self._next_adam_step())
            self.inner.step()
            with torch.no_grad():
                for name, p in self.params.items():
                    if self.masters[name] is not p:
                        p.copy_(self.masters[name])
        for master in self.masters.values():
            master.grad = None
        return norm, lr

    def _next_adam_step(self) -> int:
        """Steps that AdamW has made, and one: an update whose gradient was not finite is none."""
        made = next((state["step"] for state in self.inner.state.values()), 0)
        return int(made) + 1

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name: everything of the optimiser that a checkpoint must hold but `updates`."""
        out = {}
        for name, master in self.masters.items():
            out[f"master.{name}"] = master.detach()
            for key, value in self.inner.state.get(master, {}).items():
                out[f"{self.prefix}.{key}.{name}"] = value
        return out

    @torch.no_grad()
    def load(self, state: dict[str, Tensor], *, updates: int) -> None:
        """Back to a saved state, bit for bit."""
        self.updates = updates
        self.inner.state.clear()
        for name, master in self.masters.items():
            master.copy_(state[f"master.{name}"])
            p = self.params[name]
            if master is not p:
                p.copy_(master)
            keys = [key for key in self.kept if f"{self.prefix}.{key}.{name}" in state]
            if keys:
                # onto the master's device: a checkpoint is read to the CPU, and the fused update wants `step` beside the rest
                self.inner.state[master] = {
                    key: state[f"{self.prefix}.{key}.{name}"].to(master.device, copy=True) for key in keys}

    def close(self) -> None:
        """Take the gradient hooks off the model again."""
        for hook in self._hooks:
            hook.remove()


def _inner(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    if config.kind == "rmsprop":  # no bias correction: the first update is lr / sqrt(1 - alpha) for every weight, so warm up
        return torch.optim.RMSprop(groups, lr=config.learning_rate, alpha=config.alpha, eps=config.eps)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), eps=config.eps, fused=True)
