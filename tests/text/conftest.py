"""Tokenizers with the chat templates of well-known families, built here: byte-level, special tokens added, no download."""

from typing import NamedTuple

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# As reasoning models do: what an earlier answer thought is taken out once the next question has come.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and loop.index0 < ns.last else m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
# ChatML with the marks from which transformers makes its own assistant mask: the witness.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Family(NamedTuple):
    template: str | None
    special: tuple[str, ...]
    end: str  # what ends a turn
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None


FAMILIES = {
    "chatml": Family(CHATML, ("<|im_start|>", "<|im_end|>", "<pad>"), end="<|im_end|>", eos="<|im_end|>", pad="<pad>"),
    "chatml-pad-is-eos": Family(CHATML, ("<|im_start|>", "<|im_end|>"), end="<|im_end|>", eos="<|im_end|>", pad="<|im_end|>"),
    "llama3": Family(LLAMA3, ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
                     end="<|eot_id|>", bos="<|begin_of_text|>", eos="<|end_of_text|>"),
    "gemma": Family(GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<pad>"), end="<end_of_turn>",
                    bos="<bos>", eos="<eos>", pad="<pad>"),
    "mistral": Family(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), end="</s>", bos="<s>", eos="</s>", pad="</s>"),
    "plain": Family(None, ("<s>", "</s>"), end="</s>", bos="<s>", eos="</s>"),
    "plain-without-bos": Family(None, ("</s>",), end="</s>", eos="</s>", pad="</s>"),
}


def build(family: Family, *, merges: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; `merges` teaches it some words, so that tokens can straddle what was written apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if merges:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.train_from_iterator(["user\nHello there, assistant\nHello!", "one\n\ntwo", "\n\n"] * 20,
                                trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    else:
        raw = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    if family.bos:  # as the families' own tokenizers do: encoding text adds a BOS unless told not to
        raw.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, raw.token_to_id(family.bos))])
    names = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, clean_up_tokenization_spaces=False, **{name: token for name, token in names.items() if token})
    tokenizer.chat_template = family.template
    return tokenizer


TOKENIZERS = {name: build(family) for name, family in FAMILIES.items()}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """By family name; shared, so a test that changes one builds its own with `make`."""
    return TOKENIZERS


@pytest.fixture(scope="session", params=FAMILIES)
def named(request) -> tuple[str, Family, PreTrainedTokenizerFast]:
    """Each family in turn: its name, what it is, its tokenizer."""
    return request.param, FAMILIES[request.param], TOKENIZERS[request.param]


@pytest.fixture(scope="session")
def make():
    """make("llama3", merges=True, template="...") -> a tokenizer of one's own."""

    def _make(name: str, *, merges: bool = False, template: str | None = None, **changes: str) -> PreTrainedTokenizerFast:
        family = FAMILIES[name]._replace(**changes)
        return build(family if template is None else family._replace(template=template), merges=merges)

    return _make


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    return {"thinking": THINKING, "no-end": NO_END, "marked": MARKED, "chatml": CHATML}
