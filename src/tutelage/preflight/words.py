"""Checks of the training records, as words: no tokenizer and no model is needed."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from tutelage.core.words import Label, Preference
from tutelage.data import starter
from tutelage.data.contamination import EvaluationSet, Item
from tutelage.preflight.findings import Finding, of
from tutelage.preflight.setup import Setup, answers_of, prompt_of, some

# What opens a turn in transcripts and in the chat templates of well-known families.
TURN = re.compile(r"(?:^|\n)\s*(?:Human|Assistant|User|### ?(?:Instruction|Response|Human|Assistant)):"
                  r"|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]|<\|(?:user|assistant)\|>")
MANY = 4000  # records that are searched for evaluation prompts


def few_prompts(setup: Setup) -> Iterator[Finding]:
    rows, distinct = len(setup.train), len(setup.prompts)
    if rows >= 4 and distinct <= rows / 4 and setup.command in ("rl", "sft"):
        yield Finding(
            code="few-prompts", severity="error" if distinct == 1 else "warning",
            cause=f"the {rows} training rows hold only {distinct} different prompt{'s' * (distinct > 1)}: a column may have "
                  "been read as the wrong field, and whatever is learned will hold for these alone",
            cure="look at them with `tutelage data inspect`, and name the right field with `tutelage data import --map`")


def identical_pairs(setup: Setup) -> Iterator[Finding]:
    same = sum(pair.chosen.text.strip() == pair.rejected.text.strip() for pair in setup.pairs)
    if same:
        yield Finding(
            code="identical-pairs", severity="error" if same >= len(setup.pairs) / 10 else "warning",
            cause=f"chosen and rejected are the same text in {of(same, len(setup.pairs))} pairs: they teach nothing and their "
                  "loss stays at ln 2",
            cure="drop them; if they should differ, the wrong field was read as chosen or rejected",
            reference="RLHF_CORRECTNESS 4.7; Generalizable-Reward-Model #1")


def contradicting_pairs(setup: Setup) -> Iterator[Finding]:
    seen = Counter((pair.prompt.id, pair.chosen.text, pair.rejected.text) for pair in setup.pairs)
    both = sum(count for (prompt, a, b), count in seen.items() if a != b and (prompt, b, a) in seen)
    if both >= max(2, len(setup.pairs) / 10):
        yield Finding(
            code="contradicting-pairs", severity="warning",
            cause=f"{of(both, len(setup.pairs))} pairs stand in both orders: once the one answer is chosen, once the other",
            cure="keep one verdict a pair, or write the share of votes into soft_label")


def label_direction(setup: Setup) -> Iterator[Finding]:
    """Three witnesses of chosen and rejected having been swapped."""
    if setup.command == "cost":  # of a cost model, `chosen` may well be the more harmful one
        return
    pairs = setup.pairs
    doubted = sum(pair.soft_label < 0.5 for pair in pairs)
    unsafe = sum(pair.chosen_unsafe is True and pair.rejected_unsafe is False for pair in pairs)
    safe = sum(pair.chosen_unsafe is False and pair.rejected_unsafe is True for pair in pairs)
    empty = sum(not pair.chosen.text.strip() and bool(pair.rejected.text.strip()) for pair in pairs)
    why = ""
    if doubted > len(pairs) / 2:
        why = f"soft_label is below 0.5 in {of(doubted, len(pairs))} pairs: by it, the rejected answer is the better one"
    elif unsafe >= 4 and unsafe > 4 * safe:
        why = f"the chosen answer is the unsafe one in {unsafe} pairs, and the rejected one in {safe}"
    elif empty > len(pairs) / 4:
        why = f"the chosen answer is empty, and the rejected one is not, in {of(empty, len(pairs))} pairs"
    if why:
        yield Finding(
            code="label-direction", cause=f"{why}; chosen and rejected may have been swapped",
            cure="look at a few pairs with `tutelage data inspect`, and swap the fields with `tutelage data import --map`",
            reference="RLHF_CORRECTNESS 4.7, 4.8; trlx #474")


def one_sided_labels(setup: Setup) -> Iterator[Finding]:
    """Of single answers: what the method learns from them, ratings or good and bad; of a cost model: safe and unsafe."""
    if setup.command == "cost":
        found = [flag for record in setup.train for flag in _flags(record)]
    elif setup.pairs:
        return
    else:
        labels = [record for record in setup.train if isinstance(record, Label)]
        rated = setup.command == "reward"  # KTO does not look at ratings
        found = [label.rating if rated and label.rating is not None else label.desirable for label in labels]
    flags = [flag for flag in found if flag is not None]
    said = set(flags)
    if len(flags) >= 4 and len(said) == 1:
        yield Finding(
            code="one-sided-labels", cause=f"all {len(flags)} judged answers have the same label ({next(iter(said))}): there "
                                           "is nothing to tell apart",
            cure="add answers that were judged the other way", reference="RLHF_CORRECTNESS 4.7 (KTO wants both sides), 4.8")


def _flags(record: Preference | Label) -> tuple[bool | None, ...]:
    return (record.unsafe,) if isinstance(record, Label) else (record.chosen_unsafe, record.rejected_unsafe)


def length_bias(setup: Setup) -> Iterator[Finding]:
    longer = [len(pair.chosen.text) > len(pair.rejected.text) for pair in setup.pairs
              if len(pair.chosen.text) != len(pair.rejected.text)]
    if len(longer) < 30:
        return
    share = sum(longer) / len(longer)
    if 0.1 < share < 0.9:
        return
    which = "longer" if share > 0.5 else "shorter"
    yield Finding(
        code="length-bias", severity="warning",
        cause=f"the chosen answer is the {which} one in {100 * max(share, 1 - share):.0f} % of {len(longer)} pairs: a model "
              "can tell them apart by length alone, and will",
        cure=f"add pairs whose chosen answer is not the {which} one, or report accuracy on pairs of like length",
        reference="C36")


def prompt_in_answer(setup: Setup) -> Iterator[Finding]:
    held = total = 0
    for record in some(setup.train, MANY):
        prompt, answers = prompt_of(record), answers_of(record)
        if prompt is None or not answers:
            continue
        question = prompt.messages[-1].text.strip()
        total += 1
        held += len(question) >= 12 and answers[0].strip().startswith(question) and len(answers[0].strip()) > len(question)
    if total >= 4 and held >= total / 10:
        yield Finding(
            code="prompt-in-answer", severity="error" if held >= total / 2 else "warning",
            cause=f"the answer begins by repeating its prompt in {of(held, total)} records: the model learns to repeat the "
                  "question",
            cure="take the prompt off the answers before importing them", reference="C7")


def turns_in_answer(setup: Setup) -> Iterator[Finding]:
    answers = [text for record in some(setup.train, MANY) for text in answers_of(record)]
    held = sum(bool(TURN.search(text)) for text in answers)
    if held >= max(1, len(answers) / 20):
        example = next(match[0].strip() for text in answers if (match := TURN.search(text)))
        yield Finding(
            code="turns-in-answer", severity="error" if held >= len(answers) / 2 else "warning",
            cause=f"{of(held, len(answers))} answers hold what opens a turn ({example!r}): the model learns to speak for the "
                  "user too",
            cure="split the transcripts into turns: `tutelage data import` does so for the formats that it knows; see --format",
            reference="C4, C7; trl #2059")


@lru_cache(maxsize=1)
def _starter() -> EvaluationSet:
    return EvaluationSet(Item(f"starter:evaluation, item {at}", prompt.messages[-1].text)
                         for at, prompt in enumerate(starter.evaluation(), 1))


def evaluation_in_training(setup: Setup) -> Iterator[Finding]:
    """Against the starter's evaluation prompts and the rows' own test split."""
    own = [prompt for record in setup.rows.get("test", ()) if (prompt := prompt_of(record)) is not None]
    tests = EvaluationSet(Item(f"test prompt {at}", prompt.messages[-1].text) for at, prompt in enumerate(own, 1))
    first, count, looked = "", 0, some([*setup.train, *setup.mixed], MANY)
    for record in looked:
        prompt = prompt_of(record)
        texts = [message.text for message in prompt.messages if message.role == "user"] if prompt else []
        found = next((where for each in (_starter(), tests) if (where := each.overlap(texts))), None)
        if found:
            first, count = first or found, count + 1
    if count:
        yield Finding(
            code="evaluation-in-training", severity="error" if count >= 2 else "warning",
            cause=f"{of(count, len(looked))} training records hold an evaluation prompt, for instance {first}: what is "
                  "measured on it later will say little",
            cure="import the data with --clean contamination=FILE, or split it anew by conversation with `tutelage data split`",
            reference="Brown et al. 2020 (https://arxiv.org/abs/2005.14165), appendix C")
