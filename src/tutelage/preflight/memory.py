"""What a run will need of memory, before any of it is taken.

A lower bound (weights, optimiser, copies) and a guess (activations and logits of one micro-batch).  The bound is what stops a
run; the guess only warns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tutelage.models.load import best_device, best_dtype
from tutelage.preflight.findings import Finding
from tutelage.preflight.setup import Setup, is_folder, judge_names
from tutelage.preflight.size import Size

ACTIVATIONS = 20  # numbers kept for the backward pass, for each token, layer and hidden unit
GB = 1e9


class Needs(NamedTuple):
    """Bytes."""

    least: int  # weights, masters, gradients, moments, copies
    activations: int  # a guess


def needs(setup: Setup) -> Needs | None:
    """What the run will take; None where the model's size is not known."""
    size, config = setup.size, setup.config
    if size is None:
        return None
    device = best_device(config.device)
    dtype = torch.float32 if config.model == "test" and config.dtype == "auto" else best_dtype(config.dtype, device=device)
    width = dtype.itemsize
    master = 4 if width < 4 else 0
    weights = size.parameters * width + setup.lora_rank * size.linear * 4
    optimiser = _trained(setup, size) * (master + 4 + 8)  # float32 master, gradient, two moments
    return Needs(weights + optimiser + _copies(setup, size, width, device.type), _activations(config, size, width))


def _trained(setup: Setup, size: Size) -> int:
    """Parameters that learn."""
    if setup.lora_rank:
        return setup.lora_rank * size.linear
    if getattr(setup.config, "train", "all") == "head":
        return size.hidden
    frozen = getattr(setup.config, "frozen_layers", 0)
    return size.parameters * max(0, size.layers - frozen) // max(1, size.layers)


def _copies(setup: Setup, size: Size, width: int, device: str) -> int:
    """Reference, the engine's packed weights, a critic of its own, judges."""
    one, out = size.parameters * width, 0
    if not setup.lora_rank and (setup.command == "rl" or _asks_as_it_goes(setup.config)):
        out += one  # the reference
    if setup.command == "rl":
        out += one if device == "cpu" else 0  # what the engine packs
        if getattr(setup.config, "value", "") == "separate":
            out += one + 16 * size.parameters
        out += sum(weights_on_disk(name) for name in judge_names(setup.config).values())
    return out


def _asks_as_it_goes(config: Any) -> bool:
    """Whether an offline preference method keeps its reference beside the policy."""
    return hasattr(config, "asks_reference") and config.asks_reference() and not config.asks_beforehand()


def _activations(config: Any, size: Size, width: int) -> int:
    tokens = max(getattr(config, "loop", config).token_budget, config.max_tokens)
    kept = 2 if getattr(config, "gradient_checkpointing", False) else ACTIVATIONS
    chunk = min(getattr(config, "chunk", 1), tokens)
    return tokens * size.layers * size.hidden * kept * width + chunk * size.vocabulary * 4 * 4


def weights_on_disk(name: str) -> int:
    return sum(file.stat().st_size for file in Path(name).glob("*.safetensors")) if is_folder(name) else 0


def available(device: str) -> int | None:
    """Free bytes where the model will stand: of the GPU, or of the machine (of the container, where it has a limit)."""
    place = best_device(device)
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    if place.type != "cpu":
        return None
    return min((free for free in (_machine(), _container()) if free is not None), default=None)


def _machine(file: Path = Path("/proc/meminfo")) -> int | None:
    """MemAvailable of Linux; None elsewhere."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Limit of the control group (version 2), less what is in use and cannot be dropped; None without a limit."""
    limit, used, stat = (folder / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    facts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return int(limit.read_text()) - int(used.read_text()) + int(facts.get("inactive_file", 0))


def fits(need: Needs | None, free: int | None, config: Any) -> Iterator[Finding]:
    """Whether `need` fits into `free` bytes."""
    if need is None or free is None or need.least + need.activations <= free:
        return
    lora = getattr(getattr(config, "lora", None), "rank", None)
    ways = (["lora.rank=16"] if lora == 0 else []) + (["dtype=bfloat16"] if config.dtype != "bfloat16" else [])
    cure = f"set {', '.join([*ways, 'a lower token_budget'])}, or take a smaller model, or free some memory"
    if need.least > free:
        yield Finding(code="memory", cure=cure, cause=f"weights, optimiser and copies alone take about {need.least / GB:.1f} "
                                                      f"GB, and {free / GB:.1f} GB are free")
    else:
        yield Finding(code="memory", severity="warning", cure=cure,
                      cause=f"the run may take about {(need.least + need.activations) / GB:.1f} GB "
                            f"({need.activations / GB:.1f} GB of it activations, a guess), and {free / GB:.1f} GB are free")
