"""Attention by a few matrix products, against torch's own and against whole models that use it."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tutelage.models import attention
from tutelage.models.attention import NAME, attend, quicken


class Causal(torch.nn.Module):
    is_causal = True


def tensors(rows=3, heads=6, kv_heads=2, length=17, size=8, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, count, length, size, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
            for count in (heads, kv_heads, kv_heads)]


def tree_mask(rows: int, length: int) -> torch.Tensor:
    """Another mask for each row, everything looking at itself at least."""
    rng = torch.Generator().manual_seed(5)
    mask = torch.rand(rows, 1, length, length, generator=rng) < 0.5
    return (mask | torch.eye(length, dtype=torch.bool)).tril()


def through_torch(query, key, value, mask, scale):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale).transpose(1, 2)


def both(given, mask, scale=None):
    """Output and gradients of ours and of torch's, the loss an uneven sum."""
    found = []
    for way in (lambda: attend(Causal(), *given, mask, scaling=scale)[0], lambda: through_torch(*given, mask, scale)):
        out = way()
        weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
        found.append([out.detach(), *torch.autograd.grad((out * weight).sum(), given)])
    return zip(*found, strict=True)


@pytest.mark.parametrize("keep", [0, 256])
@pytest.mark.parametrize("at_once", [1, 4000, 2**19])
@pytest.mark.parametrize("masked", ["causal", "bool", "one for all", "added"])
def test_output_and_gradients_are_those_of_torch(masked, at_once, keep, monkeypatch):
    monkeypatch.setattr(attention, "AT_ONCE", at_once)
    monkeypatch.setattr(attention, "KEEP", keep)
    given, mask = tensors(), None
    if masked != "causal":
        mask = tree_mask(3, 17)
        mask = mask[:1] if masked == "one for all" else mask
        mask = torch.full(mask.shape, -1e300, dtype=torch.float64).masked_fill(mask, 0.3) if masked == "added" else mask
    for ours, theirs in both(given, mask, scale=0.4):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (9, 3)])
def test_any_number_of_query_heads_to_a_key_value_head(heads, kv_heads):
    for ours, theirs in both(tensors(heads=heads, kv_heads=kv_heads), None):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_bfloat16_is_as_near_to_the_truth_as_torchs_own():
    given = tensors(length=60, size=16, dtype=torch.bfloat16, seed=2)
    exact = [each.detach().double().requires_grad_() for each in given]
    truth = [theirs for _, theirs in both(exact, None)]
    for (ours, theirs), true in zip(both(given, None), truth, strict=True):
        off = [float((each.double() - true).norm() / true.norm()) for each in (ours, theirs)]
        assert off[0] < max(1.5 * off[1], 0.004), off


def test_a_row_of_padding_that_sees_nothing_stays_a_number():
    given = tensors(rows=1, length=4)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    mask[0, 0, 2] = False
    out = attend(Causal(), *given, mask)[0]
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), given))


def test_what_is_not_known_here_goes_to_transformers(monkeypatch):
    asked = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *args, **kwargs: asked.append(kwargs) or ("theirs", None))
    query, key, value = tensors()
    assert isinstance(attend(Causal(), query, key, value, None)[0], torch.Tensor)
    for arguments, more in (((query[:, :, :1], key, value, None), {}), ((query, key, value, None), {"dropout": 0.1}),
                            ((query, key, value, None), {"is_causal": False}), ((query, key, value, None), {"softcap": 30.0}),
                            ((query, key, value, torch.ones(3, 6, 17, 17, dtype=torch.bool)), {})):
        assert attend(Causal(), *arguments, **more) == ("theirs", None)
    assert len(asked) == 5


@pytest.mark.parametrize("config", [
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50),
    GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
], ids=["llama", "gpt2"])
def test_a_model_that_uses_it_gives_the_same_logits_and_gradients(config):
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double()
    ours = quicken(copy.deepcopy(theirs))
    assert ours.config._attn_implementation == NAME and theirs.config._attn_implementation == "sdpa"
    token_BT = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    for padding in (None, torch.tensor([[1] * 11, [0] * 4 + [1] * 7, [1] * 6 + [0] * 5])):
        logits = [model(input_ids=token_BT, attention_mask=padding, use_cache=False).logits for model in (ours, theirs)]
        real = slice(None) if padding is None else padding.bool()
        torch.testing.assert_close(logits[0][real], logits[1][real], rtol=1e-8, atol=1e-8)
        for each in logits:
            each[real].pow(2).sum().backward()
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=1e-8, msg=name)


def test_a_model_with_another_attention_stays_as_it_is():
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=50)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert quicken(model).config._attn_implementation == "eager"
