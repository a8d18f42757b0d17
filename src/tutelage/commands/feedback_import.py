"""Files of judgements and answers as what a project holds: items to ask about, and judgements with their annotators.

Pairs and verdicts come through the readers of data/formats.py; a file with several annotators gives a judgement of each.
Three formats name more than those can hold and are read here: our own `judgements`, and the JSON of Label Studio and Argilla
as feedback_export.py writes them.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.commands import feedback_tools
from tutelage.core.errors import UserError
from tutelage.core.words import Label, Preference, Prompt, Response
from tutelage.data.raw import Broken
from tutelage.data.reading import Quarantined, Reading, source_name, stem
from tutelage.data.records import votes
from tutelage.data.sources import read_rows
from tutelage.store.answers import STRENGTH_OF_4
from tutelage.store.feedback import Item, chance
from tutelage.store.imported import Imported, canonical_item, person_name
from tutelage.store.rubrics import Question, Rubric

LEVEL_OF_4 = {int(strength): level for level, strength in STRENGTH_OF_4.items() if strength >= 1}


class Peek(NamedTuple):
    format: str  # judgements, label-studio, argilla, or nothing: a format of data/formats.py
    rubric: str  # that the file itself names, or nothing


def peek(file: str, format: str | None) -> Peek:
    """What kind of file this is, from its first sound row."""
    if format is not None and format not in feedback_tools.READERS:
        return Peek("", "")
    row = next((row.value for row in read_rows(file) if not isinstance(row, Broken)), None)
    for name, reader in feedback_tools.READERS.items():
        if format == name or (format is None and isinstance(row, dict) and reader.matches(row)):
            return Peek(name, reader.rubric(row) if isinstance(row, dict) else "")
    return Peek("", "")


# -- judgements -----------------------------------------------------------------------------------------------------


def imported(file: str, rubric: Rubric, *, project: str, reading: Reading | None, format: str) -> Iterator[Imported | Quarantined]:
    """Everything that a file says; what cannot be taken comes as Quarantined, with its line and reason."""
    return _from_records(reading, rubric, project) if reading is not None else _from_tool(file, rubric, project, format)


def _from_records(reading: Reading, rubric: Rubric, project: str) -> Iterator[Imported | Quarantined]:
    for record in reading:
        if isinstance(record, Quarantined):
            yield record
            continue
        where = f"{reading.source}, line {reading.line}"
        try:
            yield from _judged(record, rubric, project, judge=f"human:{stem(reading.source)}", where=where)
        except UserError as error:
            yield Quarantined(reading.source, reading.line, str(error), "")
        except (ValueError, OverflowError) as error:  # a mark such as "ann/chosen/inf"
            yield Quarantined(reading.source, reading.line, f"wrong value: {error}", "")


def _judged(record: Any, rubric: Rubric, project: str, *, judge: str, where: str) -> list[Imported]:
    if isinstance(record, Preference):
        return _pair(record, rubric, project, judge=judge, where=where)
    if isinstance(record, Label):
        return [_verdict(record, rubric, project, judge=judge, where=where)]
    raise UserError(f"not judged: it holds {type(record).__name__.lower()}s, which nobody has judged; ask people with "
                    "`tutelage feedback ask`")


def _first(rubric: Rubric, kind: str) -> Question:
    found = next((question for question in rubric.questions if question.kind == kind), None)
    if found is None:
        raise UserError(f"another question: rubric {rubric.ref} has no question of kind {kind}")
    return found


def _pair(record: Preference, rubric: Rubric, project: str, *, judge: str, where: str) -> list[Imported]:
    question = _first(rubric, "pair")
    said = [(each.judge, each.values[0] - each.values[1]) for each in votes(record)]
    if not said and record.soft_label not in (0.5, 1.0):
        raise UserError(f"folded: soft label {record.soft_label:g} stands for several judgements that the file does not name; "
                        "export the judgements instead (--format judgements)")
    said = said or [(judge, 0.0 if record.soft_label == 0.5 else record.strength or 1.0)]  # above 0: `chosen` is better
    a, b = record.chosen, record.rejected
    sides_known = a.index != b.index  # the readers number the answers where the file says which is the first
    item, place = canonical_item(Item(kind="pair", prompt=record.prompt, responses=(a, b)), project=project)
    swap = b.index < a.index if sides_known else chance("sides", item.id) < 0.5  # drawn: or the better one stood left always
    order = (place[1], place[0]) if swap else (place[0], place[1])
    reason = next((q.name for q in rubric.questions if q.kind == "reason"), None)
    out = []
    for name, margin in said:
        level = _level(margin if swap else -margin, question)
        more = {reason: record.reason} if reason and record.reason and len(said) == 1 else {}
        out.append(Imported(item=item, person=_person(name), order=order, values={question.name: level, **more},
                            sides_known=sides_known, where=where))
    return out


def _level(outcome: float, question: Question) -> int:
    """Above 0: right is better, in whole steps of the question's scale."""
    steps = min(3, max(1, round(abs(outcome)))) if outcome else 0
    if question.levels == 4:
        steps = LEVEL_OF_4.get(steps, 0)
    return steps if outcome > 0 else -steps


def _person(judge: str) -> str:
    return person_name(judge.removeprefix("human:"))


def _verdict(record: Label, rubric: Rubric, project: str, *, judge: str, where: str) -> Imported:
    asked = {question.kind: question.name for question in rubric.questions}
    values: dict[str, Any] = {}
    if record.desirable is not None and "good_bad" in asked:
        values[asked["good_bad"]] = [record.desirable]
    if record.unsafe is not None and "safe_unsafe" in asked:
        values[asked["safe_unsafe"]] = [{"unsafe": record.unsafe}]
    if record.rating is not None and "rating" in asked:
        values[asked["rating"]] = [record.rating]
    if not values:
        raise UserError(f"another question: rubric {rubric.ref} asks for nothing that this answer was judged by")
    item, _ = canonical_item(Item(kind="single", prompt=record.prompt, responses=(record.response,)), project=project)
    named = next((mark for mark in record.judgements if mark.startswith("human:")), judge)
    return Imported(item=item, person=_person(named), order=(0,), values=values, where=where)


def _from_tool(file: str, rubric: Rubric, project: str, format: str) -> Iterator[Imported | Quarantined]:
    name, read = source_name(file), feedback_tools.READERS[format].read
    for row in read_rows(file):
        if isinstance(row, Broken):
            yield Quarantined(name, row.line, row.reason, row.raw)
            continue
        try:
            for said in read(row.value, rubric):
                item, place = canonical_item(said.item, project=project)
                yield Imported(item=item, person=person_name(said.person), order=tuple(place[at] for at in said.order),
                               values=said.values, seconds=said.seconds, where=f"{name}, line {row.line}")
        except UserError as error:
            yield Quarantined(name, row.line, str(error), "")
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            yield Quarantined(name, row.line, f"wrong shape: not a {format} record ({error!r})", "")


# -- what to ask ----------------------------------------------------------------------------------------------------


class Asking(NamedTuple):
    items: list[Item]
    skipped: dict[str, int]  # why -> answers or pairs that make no item


def kind_for(rubric: Rubric) -> str:
    """What a rubric's questions are about: two answers, several, one, or none."""
    kinds = {question.kind for question in rubric.questions}
    if "pair" in kinds:
        return "pair"
    return "set" if "rank" in kinds else "demonstration" if "write" in kinds else "single"


def to_ask(files: Sequence[str], *, kind: str, batch: int = 0) -> Asking:
    """Items from answers of `tutelage respond` (several files are put together by prompt), pairs, verdicts or prompts."""
    prompts, answers, skipped = _answers(files)
    items: list[Item] = []
    for prompt in prompts.values():
        if kind == "demonstration":
            items.append(Item(kind=kind, prompt=prompt, batch=batch, language=prompt.tag("lang") or ""))
            continue
        found, groups = _usable(answers.get(prompt.id, []), skipped), []
        if kind == "single":
            groups = [(each,) for each in found]
        elif kind == "set":
            groups = [tuple(found)] if len(found) >= 2 else []
        else:
            groups = _pairs(found)
        if not groups:
            _count(skipped, f"fewer than {1 if kind == 'single' else 2} different answers")
        items += [Item(kind=kind, prompt=prompt, responses=group, batch=batch, language=prompt.tag("lang") or "") for group in groups]
    if not items:
        raise UserError(f"{', '.join(map(str, files))}: nothing to ask a {kind} question about ({_told(skipped)})")
    return Asking(items, skipped)


def _answers(files: Sequence[str]) -> tuple[dict[str, Prompt], dict[str, list[Response]], dict[str, int]]:
    prompts: dict[str, Prompt] = {}
    answers: dict[str, list[Response]] = {}
    skipped: dict[str, int] = {}
    for file in files:
        for prompt, responses in _asked(file, skipped):
            prompts.setdefault(prompt.id, prompt)
            answers.setdefault(prompt.id, []).extend(responses)
    return prompts, answers, skipped


def _asked(file: str, skipped: dict[str, int]) -> Iterator[tuple[Prompt, list[Response]]]:
    head = None if Path(file).is_dir() else next(iter(read_rows(file)), None)
    if head is not None and isinstance(getattr(head, "value", None), dict) and {"prompt_id", "prompt", "text"} <= set(head.value):
        for row in read_rows(file):
            try:
                if isinstance(row, Broken):
                    raise ValueError(row.reason)
                prompt = Prompt.from_dict(row.value["prompt"])
                yield prompt, [Response.from_dict({key: value for key, value in row.value.items() if key != "prompt"})]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{file}, line {row.line}: not an answer as `tutelage respond` writes them ({error})") from error
        return
    for record in Reading([file]):
        if isinstance(record, Quarantined):
            _count(skipped, f"unreadable ({record.reason.partition(':')[0]})")
        elif isinstance(record, Preference):
            yield record.prompt, sorted((record.chosen, record.rejected), key=lambda each: (each.index, each.id))
        elif isinstance(record, Label):
            yield record.prompt, [record.response]
        elif isinstance(record, Prompt):
            yield record, []
        else:
            raise UserError(f"{file} holds conversations; people are asked about answers: give what `tutelage respond` wrote, or pairs")


def _usable(responses: list[Response], skipped: dict[str, int]) -> list[Response]:
    """Answers with text, each text of a policy once."""
    out: dict[tuple[str, str], Response] = {}
    for each in responses:
        if each.finish == "error" or not each.text.strip():
            _count(skipped, "empty answers")
        elif (each.policy, each.text) in out:
            _count(skipped, "the same answer again")
        else:
            out[each.policy, each.text] = each
    return list(out.values())


def _pairs(found: list[Response]) -> list[tuple[Response, Response]]:
    """Answers of two models: the first of one with the first of the other, and so on; of one model: every two."""
    policies = list(dict.fromkeys(each.policy for each in found))
    if len(policies) < 2:
        both = combinations(found, 2)
    else:
        by_policy = {policy: [each for each in found if each.policy == policy] for policy in policies}
        both = (pair for a, b in combinations(policies, 2) for pair in zip(by_policy[a], by_policy[b], strict=False))
    return [(a, b) for a, b in both if a.text.strip() != b.text.strip()]


def _count(skipped: dict[str, int], why: str) -> None:
    skipped[why] = skipped.get(why, 0) + 1


def _told(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in skipped.items()) or "the files hold no answers"
