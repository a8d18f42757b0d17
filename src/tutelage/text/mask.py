"""Which tokens are trained on: the assistant's, turn end included, and no others.

The mask is made by prefix rendering: the tokens of an assistant turn are those that the rendering of the conversation up
to and including it adds to the rendering of the conversation before it (with generation prompt).  It goes by position,
never by token id, so pad = eos does no harm (RLHF_CORRECTNESS C1, C6, C7).

Departures from the usual way: (1) what a template writes after the turn-ending token (often a newline) is not
supervised, since sampling stops before it; (2) a template that writes no turn end gets the tokenizer's eos appended to
the last turn; (3) where a template rewrites earlier turns (some strip reasoning), each assistant turn becomes a row.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from tutelage.core.errors import UserError
from tutelage.core.words import Example, Prompt
from tutelage.text.chat import encode, render, render_prompt, turn_end_ids


class Row(NamedTuple):
    """One sequence of tokens and the weight of each in the loss."""

    token_ids: list[int]
    weights: list[float]  # 0 = context only; same length as token_ids

    def trained(self) -> int:
        return sum(weight > 0 for weight in self.weights)


def rows_of(tokenizer: Any, example: Example, *, all_tokens: bool = False, max_tokens: int | None = None) -> list[Row]:
    """Rows to train on; nearly always one.  `all_tokens` supervises prompts too (except the first token).

    Rows longer than `max_tokens` are cut at the right; a row whose trained tokens were all cut away is left out.
    """
    rows = _prefix_rows(tokenizer, example)
    if all_tokens:
        rows = [Row(row.token_ids, [1.0] * len(row.token_ids)) for row in rows]
    if max_tokens is not None:
        rows = [Row(row.token_ids[:max_tokens], row.weights[:max_tokens]) for row in rows]
    return [row for row in rows if row.trained()]


def _prefix_rows(tokenizer: Any, example: Example) -> list[Row]:
    ends = turn_end_ids(tokenizer) or ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())
    rows: list[Row] = []
    ids: list[int] = []
    weights: list[float] = []
    text_so_far = ""
    for at, message in enumerate(example.messages):
        if message.role != "assistant":
            continue
        after = render(tokenizer, example.messages[: at + 1], tools=example.tools)
        if at:
            before = render(tokenizer, example.messages[:at], tools=example.tools, answer_next=True)
        else:  # nothing to render before the first message: what the template writes ahead of its text is the prompt
            before = after.partition(message.text.strip())[0] if message.text.strip() in after else ""
        before_ids, turn_ids = _turn(tokenizer, before, after, ends)
        if not before.startswith(text_so_far):  # the template rewrote an earlier turn: close the row and begin a new one
            rows.append(_ended(tokenizer, ids, weights, ends))
            ids, weights, text_so_far = [], [], ""
        gap = before_ids if not ids else encode(tokenizer, before[len(text_so_far):])
        ids = ids + gap + turn_ids
        weights = weights + [0.0] * len(gap) + [message.weight] * len(turn_ids)
        text_so_far = before + _trained_text(tokenizer, before, after, ends)
    if ids:
        rows.append(_ended(tokenizer, ids, weights, ends))
    return rows


def _ended(tokenizer: Any, ids: list[int], weights: list[float], ends: Iterable[int]) -> Row:
    """The row, with the tokenizer's eos at its end where the template wrote no turn end (departure 2)."""
    if ids[-1] in ends or tokenizer.eos_token_id is None:
        return Row(ids, weights)
    return Row([*ids, tokenizer.eos_token_id], [*weights, weights[-1]])


def _trained_text(tokenizer: Any, before: str, after: str, ends: Iterable[int]) -> str:
    """The turn's text up to and including the turn end; what the template writes after it is left to the next gap."""
    tail = after[len(before):] if after.startswith(before) else after
    cut = max((tail.rfind(mark) + len(mark) for mark in (tokenizer.convert_ids_to_tokens(end) for end in ends) if mark in tail),
              default=len(tail))
    return tail[:cut]


def _turn(tokenizer: Any, before: str, after: str, ends: Iterable[int]) -> tuple[list[int], list[int]]:
    """Token ids before the turn and of the turn, turn end last."""
    if not after.startswith(before):
        turn = after[max(0, len(before) - 40):len(before) + 20]
        raise UserError(
            "the chat template renders an assistant turn differently from its own generation prompt, so that the trained "
            f"tokens cannot be told apart (prompt ends {before[-40:]!r}, turn begins {turn!r}); "
            "use a template whose generation prompt is a prefix of the rendered turn"
        )
    # Tokenised apart from what stands before it: sampling, too, begins after the generation prompt's last token.
    return encode(tokenizer, before), encode(tokenizer, _trained_text(tokenizer, before, after, ends))


def answer_row(tokenizer: Any, prompt: Prompt, answer: str, *, max_tokens: int | None = None) -> Row:
    """Tokens of a prompt and a given answer, the answer (turn end included) weighted 1: for scoring and reward models.

    Where the whole is longer than `max_tokens`, the prompt loses its beginning first, then the answer its end.
    """
    prompt_ids = render_prompt(tokenizer, prompt)
    ends = turn_end_ids(tokenizer)
    end = next(iter(ends), tokenizer.eos_token_id)
    answer_ids = encode(tokenizer, answer) + ([end] if end is not None else [])
    if max_tokens is not None:
        keep = max(0, max_tokens - len(answer_ids))
        prompt_ids = prompt_ids[len(prompt_ids) - keep:] if keep < len(prompt_ids) else prompt_ids
        answer_ids = answer_ids[:max_tokens]
    return Row(prompt_ids + answer_ids, [0.0] * len(prompt_ids) + [1.0] * len(answer_ids))


def colour(tokenizer: Any, row: Row) -> list[tuple[str, float]]:
    """Pieces of text with their loss weight, in order: what `tutelage data inspect --tokens` shows in colour."""
    pieces: list[tuple[str, float]] = []
    start = 0
    while start < len(row.token_ids):
        end = start
        while end < len(row.token_ids) and row.weights[end] == row.weights[start]:
            end += 1
        text = tokenizer.decode(row.token_ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        pieces.append((text, row.weights[start]))
        start = end
    return pieces
