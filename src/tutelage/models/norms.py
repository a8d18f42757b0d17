"""Root-mean-square norms for training on a CPU: fewer passes over memory, and half of what the backward pass kept.

N = positions, D = hidden size.

y = w * round(x / rms(x)), rms in float32 and rounded to the weights' type before the weight, as transformers' Llama has it.  Its ten or so
calls keep three float32 copies of x for the backward pass; here the rounded quotient and one number a position are kept, and the
gradient is written down (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467):

    dx = (w dy - h mean(w dy * h)) / rms(x)     with h = x / rms(x)

float32 and float64 models keep transformers' own norm.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

NAMES = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})  # w * x / rms(x), and nothing else
NARROW = (torch.bfloat16, torch.float16)


def quicken_norms(model: nn.Module) -> None:
    """Let the norms of a model that are of a known kind use this file's way for weights of 16 bits."""
    for module in model.modules():
        if type(module).__name__ in NAMES:
            module.__class__ = _quick(type(module))


@functools.cache
def _quick(kind: type[nn.Module]) -> type[nn.Module]:
    class Quick(kind):
        def forward(self, hidden_states: Tensor) -> Tensor:
            if hidden_states.dtype not in NARROW or self.weight.dtype != hidden_states.dtype or hidden_states.device.type != "cpu":
                return super().forward(hidden_states)
            return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)

    Quick.__name__, Quick.__qualname__ = "Quick" + kind.__name__, "Quick" + kind.__name__
    return Quick


def quotient(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + epsilon) over the last dimension in x's own type, and the reciprocal of that root, float32 [..., 1]."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = (length * length).mul_(1 / x.shape[-1]).add_(epsilon).rsqrt_()
    return (wide * scale if wide is x else wide.mul_(scale)).to(x.dtype), scale


class _Norm(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        h, scale = quotient(x, epsilon)
        ctx.save_for_backward(h, scale, weight_D)
        return h * weight_D

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        h, scale, weight_D = ctx.saved_tensors
        grad_weight = (grad * h).flatten(0, -2).sum(0, dtype=torch.float32).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        grad_h = grad * weight_D
        along = (grad_h * h).sum(-1, keepdim=True, dtype=torch.float32)
        return torch.addcmul(grad_h.float(), h.float(), along, value=-1 / h.shape[-1]).mul_(scale).to(grad.dtype), grad_weight, None
