"""Several fine-tuned models of one base as one: linear interpolation of their weights (rewarded soups, Rame et al. 2023,
https://arxiv.org/abs/2306.04488, eq. 2).

    theta = sum over members i of weight_i x theta_i,   weights >= 0 that sum to 1

Of adapters it is the same with their updates, since all share the base: delta = sum of weight_i x (alpha_i / rank_i) B_i A_i.

    method "weights":  exactly that; the members' factors are laid side by side, so the rank is the sum of theirs
    method "factors":  A = sum of weight_i A_i and B = sum of weight_i B_i, as the paper's own code does for LoRA
                       (https://github.com/alexrame/rewardedsoups/blob/main/llama/utils/inference_utils.py): the rank stays, but
                       B A has cross terms, and is the interpolation of the updates only where the members' A are alike

Left out: per-layer weights, and interpolation along curves.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.core.errors import UserError
from tutelage.core.files import read_json, write_json
from tutelage.models.load import MANIFEST, load, save, save_files
from tutelage.models.obtain import obtain

ADAPTER = "adapter"  # folder of the adapter inside the folder of a merged model
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
METHODS = ("weights", "factors")
FANCY = (  # settings that make alpha / rank x B A not all of an update, or put it elsewhere than `target_modules` says
    "use_rslora", "use_dora", "use_qalora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias",
    "layers_to_transform", "layers_pattern", "layer_replication", "exclude_modules", "target_parameters", "trainable_token_indices",
    "alora_invocation_tokens",
)
Method = Literal["weights", "factors"]


class Member(NamedTuple):
    """One model of a blend."""

    name: str
    path: Path  # of the adapter where there is one, else of the model
    weight: float
    base: str  # what it was trained from, as an id or a path

    def is_adapter(self) -> bool:
        return (self.path / CONFIG).exists()


def blend(weights: Mapping[str, float], folder: Path | str, *, method: Method = "weights", unnormalised: bool = False,
          manifest: dict[str, Any] | None = None) -> Path:
    """Blend models (a name or folder -> its weight) into `folder`: an adapter in PEFT format of adapters, else a plain model.

    UserError where the bases, or with "factors" the shapes of the adapters, differ, and where weights are negative or do not
    sum to 1, unless `unnormalised`.
    """
    if method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    check_weights(weights, unnormalised=unnormalised)
    members = [member_of(name, weight) for name, weight in weights.items()]
    check_members(members)
    facts = {**inherited(members[0]), **(manifest or {}), "kind": "blend", "weights": dict(weights), "method": method}
    return (blend_adapters if members[0].is_adapter() else blend_models)(members, Path(folder), method=method, manifest=facts)


def check_weights(weights: Mapping[str, float], *, unnormalised: bool = False) -> None:
    """At least two finite weights; between 0 and 1 and summing to 1 unless `unnormalised`."""
    if len(weights) < 2:
        raise UserError(f"a blend needs two models or more; got {', '.join(weights) or 'none'}")
    if not all(math.isfinite(weight) for weight in weights.values()):
        raise UserError(f"weights must be finite numbers; got {dict(weights)}")
    if unnormalised:
        return
    total = sum(weights.values())
    if min(weights.values()) < 0 or abs(total - 1) > 1e-6:
        raise UserError(f"weights must be at least 0 and sum to 1; these sum to {total:g} and the least is "
                        f"{min(weights.values()):g}. Change them, or ask for it as it is with --unnormalised")


def member_of(name: str, weight: float) -> Member:
    """A model by name or folder: its adapter where its run kept one."""
    path = obtain(name)
    if not (path / CONFIG).exists() and (path / ADAPTER / CONFIG).exists():
        path = path / ADAPTER
    facts = read_json(path / MANIFEST) if (path / MANIFEST).exists() else {}
    parents = facts.get("parents") or [""]
    stated = read_json(path / CONFIG).get("base_model_name_or_path") if (path / CONFIG).exists() else ""
    return Member(name, path, weight, str(parents[0] or facts.get("base") or stated or ""))


def inherited(member: Member) -> dict[str, Any]:
    """What a blend's manifest takes from its members': what they were trained from, and the chat template's digest."""
    facts = read_json(member.path / MANIFEST) if (member.path / MANIFEST).exists() else {}
    return {key: facts[key] for key in ("base", "parents", "template") if key in facts}


def check_members(members: Sequence[Member]) -> None:
    """All adapters or all whole models, and of one base."""
    adapters = [member.name for member in members if member.is_adapter()]
    if adapters and len(adapters) < len(members):
        others = [member.name for member in members if not member.is_adapter()]
        raise UserError(f"{', '.join(adapters)} are adapters and {', '.join(others)} are whole models; "
                        "blend models of one kind")
    bases = {member.name: member.base for member in members}
    if len(set(bases.values())) > 1:
        told = "; ".join(f"{name}: {base[:40] or 'unknown'}" for name, base in bases.items())
        raise UserError(f"models of different bases cannot be blended ({told}); train them from one and the same model")


# -- adapters ------------------------------------------------------------------------------------------------------


def blend_adapters(members: Sequence[Member], folder: Path, *, method: Method, manifest: dict[str, Any]) -> Path:
    """The blend as an adapter that plain peft loads."""
    configs = [read_json(member.path / CONFIG) for member in members]
    for member, config in zip(members, configs, strict=True):
        fancy = [key for key in FANCY if config.get(key)]
        if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or fancy:
            raise UserError(f"{member.name} is no plain LoRA adapter ({', '.join([str(config.get('peft_type')), *fancy])})")
    states = [load_file(member.path / WEIGHTS) for member in members]
    for member, state in zip(members, states, strict=True):
        other = [name for name in state if ".lora_A." not in name and ".lora_B." not in name]
        if other:  # lora_embedding_A and _B lie the other way round
            raise UserError(f"{member.name} adapts more than linear layers ({other[0]}), which cannot be blended; train it "
                            "with linear layers as targets")
    weights = [member.weight for member in members]
    if method == "factors":
        state, config = _mixed_factors(members, configs, states, weights)
    else:
        state, config = _joined_factors(configs, states, weights)

    def fill(scratch: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, scratch / WEIGHTS, metadata={"format": "pt"})
        write_json(scratch / CONFIG, config)

    return save_files(folder, fill, manifest=manifest)


def _joined_factors(
    configs: Sequence[dict], states: Sequence[dict[str, Tensor]], weights: Sequence[float]
) -> tuple[dict, dict]:
    """A = the members' A below one another, B = their B beside one another, each times weight x alpha / rank.

    A layer that a member does not adapt gets zeros for it, so that all layers have one rank.
    """
    shapes = {name: tensor for state in states for name, tensor in state.items()}
    state: dict[str, Tensor] = {}
    for name, like in shapes.items():
        down = ".lora_A." in name
        parts = []
        for config, given, weight in zip(configs, states, weights, strict=True):
            scale = 1.0 if down else weight * config["lora_alpha"] / config["r"]
            empty = (config["r"], like.shape[1]) if down else (like.shape[0], config["r"])
            part = given[name] if name in given else torch.zeros(empty, dtype=like.dtype)
            parts.append((scale * part.float()).to(like.dtype))
        state[name] = torch.cat(parts, dim=0 if down else 1)
    rank = sum(config["r"] for config in configs)
    targets = sorted({module for config in configs for module in _listed(config["target_modules"])})
    return state, {**configs[0], "r": rank, "lora_alpha": rank, "target_modules": targets}


def _listed(targets: Any) -> list[str]:
    if isinstance(targets, str):
        raise UserError(f"an adapter whose targets are a pattern ({targets!r}) cannot be blended; train it with named layers")
    return list(targets)


def _mixed_factors(
    members: Sequence[Member], configs: Sequence[dict], states: Sequence[dict[str, Tensor]], weights: Sequence[float]
) -> tuple[dict, dict]:
    first = {name: tuple(tensor.shape) for name, tensor in states[0].items()}
    for member, config, state in zip(members, configs, states, strict=True):
        if (config["r"], config["lora_alpha"]) != (configs[0]["r"], configs[0]["lora_alpha"]):
            raise UserError(f"method factors needs adapters of one rank and alpha; {members[0].name} has {configs[0]['r']} and "
                            f"{configs[0]['lora_alpha']}, {member.name} has {config['r']} and {config['lora_alpha']}. "
                            "Method weights blends any")
        if {name: tuple(tensor.shape) for name, tensor in state.items()} != first:
            raise UserError(f"method factors needs adapters on the same layers; those of {members[0].name} and {member.name} "
                            "differ. Method weights blends any")
    mixed = {}
    for name in first:
        whole = sum(weight * state[name].float() for weight, state in zip(weights, states, strict=True))
        mixed[name] = whole.to(states[0][name].dtype)
    return mixed, dict(configs[0])


# -- whole models --------------------------------------------------------------------------------------------------


def blend_models(members: Sequence[Member], folder: Path, *, method: Method, manifest: dict[str, Any]) -> Path:
    """The blend as a plain model, added up in float32 and saved in the first member's type.  Two models in memory at once."""
    if method == "factors":
        raise UserError(f"{members[0].name} and the others are whole models: method factors is for adapters, use weights")
    first = load(str(members[0].path), dtype="float32", device="cpu")
    whole = dict(first.model.named_parameters())  # tied weights once
    with torch.no_grad():
        for parameter in whole.values():
            parameter.mul_(members[0].weight)
        for member in members[1:]:
            other = dict(load(str(member.path), dtype="float32", device="cpu").model.named_parameters())
            shapes = [{name: tuple(p.shape) for name, p in each.items()} for each in (whole, other)]
            if shapes[0] != shapes[1]:
                raise UserError(f"{members[0].name} and {member.name} have different layers; they cannot be blended")
            for name, parameter in whole.items():
                parameter.add_(other[name], alpha=member.weight)
    model = first.model.to(stored_dtype(members[0].path))
    return save(model, first.tokenizer, folder, manifest=manifest)


def stored_dtype(path: Path) -> torch.dtype:
    """The type in which most weights of a folder are stored, found by its largest tensor."""
    largest, dtype = -1, torch.float32
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                size = math.prod(tensors.get_slice(name).get_shape())
                if size > largest:
                    largest, dtype = size, tensors.get_tensor(name).dtype
    return dtype


def parse_weights(text: str) -> dict[str, float]:
    """`helpful=0.7,harmless=0.3` as weights by name.

    >>> parse_weights("helpful=0.7,runs/rl-0002/final=.3")
    {'helpful': 0.7, 'runs/rl-0002/final': 0.3}
    """
    out: dict[str, float] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = part.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UserError(f'"{part}" is no weight; wanted NAME=NUMBER, for instance helpful=0.7,harmless=0.3')
        if name in out:
            raise UserError(f'"{name}" stands twice in {text!r}')
        out[name] = weight
    return out
