"""Adapters: peft is the witness."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config

from tutelage.models.load import load
from tutelage.models.lora import adapter_off, add_lora, merge, merged_state, merged_weight, save_adapter
from tutelage.models.tiny import byte_tokenizer, tiny_llama

TOKENS = torch.arange(40, 60)[None]


def stirred(model, seed=0):
    """B is zero in a fresh adapter; give it something to say."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_fresh_adapter_changes_nothing_and_only_adapters_train():
    base = tiny_llama()
    before = logits(base)
    model = add_lora(base, rank=4, alpha=8)
    assert torch.equal(logits(model), before)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    assert not any("lm_head" in name or "embed" in name for name in trainable)


def test_adapter_off_is_the_base_model_and_leaves_everything_as_it_was():
    base = tiny_llama()
    before = logits(base)
    model = stirred(add_lora(base, rank=4, alpha=8))
    adapted = logits(model)
    assert (adapted - before).abs().max() > 1e-3
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with adapter_off(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), adapted)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    with pytest.raises(RuntimeError, match="boom"), adapter_off(model):
        raise RuntimeError("boom")
    assert torch.equal(logits(model), adapted)


def test_merged_weights_compute_what_the_adapter_computes():
    model = stirred(add_lora(tiny_llama(), rank=4, alpha=8))
    adapted = logits(model)
    plain = tiny_llama()
    plain.load_state_dict(merged_state(model.get_base_model()))
    torch.testing.assert_close(logits(plain), adapted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(merge(model)), adapted, rtol=1e-5, atol=1e-5)


def test_merged_weight_of_gpt2_whose_weights_lie_transposed():
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).eval()
    model = stirred(add_lora(base, rank=4, alpha=8))
    adapted = logits(model)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).eval()
    plain.load_state_dict(merged_state(model.get_base_model()))
    torch.testing.assert_close(logits(plain), adapted, rtol=1e-5, atol=1e-5)


def test_merged_weight_without_adapter_is_the_weight_itself():
    linear = torch.nn.Linear(3, 2)
    assert merged_weight(linear).data_ptr() == linear.weight.data_ptr()


def test_saved_adapter_loads_in_plain_peft_and_by_name(tmp_path):
    model = stirred(add_lora(tiny_llama(), rank=4, alpha=8, targets=["q_proj", "v_proj"]))
    save_adapter(model, tmp_path / "adapter", manifest={"base": "test"})
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=0)
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    loaded = load(str(tmp_path / "adapter"), cache=tmp_path / "cache", dtype="float32")
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=1e-5, atol=1e-5)
    assert loaded.digest != load("test", cache=tmp_path / "cache").digest


def test_unknown_target_names_the_nearest():
    with pytest.raises(ValueError, match='did you mean "q_proj"'):
        add_lora(tiny_llama(), rank=4, alpha=8, targets=["q_prj"])
    with pytest.raises(ValueError, match="rank must be >= 1"):
        add_lora(tiny_llama(), rank=0, alpha=8)
