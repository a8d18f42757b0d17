"""From what people said to what is learned: `fold` makes rows for training out of judgements, and keeps disagreement.

One judgement may feed several data sets:

    pair, rank    -> Preference           the pair for a reward model or DPO
    edit          -> Example, Preference  the corrected answer to imitate, and corrected over original
    good / bad    -> Label(desirable)     KTO; "both bad" makes both answers undesirable
    safe / unsafe -> Label(unsafe)        the cost model; also chosen_unsafe / rejected_unsafe where all said the same
    rating        -> Label(rating)        one data set a question: helpful is not harmless
    written       -> Example, Prompt      demonstrations, and prompts for RL

Disagreement is kept, never voted away.  A pair has soft_label = the weighted share of votes for `chosen`, a tie counting half;
at exactly 1/2 the strength is 0 and "chosen" means nothing (losses that need a hard label leave such pairs out).  An answer about which
people differ becomes one Label a verdict, with the shares as weights.

Weights.  A vote of somebody whose accuracy is known to be a weighs max(0, 2a - 1): 1 for always right, 0 for a coin.
Somebody who is not in `reliability` weighs as the others do on average; without reliabilities all weigh 1.  A row weighs the mean of its
votes, so that an item counts once however many people judged it; its verdicts share that.  The C(k, 2) pairs of a ranking
share the weight of one (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5).

Left out: judgements that were withdrawn, gold and attention items (they measure people), span marks (they belong to tokens:
the span reward model reads them as judgements).  Splitting is the caller's: every row carries the group of its prompt.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

from tutelage.core.errors import UserError
from tutelage.core.words import Example, Judgement, Label, Message, Preference, Prompt, Response
from tutelage.store.collected import Collected, Written, collected, written
from tutelage.store.db import Database
from tutelage.store.feedback import Item, iter_items
from tutelage.store.rubrics import Question, Rubric, load_rubric

MOST_STEPS = 3.0  # strengths are 0..3, as those of Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Rows for training, by what they train."""

    preferences: list[Preference] = field(default_factory=list)  # reward model, DPO
    examples: list[Example] = field(default_factory=list)  # SFT
    labels: list[Label] = field(default_factory=list)  # KTO
    safety: list[Label] = field(default_factory=list)  # cost model
    ratings: dict[str, list[Label]] = field(default_factory=dict)  # question -> rows
    prompts: list[Prompt] = field(default_factory=list)  # everything that was asked or written, each once
    left_out: Counter[str] = field(default_factory=Counter)  # why -> how many judgements


class Vote(NamedTuple):
    """What one person said of two answers of an item."""

    person: str
    margin: float  # above 0: the answer that comes first in the item is better, by so many steps; 0: a tie
    judgement: str  # its id
    share: float = 1.0  # of the weight: 1 / C(k, 2) of a ranking
    reason: str | None = None


def fold_project(db: Database, project: str, *, upto: int | None = None, reliability: Mapping[str, float] | None = None,
                 question: str | None = None, group_of: Callable[[Prompt], str] = lambda prompt: prompt.group) -> Folded:
    """`fold` of a project's judgements as they stood at row `upto` of the log (None: now)."""
    items = {item.id: item for item in iter_items(db, project)}
    rows = list(collected(db, project, upto=upto))
    rubrics = {ref: load_rubric(db, ref) for ref in {row.rubric for row in rows}}
    return fold(items, rows, rubrics, texts=written(db, project, upto=upto), reliability=reliability, question=question,
                group_of=group_of)


def fold(items: Mapping[str, Item], rows: Iterable[Collected], rubrics: Mapping[str, Rubric], *, texts: Iterable[Written] = (),
         reliability: Mapping[str, float] | None = None, question: str | None = None,
         group_of: Callable[[Prompt], str] = lambda prompt: prompt.group) -> Folded:
    """Rows for training from judgements.

    items: by id; what is missing was erased.  rubrics: by "name@version".  texts: what people wrote.
    reliability: person -> accuracy in [0, 1].  question: which comparison to fold; None: the rubric's first.
    group_of: the unit of splitting; turns of one conversation must get the same.
    """
    weigh = _weights(reliability)
    items = {key: _grouped(item, group_of) for key, item in items.items()}
    said, out = _Said(), Folded()
    rows = list(rows)
    withdrawn = {row.follows for row in rows if row.follows}
    for row in rows:
        if why := _left_out(row, items, withdrawn):
            out.left_out[why] += len(row.judgements)
            continue
        rubric = rubrics[row.rubric]
        compare = question or next((q.name for q in rubric.questions if q.kind in ("pair", "rank")), "")
        for each in row.judgements:
            asked = _question(rubric, each)
            if asked is None or asked.kind == "spans":
                out.left_out["nothing to learn from" if asked is None else "spans"] += 1
            elif asked.kind in ("pair", "rank") and asked.name != compare:
                out.left_out["another question"] += 1
            else:
                said.take(asked.kind, asked.name, row.person, items[row.item], each)
    _fill(out, said, items, weigh)
    _add_written(out, texts, group_of)
    seen = {prompt.id: prompt for prompt in [*out.prompts, *(
        i.prompt for i in items.values() if i.prompt and i.gold is None and i.kind != "chat")]}  # a chat's is a task for people
    out.prompts[:] = seen.values()
    return out


def _left_out(row: Collected, items: Mapping[str, Item], withdrawn: set[str]) -> str:
    if row.follows or row.submission in withdrawn:
        return "withdrawn"
    if row.special:
        return "gold and attention"
    return "" if row.item in items else "erased"


def _question(rubric: Rubric, judgement: Judgement) -> Question | None:
    """Which question a judgement answers; None for reasons and flags alone."""
    return rubric.question(judgement.dimensions[0].name) if judgement.dimensions else None


def _grouped(item: Item, group_of: Callable[[Prompt], str]) -> Item:
    return item if item.prompt is None else replace(item, prompt=replace(item.prompt, group=group_of(item.prompt)))


def _weights(reliability: Mapping[str, float] | None) -> Callable[[str], float]:
    if not reliability:
        return lambda person: 1.0
    for person, accuracy in reliability.items():
        if not 0 <= accuracy <= 1:
            raise UserError(f"the reliability of {person} is an accuracy from 0 to 1; got {accuracy}")
    known = {person: max(0.0, 2 * accuracy - 1) for person, accuracy in reliability.items()}
    others = fmean(known.values())
    return lambda person: known.get(person, others)


class _Said:
    """What was said, gathered by what it was said of."""

    def __init__(self):
        self.pairs: dict[tuple[str, int, int], list[Vote]] = defaultdict(list)
        self.edits: list[tuple[str, str, Judgement]] = []  # item, person, edit
        # verdicts: (item, place of the answer) -> (person, verdict, judgement's id)
        self.good: dict[tuple[str, int], list[tuple[str, bool, str]]] = defaultdict(list)
        self.unsafe: dict[tuple[str, int], list[tuple[str, bool, str]]] = defaultdict(list)
        self.rated: dict[str, dict[tuple[str, int], list[tuple[str, float, str]]]] = defaultdict(lambda: defaultdict(list))

    def take(self, kind: str, name: str, person: str, item: Item, said: Judgement) -> None:
        place = {response.id: at for at, response in enumerate(item.responses)}
        at = [place[response] for response in said.responses]  # in the order shown -> in the item's own
        if kind == "pair":
            self._compare(item, at, said.values, person, said, share=1.0)
            if "both-bad" in said.flags:
                for each in at:
                    self.good[item.id, each].append((person, False, said.id))
        elif kind == "rank":
            pairs = len(at) * (len(at) - 1) / 2
            self._compare(item, at, [-rank for rank in said.values], person, said, share=1 / pairs)
        elif kind == "good_bad":
            for each, value in zip(at, said.values, strict=True):
                self.good[item.id, each].append((person, value == 1, said.id))
        elif kind == "safe_unsafe":
            for each, value in zip(at, said.values, strict=True):
                self.unsafe[item.id, each].append((person, value == 1, said.id))
        elif kind == "rating":
            for each, value in zip(at, said.values, strict=True):
                self.rated[name][item.id, each].append((person, value, said.id))
        elif kind == "edit":
            self.edits.append((item.id, person, said))

    def _compare(self, item: Item, at: list[int], better: Iterable[float], person: str, said: Judgement, *, share: float) -> None:
        """Every two of the answers; `better` is higher for the better one."""
        value = dict(zip(at, better, strict=True))
        for i, j in combinations(sorted(at), 2):
            margin = max(-MOST_STEPS, min(MOST_STEPS, value[i] - value[j]))
            self.pairs[item.id, i, j].append(Vote(person, margin, said.id, share, said.reason))


def _fill(out: Folded, said: _Said, items: Mapping[str, Item], weigh: Callable[[str], float]) -> None:
    unsafe = {key: votes[0][1] for key, votes in said.unsafe.items() if len({verdict for _, verdict, _ in votes}) == 1}
    for (name, i, j), votes in said.pairs.items():
        item = items[name]
        assert item.prompt is not None
        out.preferences.append(fold_pair(item.prompt, item.responses[i], item.responses[j], votes, weigh=weigh,
                                         unsafe=(unsafe.get((name, i)), unsafe.get((name, j)))))
    for name, person, edit in said.edits:
        _add_edit(out, items[name], person, edit, weigh(person))
    out.labels.extend(_verdicts(said.good, items, weigh, "desirable"))
    out.safety.extend(_verdicts(said.unsafe, items, weigh, "unsafe"))
    for question, rated in said.rated.items():
        out.ratings[question] = _verdicts(rated, items, weigh, "rating")


def fold_pair(prompt: Prompt, a: Response, b: Response, votes: Iterable[Vote], *, weigh: Callable[[str], float] = lambda person: 1.0,
              unsafe: tuple[bool | None, bool | None] = (None, None)) -> Preference:
    """One preference from all votes on a and b: soft_label = weighted share for the chosen one, strength = weighted mean margin."""
    votes = list(votes)
    weights = [weigh(vote.person) for vote in votes]
    counted = weights if any(weights) else [1.0] * len(votes)  # nobody counts: all alike, and the row weighs nothing
    total = sum(counted)
    # Divided once, by a sum in the same order: where all agree it is exactly 1.
    for_a = sum(w * (1.0 if vote.margin > 0 else 0.5 if vote.margin == 0 else 0.0)
                for w, vote in zip(counted, votes, strict=True)) / total
    margin = sum(w * vote.margin for w, vote in zip(counted, votes, strict=True)) / total
    even = abs(for_a - 0.5) < 1e-12
    flipped = for_a < 0.5 and not even
    sign = -1 if flipped else 1
    reasons = [vote.reason for vote in votes if vote.reason and sign * vote.margin > 0]
    return Preference(
        prompt=prompt, chosen=b if flipped else a, rejected=a if flipped else b,
        soft_label=0.5 if even else 1 - for_a if flipped else for_a,
        # many slight votes against one strong: the side of the votes, a margin that says "hardly"
        strength=0.0 if even else max(0.0, sign * margin),
        weight=fmean(weight * vote.share for weight, vote in zip(weights, votes, strict=True)),
        judgements=tuple(vote.judgement for vote in votes),
        chosen_unsafe=unsafe[flipped], rejected_unsafe=unsafe[not flipped], reason="\n\n".join(reasons) or None)


def _verdicts(said: Mapping[tuple[str, int], list], items: Mapping[str, Item], weigh: Callable[[str], float],
              name: str) -> list[Label]:
    """One Label an answer and verdict, its weight the part of the answer's weight that said so."""
    out = []
    for (key, place), votes in said.items():
        item, by_verdict = items[key], defaultdict(list)
        for person, verdict, judgement in votes:
            by_verdict[verdict].append((weigh(person), judgement))
        for verdict, given in by_verdict.items():
            out.append(Label(prompt=item.prompt, response=item.responses[place], weight=sum(w for w, _ in given) / len(votes),
                             judgements=tuple(judgement for _, judgement in given), **{name: verdict}))
    return out


def _add_edit(out: Folded, item: Item, person: str, edit: Judgement, weight: float) -> None:
    original = next(response for response in item.responses if response.id == edit.responses[0])
    assert item.prompt is not None and edit.edit is not None
    if edit.edit.strip() == original.text.strip():
        out.left_out["edits that change nothing"] += 1
        return
    better = Response(prompt_id=item.prompt.id, text=edit.edit, policy=f"human:{person}")
    out.examples.append(demonstration(item.prompt, edit.edit, person=person))
    out.preferences.append(Preference(prompt=item.prompt, chosen=better, rejected=original, weight=weight, judgements=(edit.id,),
                                      reason=edit.reason))


def demonstration(prompt: Prompt, text: str, *, person: str) -> Example:
    """The prompt with an answer that a person wrote: only that answer is learned."""
    context = tuple(replace(message, weight=0.0) if message.role == "assistant" else message for message in prompt.messages)
    return Example(messages=(*context, Message(role="assistant", text=text)), group=prompt.group, author=f"human:{person}",
                   tools=prompt.tools, tags=prompt.tags, source=prompt.source, license=prompt.license)


def _add_written(out: Folded, texts: Iterable[Written], group_of: Callable[[Prompt], str]) -> None:
    for each in texts:
        if each.prompt is None:
            continue
        prompt = replace(each.prompt, group=group_of(each.prompt))
        out.prompts.append(prompt)
        if each.demonstration:
            out.examples.append(demonstration(prompt, each.demonstration, person=each.person))
