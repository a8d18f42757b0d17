"""Heads and the split of causal LMs, against plain transformers as the witness."""

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
)

from tutelage.models.attention import quicken
from tutelage.models.heads import (
    RewardModel,
    ScalarHead,
    ValueModel,
    harmless_pad,
    last_real,
    lm_parts,
    load_reward,
    reward_model,
    save_scalar,
    value_from_reward,
    value_model,
)
from tutelage.models.load import load
from tutelage.models.lora import add_lora
from tutelage.models.tiny import byte_tokenizer, tiny_llama

SMALL = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**SMALL, num_key_value_heads=1, head_dim=8, sliding_window=4, final_logit_softcapping=3.0),
    "gpt2": GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
                       initializer_range=0.3),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "cohere": CohereConfig(**SMALL, num_key_value_heads=2, logit_scale=0.25),
    "granite": GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=8.0),
}


def small(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_trunk_head_and_post_give_the_logits_of_transformers(name):
    model = small(name)
    decoder, lm_head, post = lm_parts(model)
    token_BT = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(input_ids=token_BT, use_cache=False).logits
        got = post(lm_head(decoder(input_ids=token_BT, use_cache=False).last_hidden_state))
    assert want.std() > 0.05  # else the comparison would say little
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_an_unknown_way_to_make_logits_is_refused():
    model = small("granite")
    model.config.logits_scaling = 4.0  # what post reads; the model itself still divides by 8
    model.logits_scaling = 8.0
    forward = model.forward
    model.forward = lambda **kwargs: type("Out", (), {"logits": forward(**kwargs).logits * 3})()
    with pytest.raises(ValueError, match="not known here"):
        lm_parts(model)


def test_the_lm_head_is_float32_under_bfloat16_and_autocast():
    model = small("llama").to(torch.bfloat16)
    head = lm_parts(model).lm_head
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(hidden)
    assert logits.dtype == torch.float32
    exact = hidden.double() @ model.lm_head.weight.double().T
    torch.testing.assert_close(logits, exact, check_dtype=False, rtol=1e-5, atol=1e-5)


def test_zero_head_says_zero_and_fresh_reward_head_has_std_one_over_root_d_plus_one():
    assert ScalarHead(64)(torch.randn(3, 5, 64)).abs().max() == 0
    head = ScalarHead(4095, init="orm", generator=torch.Generator().manual_seed(0))
    # the sample std of 4095 draws is within 6 % of 1/64 but for about one in 10**7 seeds
    assert math.isclose(head.score.weight.std().item(), 1 / 64, rel_tol=0.06)
    assert head.score.bias.item() == 0
    with pytest.raises(ValueError, match="init must be"):
        ScalarHead(4, init="xavier")


def padded(rows, *, width, pad, left=False):
    token_BT = torch.full((len(rows), width), pad)
    real_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        token_BT[at, place] = torch.tensor(row)
        real_BT[at, place] = True
    return token_BT, real_BT


ROWS = [[5, 6, 7, 2], [2, 9, 2, 11, 12, 2, 2], [8], [2, 2]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_score_does_not_depend_on_batch_padding_or_pad_id(name):
    model = reward_model(small(name), init="orm")
    with torch.no_grad():
        alone = torch.cat([model(*padded([row], width=len(row), pad=0)) for row in ROWS])
        assert alone.std() > 0.01
        for pad in (2, 50):  # 2 is eos, and stands inside the rows too
            for left in (False, True):
                together = model(*padded(ROWS, width=11, pad=pad, left=left))
                torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_score_is_read_at_the_last_real_token():
    model = reward_model(small("llama"), init="orm")
    token_BT, real_BT = padded(ROWS, width=11, pad=2)
    assert last_real(real_BT).tolist() == [3, 6, 0, 1]
    with torch.no_grad():
        hidden = model.trunk(input_ids=token_BT).last_hidden_state
        by_hand = torch.stack([hidden[b, len(row) - 1] @ model.head.score.weight[0] for b, row in enumerate(ROWS)])
        torch.testing.assert_close(model(token_BT, real_BT), by_hand, rtol=1e-5, atol=1e-6)
        values = value_from_reward(model)(token_BT, real_BT)
    assert values.shape == (4, 11)
    torch.testing.assert_close(values[0, 3], by_hand[0], rtol=1e-5, atol=1e-6)


def test_value_model_shares_the_trunk_and_starts_at_zero():
    lm = small("llama")
    value = value_model(lm)
    assert value.trunk is lm.model and isinstance(value, ValueModel)
    assert value(*padded(ROWS, width=8, pad=2)).abs().max() == 0


@pytest.mark.parametrize("lora", [False, True])
def test_saved_reward_model_loads_in_plain_transformers_with_the_same_scores(tmp_path, lora):
    tokenizer, lm = byte_tokenizer(), tiny_llama(seed=3)
    if lora:
        lm = add_lora(lm, rank=4, alpha=8)
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    model = reward_model(lm, init="orm")
    rows = [tokenizer.encode(text) for text in ("hello<|im_end|>", "a longer text<|im_end|>\n<|im_end|>", "x<|im_end|>")]
    with torch.no_grad():
        want = model(*padded(rows, width=40, pad=0))
    save_scalar(model, tokenizer, tmp_path / "rm", manifest={"role": "reward"})

    plain_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32).eval()
    assert plain.config.num_labels == 1 and plain.config.pad_token_id == plain_tokenizer.pad_token_id
    assert plain_tokenizer.pad_token_id != plain_tokenizer.eos_token_id  # else its last-token search would cut the turn end
    batch = plain_tokenizer(["hello<|im_end|>", "a longer text<|im_end|>\n<|im_end|>", "x<|im_end|>"], padding=True,
                            return_tensors="pt")
    with torch.no_grad():
        got = plain(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits[:, 0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)

    again = load_reward(str(tmp_path / "rm"), dtype="float32")
    assert isinstance(again.model, RewardModel)
    with torch.no_grad():
        torch.testing.assert_close(again.model(*padded(rows, width=40, pad=0)), want, rtol=1e-5, atol=1e-5)
    assert not list((tmp_path / "rm").glob("*.bin"))


def test_bias_and_float32_head_survive_saving_beside_a_bfloat16_trunk(tmp_path):
    # not tiny_llama().to(bfloat16): that would round the rotary frequencies too, which loading never does
    model = reward_model(quicken(load("test", dtype="bfloat16", cache=tmp_path).model), init="orm")  # as load_reward does
    with torch.no_grad():
        model.head.score.bias.fill_(-1.25)
    save_scalar(model, byte_tokenizer(), tmp_path / "rm", manifest={})
    again = load_reward(str(tmp_path / "rm"), dtype="bfloat16").model
    assert torch.equal(again.head.score.weight, model.head.score.weight) and again.head.score.bias.item() == -1.25
    rows = padded([[1, 2, 3]], width=3, pad=0)
    assert torch.equal(again(*rows), model(*rows))


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "gpt_neox", "qwen2"])
def test_other_architectures_save_as_classifiers_too(tmp_path, name):
    model = reward_model(small(name), init="orm")
    save_scalar(model, byte_tokenizer(), tmp_path, manifest={})
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    token_BT, real_BT = padded([[5, 6, 7, 9, 2]], width=5, pad=0)
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=token_BT).logits[:, 0], model(token_BT, real_BT), rtol=1e-5, atol=1e-5)


def test_a_classifier_of_three_labels_is_not_mistaken_for_a_reward_model(tmp_path):
    config = LlamaConfig(**SMALL, num_key_value_heads=2, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="3 labels"):
        load_reward(str(tmp_path))


def test_harmless_pad_is_never_an_end_of_text():
    tokenizer = byte_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 258
    assert harmless_pad(tokenizer, tiny_llama().config) in (256, 257)
