"""The project's own starter data: instructions, graded preference pairs and held-out evaluation items, English and
Chinese.

Written by the project's authors (`author:starter`), Apache-2.0; DATA_CARD.md says how.  What is derived here by a random
draw is called `simulated:*`, wherever it goes: no person gave those verdicts.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tutelage.core.errors import UserError, nearest
from tutelage.core.files import read_jsonl
from tutelage.core.words import Example, Judgement, Message, Preference, Prompt, Response
from tutelage.data.records import Kept, group_of

FOLDER = Path(__file__).parent
AUTHOR = "author:starter"
NAMES = ("instructions", "preferences", "evaluation")
SOURCE = "starter@1"


def raw_rows(part: str) -> list[dict[str, Any]]:
    """The rows of `part`_*.jsonl as written, in the order of file names and lines."""
    files = sorted(FOLDER.glob(f"{part}_*.jsonl"))
    if not files:
        raise UserError(
            f"the starter data have no {part}_*.jsonl in {FOLDER}; the installation is incomplete, install the package again"
        )
    return [row for file in files for row in read_jsonl(file)]


def _messages(row: dict[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(role=turn["role"], text=turn["content"]) for turn in row["messages"])


def _tags(row: dict[str, Any]) -> tuple[str, ...]:
    allowed = (f"labels:{'|'.join(row['labels'])}",) if row.get("labels") else ()
    return (f"id:{row['id']}", f"task:{row['task']}", f"lang:{row['lang']}", *allowed)


@lru_cache(maxsize=1)
def instructions() -> list[Example]:
    return [
        Example(
            messages=(turns := _messages(row)),
            group=group_of(turns),
            author=row.get("author", AUTHOR),
            tags=_tags(row),
            source=SOURCE,
            license=row["license"],
        )
        for row in raw_rows("instructions")
    ]


@lru_cache(maxsize=1)
def preferences() -> list[Preference]:
    found = []
    for row in raw_rows("preferences"):
        turns = _messages(row)
        asked = Prompt(messages=turns, group=group_of(turns), tags=_tags(row), source=SOURCE, license=row["license"])
        chosen, rejected = (
            Response(prompt_id=asked.id, text=row[side], policy=AUTHOR, index=number)
            for number, side in enumerate(("chosen", "rejected"))
        )
        found.append(
            Preference(
                prompt=asked,
                chosen=chosen,
                rejected=rejected,
                strength=float(row["strength"]),
                judgements=(f"{AUTHOR}/chosen/{row['strength']}",),
                reason=row["reason"],
                chosen_unsafe=row["chosen_unsafe"],
                rejected_unsafe=row["rejected_unsafe"],
            )
        )
    return found


@lru_cache(maxsize=1)
def evaluation() -> list[Prompt]:
    return [
        Prompt(
            messages=(turns := _messages(row)),
            group=group_of(turns),
            references=tuple(row["references"]),
            label=row["label"],
            tags=_tags(row),
            source=SOURCE,
            license=row["license"],
        )
        for row in raw_rows("evaluation")
    ]


def load(name: str) -> tuple[str, Sequence[Kept]]:
    """(kind, records) of one of NAMES."""
    if name not in NAMES:
        raise UserError(f"no starter data {name!r}{nearest(name, NAMES)}")
    kind, read = {
        "instructions": ("examples", instructions),
        "preferences": ("preferences", preferences),
        "evaluation": ("prompts", evaluation),
    }[name]
    return kind, read()


RATERS = {"noisy-5": 0.05, "noisy-15": 0.15, "noisy-30": 0.30}


def simulated_judgements(
    pairs: Iterable[Preference], *, raters: dict[str, float] | None = None, seed: int
) -> list[Judgement]:
    """Verdicts of raters that do not exist: each agrees with the pair except for a known share of flips.

    `raters` is name -> probability of a flip; judge ids are `simulated:<name>`.  Which of the two is shown first
    is drawn too.  The draw depends on (seed, rater, pair) only, never on the order of the pairs.
    """
    found = []
    for pair in pairs:
        for name, flip in (RATERS if raters is None else raters).items():
            if not 0 <= flip <= 1:
                raise UserError(f"the flip probability of rater {name!r} must be in [0, 1]; got {flip}")
            draw = random.Random(f"{seed}/{name}/{pair.prompt.id}/{pair.chosen.id}/{pair.rejected.id}")
            better, worse = (pair.rejected, pair.chosen) if draw.random() < flip else (pair.chosen, pair.rejected)
            shown = (better, worse) if draw.random() < 0.5 else (worse, better)
            strength = max(pair.strength, 1.0)
            found.append(
                Judgement(
                    judge=f"simulated:{name}",
                    kind="pair",
                    responses=tuple(each.id for each in shown),
                    values=tuple(strength if each is better else 0.0 for each in shown),
                )
            )
    return found


def counts() -> dict[str, Counter[tuple[str, str]]]:
    """Records by (task, language), for each of NAMES."""
    return {part: Counter((row["task"], row["lang"]) for row in raw_rows(part)) for part in NAMES}
