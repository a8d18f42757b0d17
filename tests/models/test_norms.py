"""The quick norm against transformers' own and against float64."""

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tutelage.models.norms import quicken_norms


def pair(dtype, size=48):
    torch.manual_seed(0)
    plain = LlamaRMSNorm(size, 1e-5).to(dtype)
    with torch.no_grad():
        plain.weight.copy_(torch.rand(size) + 0.5)
    quick = copy.deepcopy(plain)
    quicken_norms(quick)
    return plain, quick


def through(norm, x, up):
    x = x.detach().clone().requires_grad_()
    y = norm(x)
    return y, *torch.autograd.grad(y, (x, norm.weight), up)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_are_those_of_transformers_to_the_bit(dtype):
    plain, quick = pair(dtype)
    x = torch.randn(3, 7, 48, dtype=dtype)
    assert torch.equal(plain(x), quick(x)) and quick(x).dtype == dtype and type(quick) is not type(plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_as_near_to_the_truth_as_transformers_own(dtype):
    plain, quick = pair(dtype)
    x, up = (torch.randn(3, 7, 48) * 3).to(dtype), torch.randn(3, 7, 48).to(dtype)
    truth = through(copy.deepcopy(plain).double(), x.double(), up.double())
    for name, want, theirs, ours in zip(("y", "dx", "dw"), truth, through(plain, x, up), through(quick, x, up), strict=True):
        error, its = ((each.double() - want).norm() / want.norm() for each in (ours, theirs))
        assert ours.dtype == dtype and error <= 1.2 * its + 1e-6, (name, error, its)


def test_float32_keeps_its_own_way_and_no_input_is_written_over():
    plain, quick = pair(torch.float32)
    x = torch.randn(2, 48)
    before = x.clone()
    for one, other in zip(through(plain, x, torch.ones(2, 48)), through(quick, x, torch.ones(2, 48)), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(x, before)


def test_a_frozen_weight_gets_no_gradient_and_a_copy_stays_quick():
    _, quick = pair(torch.bfloat16)
    quick.weight.requires_grad_(False)
    twin = copy.deepcopy(quick)
    x = torch.randn(2, 48).bfloat16().requires_grad_()
    twin(x).sum().backward()
    assert x.grad is not None and twin.weight.grad is None and type(twin) is type(quick)
    assert set(twin.state_dict()) == {"weight"}
