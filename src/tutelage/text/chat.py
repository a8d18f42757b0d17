"""Chat templates: words -> token ids, in one place for SFT, rollouts, reward models, evaluation and serving.

A conversation is rendered by the tokenizer's own template to a string and tokenised without added special tokens, so
that there is exactly one BOS: the one the template wrote (RLHF_CORRECTNESS C4).  A tokenizer without a template gets
`PLAIN`, which needs no special tokens but eos.
"""

import re
from collections.abc import Sequence
from typing import Any

from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json, sha256_bytes
from tutelage.core.words import Message, Prompt

# For base models without a template: works with any vocabulary, ends each answer with the tokenizer's eos.
PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'assistant' %}Assistant: {{ m.content }}{{ eos_token }}\n"
    "{% elif m.role == 'system' %}{{ m.content }}\n\n{% else %}User: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)


def template_of(tokenizer: Any) -> str:
    """The chat template in force: the tokenizer's own, or PLAIN."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # several by name: the default one is for chat
        template = template.get("default")
    return template or PLAIN


def template_digest(tokenizer: Any) -> str:
    """Digest of everything that turns words into tokens: template text and special tokens.  Stands in every artefact.

    Two stages whose digests differ show the model different tokens for the same words, and are refused.
    """
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items()) if isinstance(token, str)}
    # pad is left out: masks go by position, so a changed pad token changes nothing.
    special.pop("pad_token", None)
    return sha256_bytes(canonical_json([template_of(tokenizer), special]).encode())[:16]


def to_openai(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name:
        out["name"] = message.name
    if message.tool_calls:
        out["tool_calls"] = [{"type": "function", "function": call.get("function", call)} for call in message.tool_calls]
    return out


def render(tokenizer: Any, messages: Sequence[Message], *, tools: Sequence[dict] = (), answer_next: bool = False) -> str:
    """The conversation as one string; `answer_next` adds the generation prompt.

    Templates that know no system or tool role (they raise) get those turns as user text.
    """
    turns = [to_openai(message) for message in messages]
    kwargs = {"tools": list(tools) or None, "chat_template": template_of(tokenizer), "tokenize": False,
              "add_generation_prompt": answer_next}
    try:
        return tokenizer.apply_chat_template(turns, **kwargs)
    except Exception as error:  # noqa: BLE001 - templates raise jinja errors of many kinds; told apart by the second try
        plain = _without_special_roles(turns)
        if plain == turns:
            raise UserError(f"the model's chat template refuses this conversation: {error}") from error
        try:
            return tokenizer.apply_chat_template(plain, **kwargs)
        except Exception as second:
            raise UserError(f"the model's chat template refuses this conversation: {second}") from second


def _without_special_roles(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for turn in turns:
        role = "user" if turn["role"] in ("system", "tool") else turn["role"]
        text = turn["content"]
        if turn.get("tool_calls"):
            text = (text + "\n" + canonical_json(turn["tool_calls"])).strip()
        if out and out[-1]["role"] == role:  # templates that know no system role also want turns to alternate
            out[-1]["content"] += "\n\n" + text
        else:
            out.append({"role": role, "content": text})
    return out


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of already rendered text: nothing added, nothing cut."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt up to and including the generation prompt: what the policy sees before its first token."""
    return encode(tokenizer, render(tokenizer, prompt.messages, tools=prompt.tools, answer_next=True))


def turn_end_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the special token that the template writes after an assistant's turn (empty if it writes none)."""
    probe = "qzx"
    text = render(tokenizer, [Message(role="user", text="a"), Message(role="assistant", text=probe)])
    tail = encode(tokenizer, text[text.rindex(probe) + len(probe):])
    # all_special_ids holds those with a role only (bos, eos, ...); Gemma's <end_of_turn> is special without having one.
    special = set(tokenizer.all_special_ids)
    special |= {at for at, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    for token in tail:
        if token in special:
            return frozenset([token])
    return frozenset()


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a response: the model's eos id or ids (C13), the tokenizer's eos, the template's turn end."""
    out = set(turn_end_ids(tokenizer))
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        eos = getattr(config, "eos_token_id", None)
        out |= set(eos) if isinstance(eos, (list, tuple)) else {eos} if eos is not None else set()
    if tokenizer.eos_token_id is not None:
        out.add(tokenizer.eos_token_id)
    if not out:
        raise UserError("neither model, tokenizer nor chat template names a token that ends an answer; set tokenizer.eos_token")
    return frozenset(out)


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Text of a response, special tokens left out."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def answer_text(text: str) -> str:
    """The answer as people and judges see it: outer white space gone, runs of blank lines folded."""
    return re.sub(r"\n{3,}", "\n\n", text).strip()
