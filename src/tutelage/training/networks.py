"""What the training commands share: loading a model ready to be trained, and saving it with its manifest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tutelage.core.errors import UserError
from tutelage.models.attention import quicken
from tutelage.models.load import Loaded, load, save
from tutelage.models.lora import add_lora, merge, save_adapter
from tutelage.store.runs import versions
from tutelage.text.chat import template_digest
from tutelage.training.memory import keep_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685); rank 0 = full fine-tuning."""

    rank: int = 0
    alpha: float = 0.0  # 0 = 2 x rank
    targets: str = "all-linear"

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"rank must be >= 0 (0 = full fine-tuning); got {self.rank}")


def load_trainable(
    name: str, *, dtype: str, device: str, lora: LoraConfig, frozen_layers: int = 0, gradient_checkpointing: bool = False
) -> Loaded:
    """A model whose trainable parameters require gradients: all of them, all above `frozen_layers`, or the adapters alone."""
    keep_pages()
    loaded = load(name, dtype=dtype, device=device)
    model = quicken(loaded.model)
    model.requires_grad_(not lora.rank)
    if frozen_layers and lora.rank:
        raise UserError("frozen_layers is for full fine-tuning; with lora.rank above 0 the whole trunk is frozen already")
    freeze_lowest(model, frozen_layers)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if lora.rank:
        model = add_lora(model, rank=lora.rank, alpha=lora.alpha or 2 * lora.rank, targets=lora.targets)
        if gradient_checkpointing:
            model.enable_input_require_grads()
    return Loaded(model=model, tokenizer=loaded.tokenizer, name=loaded.name, path=loaded.path, digest=loaded.digest)


def freeze_lowest(model: PreTrainedModel, layers: int) -> None:
    """Keep the embedding and the lowest `layers` decoder layers as they are: cheaper steps, less memory, less to overfit."""
    if not layers:
        return
    blocks = getattr(model.base_model, "layers", None) or getattr(model.base_model, "h", None)  # `h`: GPT-2
    if blocks is None or not 0 < layers < len(blocks):
        known = "its layers could not be found" if blocks is None else f"it has {len(blocks)} layers"
        raise UserError(f"frozen_layers must be above 0 and below the model's number of layers ({known}); got {layers}")
    for part in (model.get_input_embeddings(), *blocks[:layers]):
        part.requires_grad_(False)


def _product_error() -> float:
    """Relative error of a float32 product under the present setting (bfloat16 would give about 4e-3)."""
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=rng) for _ in range(2))
    exact = left.double() @ right.double()
    return float(((left @ right).double() - exact).norm() / exact.norm())


@contextmanager
def fast_matmuls(device: str = "cpu") -> Iterator[None]:
    """float32 products through oneDNN while training on a CPU: about twice as fast where MKL is slow.

    Only where they stay float32: on machines with a fast bfloat16 unit (AMX) oneDNN may round to it under this setting.
    """
    before = torch.get_float32_matmul_precision()
    if str(device) in ("cpu", "auto") and not torch.cuda.is_available():
        torch.set_float32_matmul_precision("medium")
        if _product_error() > 1e-5:
            torch.set_float32_matmul_precision(before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def manifest_of(loaded: Loaded, *, kind: str, run: str, config: dict[str, Any], data: str, **more: Any) -> dict[str, Any]:
    """What stands beside saved weights: parents, configuration, versions, and the digest of the chat template."""
    return {"kind": kind, "run": run, "base": loaded.name, "parents": [loaded.digest, data],
            "template": template_digest(loaded.tokenizer), "config": config, "versions": versions(), **more}


def save_result(loaded: Loaded, folder: Path, manifest: dict[str, Any]) -> None:
    save(loaded.model, loaded.tokenizer, folder, manifest=manifest)


def save_merged(loaded: Loaded, folder: Path, manifest: dict[str, Any]) -> None:
    """The plain model; where it was trained as an adapter, that adapter too, in `folder`/adapter, for `tutelage blend`.

    The adapter is merged in place: the model is of no further use for training.
    """
    if isinstance(loaded.model, PeftModel):
        save_adapter(loaded.model, folder / "adapter", manifest=manifest)
        loaded = replace(loaded, model=merge(loaded.model))
    save_result(loaded, folder, manifest)
