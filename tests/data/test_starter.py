"""The promises of the starter data: enough, varied, bilingual, graded, and nothing of the evaluation in the training files."""

import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from tutelage.core.errors import UserError
from tutelage.data import starter
from tutelage.data.records import votes
from tutelage.data.starter.__main__ import table

TRAINING_TASKS = {
    "translation_en_zh",
    "translation_zh_en",
    "translation_en_fr",
    "summarisation",
    "qa",
    "classification",
    "customer_service",
    "companion",
    "everyday",
    "refusal",
}
EVALUATION_TASKS = TRAINING_TASKS - {"refusal"} | {"safety_harmful", "safety_benign"}
HAN = re.compile(r"[\u4e00-\u9fff]")
ALL = [(part, row) for part in starter.NAMES for row in starter.raw_rows(part)]


def rows(part):
    return starter.raw_rows(part)


def plain(text):
    return " ".join(re.sub(r"[^\w\s]", " ", unicodedata.normalize("NFKC", text).casefold()).split())


def first_question(row):
    return next(turn["content"] for turn in row["messages"] if turn["role"] == "user")


def answers(part, row):
    if part == "instructions":
        return [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
    return [row["chosen"]] if part == "preferences" else row["references"]


def test_there_is_as_much_as_promised():
    assert len(starter.instructions()) >= 400 and len(starter.preferences()) >= 300 and len(starter.evaluation()) >= 250


def test_a_third_of_the_instructions_is_chinese_and_says_so():
    found = rows("instructions")
    assert sum(row["lang"] == "zh" for row in found) / len(found) >= 1 / 3
    for _, row in ALL:
        asked_in_chinese = row["lang"] == "zh"
        assert asked_in_chinese == bool(HAN.search(first_question(row))) or row["task"].startswith("translation"), row[
            "id"
        ]
    assert {row["lang"] for part in starter.NAMES for row in rows(part)} == {"en", "zh"}


def test_every_task_is_there_and_no_other():
    assert (
        {row["task"] for row in rows("instructions")} == TRAINING_TASKS == {row["task"] for row in rows("preferences")}
    )
    assert {row["task"] for row in rows("evaluation")} == EVALUATION_TASKS
    assert all(count >= 8 for part in starter.NAMES for count in Counter(row["task"] for row in rows(part)).values())


def test_ids_are_unique_and_every_record_is_ours_under_apache_2():
    ids = Counter(row["id"] for _, row in ALL)
    assert max(ids.values()) == 1
    assert all(row["license"] == "Apache-2.0" for _, row in ALL)
    assert (
        {row["author"] for row in rows("instructions")}
        == {row["judge"] for row in rows("preferences")}
        == {"author:starter"}
    )
    assert not any("human:" in mark for pair in starter.preferences() for mark in pair.judgements)


def test_no_prompt_is_asked_twice_and_none_of_the_evaluation_is_in_training():
    asked = {
        part: Counter(
            plain(" ".join(turn["content"] for turn in row["messages"] if turn["role"] != "assistant"))
            for row in rows(part)
        )
        for part in starter.NAMES
    }
    for part, counter in asked.items():
        assert max(counter.values()) == 1, (part, counter.most_common(2))
    parts = list(asked.values())
    assert not (
        parts[0].keys() & parts[1].keys() or parts[0].keys() & parts[2].keys() or parts[1].keys() & parts[2].keys()
    )
    groups = [{record.group for record in starter.load(part)[1]} for part in starter.NAMES]
    assert not (groups[0] & groups[2] or groups[1] & groups[2])


def test_no_sentence_stem_of_eight_words_begins_more_than_three_texts():
    def stem(text):
        words = plain(text).split()
        if HAN.search(text):  # Chinese has no spaces: 12 characters are about eight words
            return plain(text).replace(" ", "")[:12]
        return " ".join(words[:8]) if len(words) >= 8 else ""

    for part in starter.NAMES:
        asked, told = Counter(), Counter()
        for row in rows(part):
            asked[stem(first_question(row))] += 1
            told.update(stem(answer) for answer in answers(part, row))
        for counter in (asked, told):
            counter.pop("", None)
            assert counter.most_common(1)[0][1] <= 3, (part, counter.most_common(3))


def test_answers_end_properly_and_have_no_leftovers():
    for part, row in ALL:
        for turn in row["messages"]:
            assert turn["content"] == turn["content"].strip() != "", row["id"]
        for answer in answers(part, row):
            assert answer == answer.strip() != "" and "{{" not in answer and "TODO" not in answer, row["id"]
            if row["task"] not in ("classification", "qa") and part != "evaluation":
                assert (
                    answer[-1] in ".!?)]\"'”’»…。！？）】》」』"
                    or answer[-1].isalnum()
                    and row["task"].startswith("translation")
                ), (row["id"], answer[-20:])


def test_instructions_end_with_an_answer_and_some_have_several_turns_or_a_system_message():
    found = rows("instructions")
    for row in found:
        roles = [turn["role"] for turn in row["messages"] if turn["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2), row["id"]
    assert sum(len(row["messages"]) >= 4 for row in found) >= len(found) / 12
    assert sum(row["messages"][0]["role"] == "system" for row in found) >= 10


def test_pairs_are_graded_with_reasons_and_safety_flags():
    found = starter.preferences()
    grades = Counter(pair.strength for pair in found)
    assert set(grades) == {1.0, 2.0, 3.0} and min(grades.values()) >= 0.15 * len(found)
    assert all(pair.reason and len(pair.reason) >= 8 for pair in found)
    assert len({pair.reason for pair in found}) >= 0.9 * len(found)
    assert not any(pair.chosen_unsafe for pair in found) and all(pair.rejected_unsafe is not None for pair in found)
    assert sum(bool(pair.rejected_unsafe) for pair in found) >= 20
    assert all(pair.chosen.policy == pair.rejected.policy == "author:starter" for pair in found)
    assert [judgement.judge for judgement in votes(found[0])] == ["author:starter"]


def test_length_does_not_give_the_better_answer_away():
    for lang in ("en", "zh"):
        found = [row for row in rows("preferences") if row["lang"] == lang]
        longer = sum(len(row["rejected"]) >= len(row["chosen"]) for row in found)
        assert 0.35 <= longer / len(found) <= 0.65, (lang, longer, len(found))


def test_evaluation_items_can_be_scored():
    for prompt, row in zip(starter.evaluation(), rows("evaluation"), strict=True):
        assert prompt.references or prompt.label is not None, row["id"]
        if row["task"] == "classification":
            allowed = prompt.tag("labels").split("|")
            assert prompt.label in allowed and len(allowed) >= 2, row["id"]
            assert all(label.casefold() in prompt.messages[-1].text.casefold() for label in allowed), row["id"]
        elif row["task"] in ("safety_harmful", "safety_benign"):
            assert prompt.label == {"safety_harmful": "refuse", "safety_benign": "answer"}[row["task"]]
        else:
            assert prompt.label is None and prompt.references, row["id"]
    tasks = Counter(prompt.tag("task") for prompt in starter.evaluation())
    assert tasks["safety_harmful"] >= 20 and tasks["safety_benign"] >= 20


def test_classification_answers_are_one_of_the_labels_in_the_question():
    for row in rows("instructions"):
        if row["task"] == "classification" and len(row["messages"]) == 2:
            assert plain(row["messages"][-1]["content"]) in plain(row["messages"][-2]["content"]), row["id"]


@pytest.mark.parametrize("flip", [0.0, 0.15, 1.0])
def test_simulated_raters_disagree_as_often_as_they_were_told(flip):
    pairs = starter.preferences()
    found = starter.simulated_judgements(pairs, raters={"r": flip}, seed=1)
    assert {judgement.judge for judgement in found} == {"simulated:r"} and len(found) == len(pairs)
    chosen = {pair.chosen.id for pair in pairs}
    wrong = sum(
        judgement.responses[judgement.values.index(max(judgement.values))] not in chosen for judgement in found
    ) / len(found)
    # binomial with n >= 300: the standard error is 0.021 at most; the seed is fixed
    assert wrong == pytest.approx(flip, abs=0 if flip in (0.0, 1.0) else 0.07)


def test_a_simulated_verdict_depends_on_seed_rater_and_pair_only():
    pairs = starter.preferences()[:50]
    forward = starter.simulated_judgements(pairs, raters={"a": 0.3, "b": 0.3}, seed=1)
    backward = starter.simulated_judgements(reversed(pairs), raters={"b": 0.3, "a": 0.3}, seed=1)
    assert {judgement.id for judgement in forward} == {judgement.id for judgement in backward}
    first = [judgement.values for judgement in forward if judgement.judge == "simulated:a"]
    assert first != [judgement.values for judgement in forward if judgement.judge == "simulated:b"]
    assert (
        len({judgement.responses[0] in {pair.chosen.id for pair in pairs} for judgement in forward}) == 2
    )  # shown in both orders
    with pytest.raises(UserError, match="flip probability"):
        starter.simulated_judgements(pairs, raters={"a": 1.5}, seed=1)


def test_the_counts_table_is_printed():
    text = table()
    assert "| **total** |" in text and str(sum(starter.counts()["instructions"].values())) not in ("", "0")
    done = subprocess.run([sys.executable, "-m", "tutelage.data.starter"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == text


def test_the_data_card_holds_the_counts_that_the_command_prints():
    card = (Path(starter.__file__).parent / "DATA_CARD.md").read_text(encoding="utf-8")
    assert table() in card


def test_the_data_package_does_not_load_torch():
    code = (
        "import sys, tutelage.data.importer, tutelage.data.writers, tutelage.data.starter; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
