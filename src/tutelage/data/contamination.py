"""Training records that hold evaluation items.

A record is contaminated when one of its texts shares a run of 13 words with an evaluation item (the 13-gram rule of
GPT-3: Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C), or when one of its turns *is* the item.

Departures from the paper:
1. Chinese, Japanese and Korean are counted in characters, and 20 of them make a run: 13 English words are about 20
   Chinese characters of text, and 13 characters are less than a sentence.
2. The whole record goes, not 200 characters around the overlap: an instruction with a hole teaches nothing.
3. The paper ignores runs that occur in more than ten training documents, which needs a second pass.  Here a run that
   stands in three or more evaluation items is taken for their common frame ("Classify the following message ...").
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.core.errors import UserError
from tutelage.data.dedupe import shingle_hashes, units

WORDS = 13
CHARACTERS = 20
_FRAME = 3  # evaluation items that share a run before it counts as their frame


class Item(NamedTuple):
    name: str
    text: str


class EvaluationSet:
    """What must not be trained on.  Memory grows with the evaluation items, not with the training data."""

    def __init__(self, items: Iterable[str | Item]):
        self._items: list[Item] = []
        self._exact: dict[tuple[str, ...], int] = {}
        # width -> hash of a run -> (item, start)
        self._runs: dict[int, dict[int, tuple[int, int]]] = {WORDS: {}, CHARACTERS: {}}
        holders: dict[int, dict[int, int]] = {WORDS: {}, CHARACTERS: {}}  # width -> hash -> number of items
        for number, given in enumerate(items):
            item = given if isinstance(given, Item) else Item(f"evaluation item {number + 1}", given)
            self._items.append(item)
            words = units(item.text)
            if not words:
                continue
            self._exact.setdefault(tuple(words), number)
            width = _width(words)
            if len(words) < width:
                continue
            seen = set()
            for start, value in enumerate(shingle_hashes(words, width=width).tolist()):
                self._runs[width].setdefault(value, (number, start))
                if value not in seen:
                    seen.add(value)
                    holders[width][value] = holders[width].get(value, 0) + 1
        for width, counts in holders.items():
            for value, count in counts.items():
                if count >= _FRAME:
                    del self._runs[width][value]

    def __len__(self) -> int:
        return len(self._items)

    def overlap(self, texts: Iterable[str]) -> str | None:
        """Which evaluation item one of the texts holds, and where they agree; None when they hold none."""
        for text in texts:
            words = units(text)
            number = self._exact.get(tuple(words)) if words else None
            if number is not None:
                return f"{self._named(number)} word for word"
            for width, runs in self._runs.items():
                if not runs or len(words) < width:
                    continue
                for value in shingle_hashes(words, width=width).tolist():
                    if value in runs:
                        number, start = runs[value]
                        quote = self._quote(number, start, width)
                        return f'{self._named(number)}: the same {width} units in a row, "{quote}"'
        return None

    def _named(self, number: int) -> str:
        text = " ".join(self._items[number].text.split())
        return f"{self._items[number].name} ({text[:40]}{'...' if len(text) > 40 else ''})"

    def _quote(self, number: int, start: int, width: int) -> str:
        run = units(self._items[number].text)[start:start + width]
        return ("" if width == CHARACTERS else " ").join(run)


def _width(words: list[str]) -> int:
    """20 where most units are characters of a script without spaces, 13 elsewhere."""
    single = sum(len(word) == 1 and ord(word) > 0x2E80 for word in words)
    return CHARACTERS if single * 2 > len(words) else WORDS


_QUESTION = ("prompt", "question", "instruction", "text", "input")


def read_items(path: Path | str) -> Iterator[Item]:
    """Evaluation items of a file: JSON lines (`messages`, or a field called prompt, question, instruction, text or
    input; `id` names the item), or plain text with an item a line."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"contamination: cannot read the evaluation items of {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = f"{path.name}, line {number}"
        if path.suffix.lower() not in (".jsonl", ".ndjson"):
            yield Item(name, line)
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); give JSON lines or a .txt file") from error
        yield from _row_items(row, name, where=f"{path}, line {number}")


def _row_items(row: Any, name: str, *, where: str) -> Iterator[Item]:
    if isinstance(row, str):
        yield Item(name, row)
        return
    if isinstance(row, dict):
        name = f"{name} ({row['id']})" if isinstance(row.get("id"), str) else name
        if isinstance(row.get("messages"), list):
            asked = [turn for turn in row["messages"] if isinstance(turn, dict) and turn.get("role") == "user"]
            texts = [turn.get("text", turn.get("content")) for turn in asked]
            texts = [text for text in texts if isinstance(text, str)]
        else:
            # An instruction and its input are two turns of one item: either may be what leaks.
            texts = [row[field] for field in _QUESTION if isinstance(row.get(field), str) and row[field].strip()]
        if texts:
            yield from (Item(name, text) for text in texts)
            return
    raise UserError(f"{where}: no evaluation prompt; wanted a string, 'messages', or one of {', '.join(_QUESTION)}")
