"""Judged answers as rows of tokens: pairs for DPO and its kin, single good or bad answers for KTO."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from tutelage.algos.kto import mismatched
from tutelage.core.words import Label, Preference
from tutelage.text.mask import Row, answer_row


class Item(NamedTuple):
    """A record, tokenised: a pair (chosen, rejected), or a single answer."""

    rows: tuple[Row, ...]
    good: tuple[bool, ...]  # of each row
    soft_label: float
    weight: float
    strangers: tuple[Row, ...] = ()  # KTO: the prompt with answers that were given to other prompts
    reference: tuple[float, ...] = ()  # nats under the reference, of rows, then of strangers; () = ask it when needed

    def all_rows(self) -> tuple[Row, ...]:
        return self.rows + self.strangers

    def tokens(self) -> int:
        """What the rows take up side by side, padding included."""
        return max(len(row.token_ids) for row in self.rows) * len(self.rows)


def items_of(tokenizer: Any, records: Sequence[Preference | Label], *, method: str, max_tokens: int, seed: int) -> list[Item]:
    """What `method` can learn from, in order: pairs; for kto also single answers called good or bad, and no ties."""
    row = partial(answer_row, tokenizer, max_tokens=max_tokens)
    kept = [record for record in records if usable(record, method)]
    strangers: list[list[Row]] = [[] for _ in kept]
    if method == "kto":
        for at, text in _strange_answers(kept, seed=seed):
            strangers[at].append(row(kept[at].prompt, text))
    out = []
    for record, others in zip(kept, strangers, strict=True):
        verdicts = _verdicts(record)
        rows = tuple(row(record.prompt, text) for text, _ in verdicts)
        soft_label = record.soft_label if isinstance(record, Preference) else 1.0
        out.append(Item(rows, tuple(good for _, good in verdicts), soft_label, record.weight, tuple(others)))
    return out


def usable(record: Preference | Label, method: str) -> bool:
    if isinstance(record, Label):
        return method == "kto" and record.desirable is not None
    return method != "kto" or record.soft_label != 0.5  # a tie: neither answer is the good one


def _verdicts(record: Preference | Label) -> list[tuple[str, bool]]:
    """Answers and whether they are good ones; of a pair the chosen one first."""
    if isinstance(record, Label):
        return [(record.response.text, bool(record.desirable))]
    return [(record.chosen.text, record.soft_label > 0.5), (record.rejected.text, record.soft_label <= 0.5)]


def _strange_answers(records: Sequence[Preference | Label], *, seed: int) -> list[tuple[int, str]]:
    """(record, an answer that was given to another prompt): one for each answer of the record, where there is one."""
    order = list(dict.fromkeys(record.prompt.id for record in records))
    random.Random(f"{seed}/strangers").shuffle(order)  # neighbours in a file may be about the same thing
    number = {prompt: at for at, prompt in enumerate(order)}
    answers = [(number[record.prompt.id], at, text) for at, record in enumerate(records) for text, _ in _verdicts(record)]
    answers.sort(key=lambda answer: answer[0])  # equal prompts side by side
    partners = mismatched([group for group, *_ in answers])
    return [(at, answers[partner][2]) for (_, at, _), partner in zip(answers, partners, strict=True) if partner >= 0]
