"""Words to tokens: one BOS, the template's own words, every token that ends an answer."""

from types import SimpleNamespace

import pytest

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt
from tutelage.text.chat import (
    PLAIN,
    answer_text,
    decode,
    encode,
    render,
    render_prompt,
    stop_ids,
    template_digest,
    template_of,
    to_openai,
    turn_end_ids,
)


def user(text: str) -> Message:
    return Message(role="user", text=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", text=text)


def system(text: str) -> Message:
    return Message(role="system", text=text)


PROMPTS = {
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "chatml-pad-is-eos": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s>[INST] Hi [/INST]",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_reads_as_its_family_writes_it(name, tokenizers):
    ids = render_prompt(tokenizers[name], Prompt(messages=(user("Hi"),)))
    assert tokenizers[name].decode(ids, skip_special_tokens=False) == PROMPTS[name]


def test_a_prompt_equals_what_transformers_itself_tokenises(named):
    name, _, tokenizer = named
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh, hi"},
             {"role": "user", "content": "写一首诗"}]
    witness = tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=False, chat_template=template_of(tokenizer))
    assert render_prompt(tokenizer, Prompt(messages=(user("Hi"), assistant("Oh, hi"), user("写一首诗")))) == witness


def test_one_bos(named):
    """C4: the template writes it; the tokenizer, which would add another, is told not to."""
    _, family, tokenizer = named
    ids = render_prompt(tokenizer, Prompt(messages=(user("Hi"), assistant("Hello"), user("Bye"))))
    if family.bos is None:
        assert tokenizer.bos_token_id is None
    else:
        assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id  # left alone it would add one
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_special_tokens_are_single_ids(named):
    _, family, tokenizer = named
    ids = render_prompt(tokenizer, Prompt(messages=(user("Hi"), assistant("Hello"), user("Bye"))))
    assert ids.count(tokenizer.convert_tokens_to_ids(family.end)) >= 1
    assert encode(tokenizer, family.end) == [tokenizer.convert_tokens_to_ids(family.end)]


def test_a_system_turn_that_the_template_refuses_becomes_user_text(tokenizers):
    for name in ("gemma", "mistral"):
        text = render(tokenizers[name], [system("Be brief."), user("Hi")], answer_next=True)
        assert text == PROMPTS[name].replace("Hi", "Be brief.\n\nHi")
    assert "<|im_start|>system\nBe brief.<|im_end|>" in render(tokenizers["chatml"], [system("Be brief."), user("Hi")])


def test_a_tool_turn_that_the_template_refuses_becomes_user_text(tokenizers):
    call = Message(role="assistant", text="", tool_calls=({"name": "weather", "arguments": {"city": "Oslo"}},))
    text = render(tokenizers["gemma"], [user("Weather?"), call, Message(role="tool", text="rain"), ], answer_next=True)
    assert "<start_of_turn>user\nrain<end_of_turn>" in text and '"city":"Oslo"' in text and '"name":"weather"' in text


def test_a_conversation_that_no_rendering_saves_is_refused_with_the_templates_words(make):
    tokenizer = make("chatml", template="{{ raise_exception('only on Sundays') }}")
    with pytest.raises(UserError, match="refuses this conversation: only on Sundays"):
        render(tokenizer, [user("Hi")])
    with pytest.raises(UserError, match="refuses this conversation: only on Sundays"):
        render(tokenizer, [system("S"), user("Hi")])


def test_tools_reach_the_template(make):
    tokenizer = make("chatml", template="{{ tools | length if tools else 'none' }} {{ messages[0].content }}")
    assert render(tokenizer, [user("x")], tools=[{"type": "function", "function": {"name": "f"}}]) == "1 x"
    assert render(tokenizer, [user("x")]) == "none x"


def test_plain_is_for_tokenizers_without_a_template(tokenizers):
    assert template_of(tokenizers["plain"]) == PLAIN and template_of(tokenizers["chatml"]) != PLAIN
    talk = [system("Be brief."), user("Hi"), assistant("Hello"), user("Bye")]
    text = render(tokenizers["plain"], talk, answer_next=True)
    assert text.startswith("<s>Be brief.\n\nUser: Hi\nAssistant: Hello</s>\nUser: Bye\nAssistant:")
    assert render(tokenizers["plain-without-bos"], talk).startswith("Be brief.")


def test_of_several_templates_by_name_the_default_one_is_in_force():
    assert template_of(SimpleNamespace(chat_template={"tool_use": "T", "default": "D"})) == "D"
    assert template_of(SimpleNamespace(chat_template={"tool_use": "T"})) == template_of(SimpleNamespace()) == PLAIN


def test_to_openai_keeps_names_and_calls_in_either_shape():
    bare = {"name": "f", "arguments": {"a": 1}}
    for call in (bare, {"type": "function", "function": bare}):
        out = to_openai(Message(role="assistant", text="t", name="bob", tool_calls=(call,)))
        assert out.pop("tool_calls") == [{"type": "function", "function": bare}]
        assert out == {"role": "assistant", "content": "t", "name": "bob"}
    assert to_openai(user("t")) == {"role": "user", "content": "t"}


def test_the_turn_end_is_the_token_that_the_template_writes(named):
    _, family, tokenizer = named
    assert turn_end_ids(tokenizer) == {tokenizer.convert_tokens_to_ids(family.end)}


def test_a_template_may_write_no_turn_end(make, templates):
    assert turn_end_ids(make("plain", template=templates["no-end"])) == frozenset()


def test_every_eos_of_model_and_tokenizer_and_the_turn_end_stop_an_answer(tokenizers):
    """C13: a model may name several (Llama 3 does), and a template may end turns with yet another."""
    tokenizer = tokenizers["llama3"]
    eot, eos = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    bare = SimpleNamespace()
    assert stop_ids(bare, tokenizer) == {eot, eos}
    listed = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7, 8]), config=SimpleNamespace(eos_token_id=9))
    assert stop_ids(listed, tokenizer) == {7, 8, 9, eot, eos}
    assert stop_ids(SimpleNamespace(generation_config=None, config=SimpleNamespace(eos_token_id=None)), tokenizer) == {eot, eos}
    zero = SimpleNamespace(config=SimpleNamespace(eos_token_id=0))
    assert 0 in stop_ids(zero, tokenizer)


def test_nothing_that_ends_an_answer_is_refused(make, templates):
    tokenizer = make("plain", template=templates["no-end"], eos=None)
    with pytest.raises(UserError, match="set tokenizer.eos_token"):
        stop_ids(SimpleNamespace(), tokenizer)


def test_the_digest_changes_with_what_changes_tokens_and_with_nothing_else(make, templates):
    base = template_digest(make("chatml"))
    assert base == template_digest(make("chatml")) and len(base) == 16
    assert template_digest(make("chatml", pad="<|im_end|>")) == base  # masks go by position
    assert template_digest(make("chatml", template=templates["thinking"])) != base
    assert template_digest(make("chatml", eos="<|im_start|>")) != base
    assert template_digest(make("chatml", bos="<|im_start|>")) != base


def test_decode_gives_back_the_words_and_no_special_token(named):
    _, family, tokenizer = named
    for text in ("Hello , world !", "  two  spaces\n\n", "写一首诗 🙂", "don 't"):
        assert decode(tokenizer, encode(tokenizer, text + family.end)) == text


@pytest.mark.parametrize("text, shown", [("  a\n\n\n\nb \n", "a\n\nb"), ("a\n\nb", "a\n\nb"), ("a  b", "a  b"), ("\n \n", "")])
def test_answer_text(text, shown):
    assert answer_text(text) == shown
