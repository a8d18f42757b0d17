"""Linear layers with 8-bit weights for decoding on a CPU.

Weights: symmetric, one scale for each output channel, rounded anew at every refresh.  Inputs: symmetric, one scale for each row,
so that a response does not depend on the rows that it rides with.  Sums in int32, results in float32.  The products are oneDNN's,
with VNNI where the machine has it, through torch's private operators.

An answer drawn so comes from another policy than the one that is trained: by how much is the metric `sampler_gap`, and the update
is corrected for it (algos/importance.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.models.lora import merged_weight


def can_int8(device: torch.device) -> bool:
    """Whether oneDNN's 8-bit product works here (tried on a small one)."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        return torch.allclose(_product(torch.ones(2, 32), *_packed(torch.ones(16, 32)), None), torch.full((2, 16), 32.0))
    except (AttributeError, RuntimeError, TypeError):  # private operators: absent, or with another signature
        return False


def _packed(weight_OE: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded and in oneDNN's own layout, and the scales of the output channels."""
    scale_O = (weight_OE.abs().amax(1) / 127).clamp(min=1e-12)
    return torch.ops.onednn.qlinear_prepack((weight_OE / scale_O[:, None]).round().to(torch.int8), None), scale_O


def _product(x_NE: Tensor, packed: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    most_N1 = x_NE.abs().amax(1, keepdim=True).clamp_(min=1e-12)
    # unsigned numbers around 128: oneDNN has no fast product of signed ones without AMX
    rounded_NE = (x_NE * (127 / most_N1)).round_().add_(128).to(torch.uint8)
    y_NO = torch.ops.onednn.qlinear_pointwise(rounded_NE, 1.0, 128, packed, scale_O, torch.zeros(len(scale_O), dtype=torch.int32), None,
                                              1.0, 0, torch.float32, "none", [], "").mul_(most_N1 / 127)
    return y_NO if bias_O is None else y_NO.add_(bias_O)


class Int8Linear:
    """One or more linear layers of the model that share their input, as one product with 8-bit weights."""

    def __init__(self, modules: Sequence[nn.Module], *, dtype: torch.dtype):
        """dtype: of the results."""
        self.modules, self.dtype = modules, dtype
        self.refresh()

    def refresh(self) -> None:
        """Read and round the weights anew, adapters merged."""
        weights = [merged_weight(module).float() for module in self.modules]
        biases = [getattr(module, "base_layer", module).bias for module in self.modules]
        parts = [torch.zeros(len(weight)) if bias is None else bias.detach().float() for weight, bias in zip(weights, biases, strict=True)]
        self.bias_O = torch.cat(parts) if any(bias is not None for bias in biases) else None
        self.packed, self.scale_O = _packed(torch.cat(weights))

    def __call__(self, x: Tensor) -> Tensor:
        y_NO = _product(x.reshape(-1, x.shape[-1]).float(), self.packed, self.scale_O, self.bias_O)
        return y_NO.view(*x.shape[:-1], -1).to(self.dtype)
