"""Decoding with 8-bit weights: torch's float products of the rounded numbers are the witness."""

import pytest
import torch
from test_local import engine, plain_logps, prompt, small, spicy
from torch import nn

from tutelage.core.words import Sampling
from tutelage.models.load import load
from tutelage.models.lora import add_lora
from tutelage.models.tiny import byte_tokenizer, tiny_llama
from tutelage.rollout.int8 import Int8Linear, can_int8
from tutelage.rollout.local import LocalEngine
from tutelage.text.chat import render_prompt

pytestmark = pytest.mark.skipif(not can_int8(torch.device("cpu")), reason="torch has no 8-bit kernels on this machine")


def layers(bias=False):
    torch.manual_seed(0)
    made = [nn.Linear(64, 48, bias=bias), nn.Linear(64, 16, bias=False)]
    with torch.no_grad():
        made[0].weight[5] *= 40  # channels of very different size: a scale of each one's own keeps both exact
    return made


@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_rounded_weights(bias):
    modules = layers(bias)
    x = torch.randn(3, 2, 64) * torch.tensor([0.01, 1.0, 300.0])[:, None, None]
    found = Int8Linear(modules, dtype=torch.float32)(x)
    steps = x.abs().amax(-1, keepdim=True) / 127
    rounded_x, wanted = (x / steps).round() * steps, []
    for module in modules:
        scale = module.weight.abs().amax(1, keepdim=True) / 127
        wanted.append(nn.functional.linear(rounded_x, (module.weight / scale).round() * scale, module.bias))
    torch.testing.assert_close(found, torch.cat(wanted, -1), rtol=1e-4, atol=1e-4)
    plain = torch.cat([module(x) for module in modules], -1)
    off = (found - plain).square().mean(-1).sqrt() / plain.square().mean(-1).sqrt()
    assert found.shape == (3, 2, 64) and off.max() < 0.05, off


def test_a_row_does_not_depend_on_the_others():
    linear = Int8Linear(layers(), dtype=torch.float32)
    x = torch.randn(4, 64)
    alone = linear(x[:1])
    for others in (x[1:], 1000 * x[1:], 0 * x[1:]):
        torch.testing.assert_close(linear(torch.cat([x[:1], others]))[:1], alone, rtol=1e-6, atol=1e-6)


def test_what_is_drawn_is_near_the_models_own_distribution_and_says_so_itself():
    """The log-probs are those of the rounded weights: close to the model's, and not the same."""
    model = spicy(tiny_llama())
    rounded = engine(model, int8=True)
    found = list(rounded.respond([(prompt(text), Sampling(n=2, max_tokens=12, seed=3)) for text in ("hi", "tell me a story")]))
    assert len(found) == 4
    for response in found:
        ids = render_prompt(rounded.tokenizer, prompt("hi") if response.prompt_id == prompt("hi").id else prompt("tell me a story"))
        off = [abs(a - b) for a, b in zip(response.logps, plain_logps(model, ids, response.token_ids), strict=True)]
        assert 1e-4 < sum(off) / len(off) < 0.4, off
    again = list(rounded.respond([(prompt("hi"), Sampling(n=2, max_tokens=12, seed=3))]))  # without the other prompt
    assert [r.token_ids for r in again] == [r.token_ids for r in found if r.prompt_id == prompt("hi").id]


def test_an_update_and_an_adapter_are_seen():
    loaded = load("test", dtype="float32")
    rounded = LocalEngine(loaded.model, loaded.tokenizer, policy="p", int8=True)
    ask = [(prompt("hello"), Sampling(max_tokens=6, temperature=0.0))]
    first = next(rounded.respond(ask))
    add_lora(loaded.model, rank=4, alpha=8)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    other = LocalEngine(loaded.model, loaded.tokenizer, policy="p", int8=True)
    second = next(other.respond(ask))
    assert first.logps != second.logps
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.3)
    assert next(other.respond(ask)).logps != second.logps


def test_biases_are_read():
    model = small("qwen2")
    tokenizer = byte_tokenizer()
    ask = [(prompt("hi"), Sampling(max_tokens=4, temperature=0.0))]
    before = next(LocalEngine(model, tokenizer, policy="p", int8=True).respond(ask)).logps
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.bias.add_(2.0)
    assert next(LocalEngine(model, tokenizer, policy="p", int8=True).respond(ask)).logps != before


def test_a_model_that_it_does_not_know_is_refused():
    with pytest.raises(ValueError, match="8-bit weights need a CPU .* got GPT2LMHeadModel"):
        LocalEngine(small("gpt2"), byte_tokenizer(), policy="p", int8=True)
