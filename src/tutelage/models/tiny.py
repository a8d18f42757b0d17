"""The model named `test`: 0.9 million random weights and a tokenizer of bytes, so that every trainer runs in seconds.

A Llama (grouped-query attention, tied embeddings, RoPE) with ChatML turns.  Its pad token is its end-of-turn token on
purpose: whoever masks by id instead of by position fails here first.
"""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258, after the bytes 0..255

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte 0..255 in byte-level BPE (Radford et al. 2019, GPT-2's table).

    >>> byte_alphabet()[97], byte_alphabet()[32]
    ('a', 'Ġ')
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a UTF-8 byte, with id = byte; ChatML; pad = eos = <|im_end|>."""
    raw = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(byte_alphabet())}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>", clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_llama(*, seed: int = 0, layers: int = 4, hidden: int = 128) -> LlamaForCausalLM:
    """Random weights, the same for the same seed; the caller's random state is left alone."""
    config = LlamaConfig(
        vocab_size=256 + len(SPECIAL), hidden_size=hidden, intermediate_size=hidden * 7 // 2, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=257, eos_token_id=258, pad_token_id=258, attention_dropout=0.0,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        # transformers leaves the pad token's embedding at zero, and here that is the turn end
        torch.nn.init.normal_(model.model.embed_tokens.weight.data[258], std=config.initializer_range)
    model.generation_config = GenerationConfig(bos_token_id=257, eos_token_id=258, pad_token_id=258)
    return model.eval()


def write_tiny(folder: Path) -> None:
    """Write the model named `test` into `folder` in Hugging Face format."""
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
