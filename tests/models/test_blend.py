"""Blends of adapters and of whole models: numpy arithmetic and plain peft are the witnesses."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from tutelage.core.errors import UserError
from tutelage.models.blend import blend, check_weights, parse_weights, stored_dtype
from tutelage.models.load import load, save
from tutelage.models.lora import add_lora, save_adapter
from tutelage.models.tiny import byte_tokenizer, tiny_llama

TOKENS = torch.arange(40, 60)[None]


def adapter(folder, *, seed, rank=4, alpha=8.0, targets="all-linear", base="b" * 8):
    """A LoRA adapter with something to say, as a run leaves it beside its merged model."""
    torch.manual_seed(seed)
    model = add_lora(tiny_llama(), rank=rank, alpha=alpha, targets=targets)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, folder / "final" / "adapter", manifest={"kind": "rl", "base": "test", "parents": [base, "data"]})
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits
    save(
        model.merge_and_unload(),
        byte_tokenizer(),
        folder / "final",
        manifest={"kind": "rl", "base": "test", "parents": [base, "data"]},
    )
    return logits


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    logits = {name: adapter(folder / name, seed=seed) for seed, name in enumerate("ab")}
    logits["c"] = adapter(folder / "c", seed=5, rank=2, alpha=3.0, targets=["q_proj", "down_proj"])
    return folder, logits


def final(place, name):
    return str(place[0] / name / "final")


def through_peft(folder):
    """Logits of the blend on the base model by plain peft."""
    with torch.no_grad():
        return PeftModel.from_pretrained(tiny_llama(), folder).eval()(input_ids=TOKENS).logits


def updates(folder):
    """Layer -> (alpha / rank) B A of an adapter folder, in float64 by numpy."""
    state = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    layers = {name.split(".lora_")[0] for name in state}
    return {
        layer: config["lora_alpha"]
        / config["r"]
        * state[f"{layer}.lora_B.weight"].astype(np.float64)
        @ state[f"{layer}.lora_A.weight"].astype(np.float64)
        for layer in layers
    }


@pytest.mark.parametrize("w", [0.7, 0.25])
def test_a_blend_of_adapters_is_the_interpolation_of_their_updates(place, tmp_path, w):
    made = blend({final(place, "a"): w, final(place, "b"): 1 - w}, tmp_path / "out")
    a, b, mixed = (updates(folder) for folder in (place[0] / "a/final/adapter", place[0] / "b/final/adapter", made))
    assert set(mixed) == set(a)
    for layer in mixed:
        np.testing.assert_allclose(mixed[layer], w * a[layer] + (1 - w) * b[layer], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["weights", "factors"])
@pytest.mark.parametrize("end", ["a", "b"])
def test_the_ends_are_the_members(place, tmp_path, method, end):
    made = blend({final(place, name): float(name == end) for name in "ab"}, tmp_path / "out", method=method)
    torch.testing.assert_close(through_peft(made), place[1][end], rtol=1e-5, atol=1e-5)
    ours = load(str(made), dtype="float32", device="cpu").model  # onto the base that the manifest names
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=TOKENS).logits, place[1][end], rtol=1e-4, atol=1e-4)


def test_adapters_of_other_rank_scale_and_layers_blend_exactly(place, tmp_path):
    made = blend({final(place, "a"): 0.5, final(place, "c"): 0.5}, tmp_path / "out")
    a, c, mixed = updates(place[0] / "a/final/adapter"), updates(place[0] / "c/final/adapter"), updates(made)
    assert set(c) < set(a) == set(mixed)
    for layer in mixed:
        np.testing.assert_allclose(mixed[layer], 0.5 * a[layer] + 0.5 * c.get(layer, 0.0), rtol=1e-5, atol=1e-7)
    config = json.loads((made / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6
    assert torch.isfinite(through_peft(made)).all()


def test_factors_are_averaged_one_by_one_and_so_differ_from_the_weights(place, tmp_path):
    """The paper's code: (0.3 B_a + 0.7 B_b)(0.3 A_a + 0.7 A_b), by hand."""
    made = blend({final(place, "a"): 0.3, final(place, "b"): 0.7}, tmp_path / "out", method="factors")
    states = [load_file(place[0] / name / "final/adapter/adapter_model.safetensors") for name in "ab"]
    mixed = load_file(made / "adapter_model.safetensors")
    assert json.loads((made / "adapter_config.json").read_text())["r"] == 4
    for name in mixed:
        np.testing.assert_allclose(mixed[name], 0.3 * states[0][name] + 0.7 * states[1][name], rtol=1e-5, atol=1e-7)
    exact = updates(blend({final(place, "a"): 0.3, final(place, "b"): 0.7}, tmp_path / "exact"))
    assert max(np.abs(updates(made)[layer] - exact[layer]).max() for layer in exact) > 1e-3
    with pytest.raises(UserError, match="one rank and alpha; .* has 4 and 8.0, .* has 2 and 3.0"):
        blend({final(place, "a"): 0.5, final(place, "c"): 0.5}, tmp_path / "x", method="factors")


def test_whole_models_are_interpolated_weight_by_weight(place, tmp_path):
    for name in "ab":  # the merged models without their adapters
        shutil.copytree(place[0] / name / "final", tmp_path / name, ignore=shutil.ignore_patterns("adapter"))
    made = blend({str(tmp_path / "a"): 0.7, str(tmp_path / "b"): 0.3}, tmp_path / "out")
    states = [load_file(folder / "model.safetensors") for folder in (tmp_path / "a", tmp_path / "b", made)]
    assert set(states[2]) == set(states[0])
    for name in states[2]:
        wanted = 0.7 * states[0][name].astype(np.float64) + 0.3 * states[1][name].astype(np.float64)
        np.testing.assert_allclose(states[2][name], wanted, rtol=1e-5, atol=1e-7)
    of_adapters = load(
        str(blend({final(place, "a"): 0.7, final(place, "b"): 0.3}, tmp_path / "ad")), dtype="float32", device="cpu"
    ).model
    plain = AutoModelForCausalLM.from_pretrained(made).eval()
    with torch.no_grad():  # both ways are one: the base cancels because the weights sum to 1
        torch.testing.assert_close(plain(input_ids=TOKENS).logits, of_adapters(input_ids=TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert json.loads((made / "manifest.json").read_text())["weights"] == {str(tmp_path / "a"): 0.7, str(tmp_path / "b"): 0.3}
    with pytest.raises(UserError, match="method factors is for adapters"):
        blend({str(tmp_path / "a"): 0.7, str(tmp_path / "b"): 0.3}, tmp_path / "x", method="factors")


def test_whole_models_keep_their_type(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        save(tiny_llama(seed=seed).bfloat16(), byte_tokenizer(), tmp_path / name, manifest={"parents": ["same", ""]})
    made = blend({str(tmp_path / "a"): 0.5, str(tmp_path / "b"): 0.5}, tmp_path / "out")
    assert stored_dtype(made) == torch.bfloat16
    models = [load(str(folder), dtype="float32", device="cpu").model for folder in (tmp_path / "a", tmp_path / "b", made)]
    a, b, mixed = (dict(model.named_parameters()) for model in models)
    for name in mixed:
        torch.testing.assert_close(mixed[name], (0.5 * a[name] + 0.5 * b[name]).bfloat16().float(), rtol=0, atol=0)


def test_a_blend_can_be_blended_again(place, tmp_path):
    half = blend({final(place, "a"): 0.5, final(place, "b"): 0.5}, tmp_path / "half")
    made = blend({str(half): 0.5, final(place, "a"): 0.5}, tmp_path / "out")
    straight = blend({final(place, "a"): 0.75, final(place, "b"): 0.25}, tmp_path / "straight")
    for layer, update in updates(straight).items():
        np.testing.assert_allclose(updates(made)[layer], update, rtol=1e-5, atol=1e-7)


def test_what_does_not_belong_together_is_refused(place, tmp_path):
    adapter(tmp_path / "other", seed=1, base="c" * 8)
    with pytest.raises(UserError, match="models of different bases cannot be blended"):
        blend({final(place, "a"): 0.5, str(tmp_path / "other/final"): 0.5}, tmp_path / "x")
    shutil.copytree(place[0] / "b/final", tmp_path / "whole", ignore=shutil.ignore_patterns("adapter"))
    with pytest.raises(UserError, match="are adapters and .* are whole models"):
        blend({final(place, "a"): 0.5, str(tmp_path / "whole"): 0.5}, tmp_path / "x")
    with pytest.raises(UserError, match="method must be one of weights, factors"):
        blend({final(place, "a"): 0.5, final(place, "b"): 0.5}, tmp_path / "x", method="slerp")
    assert not (tmp_path / "x").exists()


def test_adapters_of_embeddings_are_refused(place, tmp_path):
    """Their factors lie the other way round (lora_embedding_A is [rank, tokens]), so joining them as linear ones is wrong."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    for name in "ef":
        save_adapter(get_peft_model(tiny_llama(), config), tmp_path / name, manifest={"base": "test", "parents": ["b" * 8, ""]})
        file = tmp_path / name / "adapter_model.safetensors"
        kept = {key: value for key, value in load_file(file).items() if "lora_" in key}  # peft adds the embedding itself
        assert sum("lora_embedding_" in key for key in kept) == 2 and len(kept) > 2
        save_file(kept, file)
    for method in ("weights", "factors"):
        with pytest.raises(UserError, match="adapts more than linear layers .*lora_embedding_"):
            blend({str(tmp_path / "e"): 0.5, str(tmp_path / "f"): 0.5}, tmp_path / "x", method=method)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("key, value", [
    ("layers_to_transform", [0]), ("layers_pattern", "layers"), ("exclude_modules", ["up_proj"]), ("use_qalora", True),
    ("lora_bias", True), ("target_parameters", ["mlp.weight"]), ("layer_replication", [[0, 1]]),
    ("trainable_token_indices", [3]), ("alora_invocation_tokens", [3]),
])
def test_adapters_with_settings_that_a_blend_would_not_keep_are_refused(place, tmp_path, key, value):
    """The blend's configuration is the first member's: the layers that it leaves out would be dropped of all the others."""
    folder = shutil.copytree(place[0] / "a" / "final" / "adapter", tmp_path / "odd")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    for pair in ((str(folder), final(place, "b")), (final(place, "b"), str(folder))):
        with pytest.raises(UserError, match=f"odd is no plain LoRA adapter \\(LORA, {key}\\)"):
            blend(dict.fromkeys(pair, 0.5), tmp_path / "x")


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"a": 1.0}, "two models or more; got a"),
        ({"a": 0.7, "b": 0.2}, "these sum to 0.9"),
        ({"a": 1.2, "b": -0.2}, "the least is -0.2"),
        ({"a": float("nan"), "b": 1.0}, "finite"),
    ],
)
def test_weights_are_shares(weights, message):
    with pytest.raises(UserError, match=message):
        check_weights(weights)


def test_other_weights_have_to_be_asked_for(place, tmp_path):
    made = blend({final(place, "a"): 1.2, final(place, "b"): -0.4}, tmp_path / "out", unnormalised=True)
    a, b, mixed = (updates(folder) for folder in (place[0] / "a/final/adapter", place[0] / "b/final/adapter", made))
    for layer in mixed:
        np.testing.assert_allclose(mixed[layer], 1.2 * a[layer] - 0.4 * b[layer], rtol=1e-5, atol=1e-7)
    check_weights({"a": 0.1, "b": 0.2, "c": 0.7})  # sums to 1 up to rounding


def test_weights_are_read_from_the_command_line():
    assert parse_weights(" helpful=0.7, harmless=.3 ") == {"helpful": 0.7, "harmless": 0.3}
    assert parse_weights("a=b/c=1e-1,d=0.9") == {"a=b/c": 0.1, "d": 0.9}
    for text in ("helpful", "helpful=", "=0.3", "helpful=x", "a=1,b"):
        with pytest.raises(UserError, match="is no weight; wanted NAME=NUMBER"):
            parse_weights(text)
    with pytest.raises(UserError, match='"a" stands twice'):
        parse_weights("a=0.5,a=0.5")
