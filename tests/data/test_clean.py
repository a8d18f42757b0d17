"""Each cleaning step alone, by record type, and all of them in a row."""

import gzip
import json
import re
import socket
import stat
import subprocess
import sys
import unicodedata

import pytest

from tutelage.core.errors import ConfigError, UserError
from tutelage.core.words import Example, Label, Message, Preference, Prompt, Response
from tutelage.data.clean import EXACT_FILE, KEY_FILE, NEAR_FILE, CleanConfig, Cleaner, Dropped, normalise
from tutelage.data.contamination import EvaluationSet, Item, read_items
from tutelage.data.language import detect_language, toxic_words
from tutelage.data.pii import read_key, restore
from tutelage.data.reword import content_digest, parts, reword

OFF = {"unicode": False, "exact_duplicates": False}


def example(question="How are you?", answer="Very well, thank you.", **fields) -> Example:
    return Example(messages=(Message(role="user", text=question), Message(role="assistant", text=answer)), **fields)


def prompt(text="How are you?", **fields) -> Prompt:
    return Prompt(messages=(Message(role="user", text=text),), **fields)


def preference(question="How are you?", chosen="Very well, thank you.", rejected="Go away.", **fields) -> Preference:
    asked = prompt(question)
    return Preference(
        prompt=asked,
        chosen=Response(prompt_id=asked.id, text=chosen),
        rejected=Response(prompt_id=asked.id, text=rejected),
        **fields,
    )


def label(question="How are you?", answer="Very well, thank you.", **fields) -> Label:
    asked = prompt(question)
    return Label(prompt=asked, response=Response(prompt_id=asked.id, text=answer), **fields)


@pytest.fixture
def clean(tmp_path):
    """clean(records, **config) -> (results, report); each call has a fresh index."""
    calls = []

    def run(*records, evaluation=(), **config):
        calls.append(None)
        folder = tmp_path / str(len(calls))
        with Cleaner(CleanConfig(**{**OFF, **config}), index_folder=folder, evaluation=evaluation) as cleaner:
            return [cleaner.apply(record) for record in records], cleaner.report()

    return run


# unicode


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cafe\u0301", "café"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\x00b\x07c\x1b[0m\td\n", "abc[0m\td\n"),  # tab and line end stay
        ("\ufeff你\u200b好\u2060", "你好"),
        ("pay\u202egnp.exe", "paygnp.exe"),  # a direction override hides what a name really ends with
        ("hi\U000e0068\U000e0069", "hi"),  # invisible tag letters
        ("a\u200db", "ab"),
        ("👩\u200d💻 می\u200cخواهم क्\u200dष", "👩\u200d💻 می\u200cخواهم क्\u200dष"),  # joiners that mean something
        ("全角ＡＢＣ ﬁ ①", "全角ＡＢＣ ﬁ ①"),  # NFC, not NFKC: these are different characters
    ],
)
def test_normalise(before, after):
    assert normalise(before) == after
    assert normalise(after) == after


def test_normalised_text_is_nfc_whatever_was_removed_in_between():
    text = normalise("e\u200b\u0301")
    assert text == "é" and unicodedata.is_normalized("NFC", text)


@pytest.mark.parametrize("make", [example, preference, label])
def test_unicode_reaches_every_text_and_ids_go_on_pointing_at_each_other(clean, make):
    (record,), report = clean(make("cafe\u0301\x00?", "na\u200bive"), unicode=True)
    assert record == make("café?", "naive")  # ids and groups are those of a record that was clean from the start
    assert report["unicode"] == {"seen": 1, "changed": 1, "dropped": 0, "flagged": 0}


def test_reworded_answers_forget_token_ids_and_given_groups_stay():
    asked = prompt("cafe\u0301", group="family-7")
    record = Label(
        prompt=asked, response=Response(prompt_id=asked.id, text="e\u0301", token_ids=(1, 2), logps=(-1.0, -2.0))
    )
    after = reword(record, normalise)
    assert after.response.token_ids is None and after.response.logps is None
    assert after.prompt.group == "family-7" and after.prompt.id == prompt("café").id == after.response.prompt_id
    assert reword(example("cafe\u0301", group="g1"), normalise).group == "g1"


def test_a_clean_record_comes_back_as_the_same_object(clean):
    for record in (example(), preference(), label(), prompt(), example("你好吗？", "很好。")):
        (after,), report = clean(record, unicode=True, pii="redact")
        assert after is record
        assert report["unicode"]["changed"] == report["pii"]["changed"] == 0


# empty


def test_a_record_changed_to_nothing_is_dropped_with_a_reason(clean):
    (gone, blank), report = clean(example(answer="\u200b\x00"), preference(rejected="\ufeff "), unicode=True)
    assert gone.step == "unicode" and "nothing is left" in gone.reason
    assert blank == Dropped("empty", "empty answer (rejected)")
    assert report["unicode"]["dropped"] == 1 and report["empty"]["dropped"] == 1


def test_empty_texts_are_named(clean):
    later = Example(
        messages=(
            Message(role="user", text="a"),
            Message(role="assistant", text=" "),
            Message(role="user", text="b"),
            Message(role="assistant", text="c"),
        )
    )
    results, _ = clean(later, label(answer="\n"), preference(chosen=""), prompt("  "), example(" "))
    assert [result.reason for result in results] == [
        "empty answer (message 2)",
        "empty answer (response)",
        "empty answer (chosen)",
        "empty question",
        "empty question",
    ]


def test_a_turn_that_only_calls_a_tool_or_is_not_trained_on_may_be_empty(clean):
    call = Message(role="assistant", text="", tool_calls=({"name": "clock", "arguments": {}},))
    untrained = Message(role="assistant", text="", weight=0.0)
    record = Example(messages=(Message(role="user", text="time?"), untrained, call))
    assert clean(record)[0] == [record]


# length


def test_lengths_at_their_limits(clean):
    records = [example("12345", answer) for answer in ("1234", "12345", "1234567890", "12345678901")]
    results, report = clean(*records, min_chars=5, max_chars=15)
    assert [isinstance(result, Dropped) for result in results] == [True, False, False, True]
    assert results[0].reason == "too short: 4 characters, fewer than 5"
    assert results[3].reason == "too long: 16 characters, more than 15"
    assert report["length"] == {"seen": 4, "changed": 0, "dropped": 2, "flagged": 0}
    assert clean(preference(rejected="no"), min_chars=3)[0][0].step == "length"  # the shorter of the two answers
    assert clean(prompt("为什么？"), min_chars=4)[0] == [prompt("为什么？")]


# language


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("What is the capital of France?", "en"),
        ("Write a poem about autumn leaves.", "en"),
        ("Create an AI chatbot", "en"),
        ("法国的首都是哪里？", "zh"),
        ("友谊", "zh"),
        ("西蒙在跑步。", "zh"),
        ("請把這句話翻譯成英文", "zh"),
        ("请解释 machine learning 这个词的意思，并举例说明", "zh"),
        ("请用中文介绍一下 machine learning", "zh"),
        ("日本国憲法の前文を要約", "ja"),
        ("日の丸餐厅的招牌菜是什么？", "zh"),
        ("Quelle est la capitale de la France ?", "fr"),
        ("¿Cuál es la capital de Francia?", "es"),
        ("Was ist die Hauptstadt von Frankreich?", "de"),
        ("フランスの首都はどこですか。", "ja"),
        ("프랑스의 수도는 어디입니까?", "ko"),
        ("", "und"),
        ("2 + 2 = ?", "und"),
        ("😀 !!!", "und"),
        ("https://example.org/a/b", "und"),
    ],
)
def test_detect_language(text, lang):
    assert detect_language(text) == lang
    assert detect_language("\n" + text + "\n") == lang


def test_language_filter_tags_and_drops(clean):
    french = example("Quelle est la capitale de la France ?", "C'est Paris, bien entendu.")
    results, report = clean(
        example(), example("你今天怎么样？", "我很好。"), french, example("2 + 2 = ?", "4"), languages=("en", "zh")
    )
    assert [getattr(r, "tags", None) for r in results] == [
        ("lang:en",),
        ("lang:zh",),
        None,
        (),
    ]  # no words: kept, not tagged
    assert results[2] == Dropped("language", "language fr, not en or zh")
    assert report["language"] == {"seen": 4, "changed": 0, "dropped": 1, "flagged": 2}


def test_a_language_tag_of_the_source_is_believed_and_preferences_are_tagged_on_their_prompt(clean):
    (kept, tagged), _ = clean(example("Bonjour !", "Salut !", tags=("lang:zh",)), preference(), languages=("zh", "en"))
    assert kept.tags == ("lang:zh",)
    assert tagged.prompt.tags == ("lang:en",) and tagged.prompt.id == preference().prompt.id


@pytest.mark.shared
def test_languages_of_public_records(shared_data):
    for name, lang in (("alpaca_en", "en"), ("alpaca_zh", "zh")):
        with gzip.open(shared_data / "sft" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [f"{row['instruction']}\n{row['input']}" for row in map(json.loads, file)]
        assert sum(detect_language(text) == lang for text in texts) / len(texts) >= 0.98


# toxicity


def test_toxic_words_in_english_and_chinese():
    assert "fucking" in toxic_words("you fucking liar") and "fuck" in toxic_words("f u c k")
    assert "傻逼" in toxic_words("你是个傻逼") and "妈的" in toxic_words("妈妈的生日他妈的忘了")
    for innocent in (
        "I am going to kill a process as a matter of fact",
        "Scunthorpe is a town with a class assignment",
        "妈妈的生日是今天",
        "成人教育需要激情",
        "日本的操作系统",
        "",
    ):
        assert toxic_words(innocent) == ()


def test_toxicity_judges_what_would_be_learnt(clean):
    rude = example(answer="Fuck off.")
    asked_rudely = example("What the fuck is DNA?", "DNA carries genes.")
    good = preference(rejected="fuck off")
    bad_label = label(answer="fuck off", desirable=False)
    results, report = clean(rude, asked_rudely, good, bad_label, label(answer="你是个傻逼"), toxicity="flag")
    assert results[0].tags == ("toxic",) and results[4].prompt.tags == ("toxic",)
    assert results[1:4] == [asked_rudely, good, bad_label]
    assert report["toxicity"] == {"seen": 5, "changed": 0, "dropped": 0, "flagged": 2}
    results, report = clean(rude, prompt("what the fuck"), example(), toxicity="drop")
    assert results[0] == results[1] == Dropped("toxicity", "toxic: 1 word(s) of the profanity list")
    assert report["toxicity"]["dropped"] == 2


# contamination

HELD_OUT = "A farmer has seventeen sheep and all but nine of them run away one night how many are left"


def test_thirteen_words_in_a_row_contaminate_and_twelve_do_not(clean):
    words = HELD_OUT.split()
    thirteen = example("Riddle: " + ", ".join(words[2:15]).upper() + "?")
    twelve = example("Riddle: " + " ".join(words[2:14]) + " and so on?")
    in_answer = example(answer="Well: " + HELD_OUT)
    (dropped, kept, also), report = clean(thirteen, twelve, in_answer, evaluation=["something else", HELD_OUT])
    assert dropped.step == also.step == "contamination" and kept == twelve
    assert "evaluation item 2 (A farmer has seventeen sheep" in dropped.reason
    assert f'the same 13 units in a row, "{" ".join(words[2:15])}"' in dropped.reason
    assert report["contamination"]["dropped"] == 2


def test_twenty_chinese_characters_in_a_row_contaminate_and_nineteen_do_not(clean):
    item = "小明有十七只羊除了九只以外全都在一天夜里跑掉了请问他现在还剩下几只羊呢"
    (dropped, kept), _ = clean(
        example("问：" + item[3:13] + "，" + item[13:23] + "？"), example("问：" + item[3:22] + "吗"), evaluation=[item]
    )
    assert item[3:23] in dropped.reason and isinstance(kept, Example)


def test_a_short_item_contaminates_only_as_a_whole_turn(clean):
    (whole, inside), _ = clean(
        example("what is DNA"), example("Tell me: what is DNA, in a word?"), evaluation=["What is DNA?"]
    )
    assert whole == Dropped("contamination", "contaminated by evaluation item 1 (What is DNA?) word for word")
    assert isinstance(inside, Example)


def test_the_common_frame_of_evaluation_items_does_not_contaminate():
    frame = (
        "Classify the following message of a customer as exactly one of complaint praise question or order and stop: "
    )
    held_out = EvaluationSet(
        Item(name, frame + text)
        for name, text in {"a": "My parcel is late.", "b": "Lovely work!", "c": "Where is my order?"}.items()
    )
    assert held_out.overlap([frame + "The soup was cold."]) is None
    assert "b (Classify" in held_out.overlap([frame + "lovely work"])


def test_evaluation_items_from_files(tmp_path, clean):
    path = tmp_path / "eval.jsonl"
    rows = [
        {"id": "eval-1", "messages": [{"role": "user", "content": HELD_OUT}]},
        {"question": "Why?"},
        "word for word",
        {"instruction": "Translate.", "input": "Hallo"},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert [item.text for item in read_items(path)] == [HELD_OUT, "Why?", "word for word", "Translate.", "Hallo"]
    (dropped,), _ = clean(example(HELD_OUT), contamination=str(path))
    assert "eval.jsonl, line 1 (eval-1)" in dropped.reason
    (tmp_path / "eval.txt").write_text("one\n\ntwo\n")
    assert [item.name for item in read_items(tmp_path / "eval.txt")] == ["eval.txt, line 1", "eval.txt, line 3"]
    for bad, message in (('{"id": 3}', "line 1: no evaluation prompt"), ("{", "line 1: not JSON")):
        path.write_text(bad)
        with pytest.raises(UserError, match=message):
            list(read_items(path))
    with pytest.raises(UserError, match="cannot read the evaluation items"):
        clean(contamination=str(tmp_path / "missing.jsonl"))


# personal data


def test_redaction_is_kept_apart_and_reverses_the_record(tmp_path):
    before = Example(
        messages=(
            Message(role="user", text="我的邮箱是zhang@example.com，电话13800138000"),
            Message(
                role="assistant",
                text="",
                tool_calls=({"name": "save", "arguments": '{"phone": 13800138000, "to": "zhang@example.com"}'},),
            ),
            Message(role="assistant", text="已经发到zhang@example.com。"),
        )
    )
    with Cleaner(CleanConfig(pii="redact"), index_folder=tmp_path) as cleaner:
        after = cleaner.apply(before)
        report = cleaner.report()
    assert [m.text for m in after.messages] == ["我的邮箱是[EMAIL_1]，电话[PHONE_1]", "", "已经发到[EMAIL_1]。"]
    assert json.loads(after.messages[1].tool_calls[0]["arguments"]) == {"phone": "[PHONE_1]", "to": "[EMAIL_1]"}
    assert report["pii"] == {"seen": 1, "changed": 1, "dropped": 0, "flagged": 0}
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    key = read_key(tmp_path / KEY_FILE, content_digest(after))
    assert [restore(m.text, key) for m in after.messages] == [m.text for m in before.messages]
    for name in (EXACT_FILE, EXACT_FILE + "-wal"):  # the index holds digests only
        if (tmp_path / name).exists():
            assert b"zhang@" not in (tmp_path / name).read_bytes()


def test_records_that_differ_only_in_personal_data_count_as_one_and_leave_one_key(tmp_path):
    with Cleaner(CleanConfig(pii="redact"), index_folder=tmp_path) as cleaner:
        first, second = (cleaner.apply(example(f"Mail {name}@example.org, please")) for name in ("ann", "bob"))
    assert isinstance(first, Example) and second == Dropped("exact_duplicates", "the same as record 1")
    assert [row.original for row in read_key(tmp_path / KEY_FILE, content_digest(first))] == ["ann@example.org"]


def test_reasons_and_references_are_redacted_too(clean):
    (pair, asked), _ = clean(
        preference(reason="leaks 13800138000"), prompt(references=("call 13800138000",)), pii="redact"
    )
    assert pair.reason == "leaks [PHONE_1]" and asked.references == ("call [PHONE_1]",)


# duplicates


def test_exact_duplicates_name_the_first(tmp_path):
    with Cleaner(CleanConfig(), index_folder=tmp_path) as cleaner:
        results = [
            cleaner.apply(example(), name="a.jsonl, line 7"),
            cleaner.apply(example("Why?")),
            cleaner.apply(example(source="elsewhere", license="MIT", tags=("x",), group="g")),
        ]
        assert results[2] == Dropped("exact_duplicates", "the same as a.jsonl, line 7")
        assert cleaner.report()["exact_duplicates"] == {"seen": 3, "changed": 0, "dropped": 1, "flagged": 0}
    with Cleaner(CleanConfig(), index_folder=tmp_path) as cleaner:  # a second file, cleaned against the first
        assert isinstance(cleaner.apply(example()), Dropped)


def test_opposite_and_independent_verdicts_are_no_duplicates(clean):
    pair, reverse = (
        preference(chosen="Yes, gladly.", rejected="No, never."),
        preference(chosen="No, never.", rejected="Yes, gladly."),
    )
    other_rater = preference(chosen="Yes, gladly.", rejected="No, never.", judgements=("ann-2",))
    for near in (False, True):
        records = (pair, reverse, other_rater, label(desirable=True), label(desirable=False))
        results, _ = clean(*records, exact_duplicates=True, near_duplicates=near)
        assert results == list(records)
        results, _ = clean(
            pair, preference(chosen="Yes, gladly.", rejected="No, never."), exact_duplicates=True, near_duplicates=near
        )
        assert isinstance(results[1], Dropped)


def test_long_opposite_pairs_and_different_certainties_are_no_near_duplicates(clean):
    yes = (
        "Yes, gladly: I will water the plants, feed the cat and bring in the letters every morning until you are back."
    )
    no = "No, never: my back hurts, the cat hates me, and besides I shall be in the mountains for the whole of August."
    records = (
        preference(chosen=yes, rejected=no),
        preference(chosen=no, rejected=yes),
        preference(chosen=yes, rejected=no, soft_label=0.6),
        preference(chosen=yes, rejected=no, strength=3.0),
    )
    results, _ = clean(*records, preference(chosen=yes.upper(), rejected=no), near_duplicates=True)
    assert results[:4] == list(records)
    assert results[4] == Dropped("near_duplicates", "nearly the same as record 1")


LONG = "Please explain to a curious child of eight years why the sky is blue during the day and red in the evening"


def test_near_duplicates(clean):
    answer = (
        "Blue light is scattered more than red light by the air, so blue reaches our eyes from everywhere in the sky."
    )
    results, report = clean(
        example(LONG, answer),
        example(LONG + "!", answer + "\n"),
        example(LONG, "I would rather talk about the sea."),
        example("请告诉我一个八岁的孩子为什么白天的天空是蓝色的而傍晚的天空是红色的", "因为空气散射蓝光。"),
        example("请告诉我一个八岁的孩子，为什么白天的天空是蓝色的，而傍晚的天空是红色的？", "因为空气散射蓝光！"),
        near_duplicates=0.8,
    )
    assert [isinstance(result, Dropped) for result in results] == [False, True, False, False, True]
    assert results[1].reason == "nearly the same as record 1" and results[4].reason == "nearly the same as record 4"
    assert report["near_duplicates"]["dropped"] == 2


def test_nothing_is_dropped_as_a_duplicate_of_what_was_dropped(clean):
    contaminated, similar = (
        example(HELD_OUT, LONG),
        example(HELD_OUT.replace("seventeen sheep and", "17 sheep,")[:60], LONG),
    )
    results, _ = clean(contaminated, similar, near_duplicates=0.3, evaluation=[HELD_OUT])
    assert results[0].step == "contamination" and results[1] == similar


# the whole


def test_steps_run_only_when_switched_on_and_in_order(tmp_path):
    full = CleanConfig(min_chars=1, tag_language=True, toxicity="flag", pii="redact", near_duplicates=True)
    with Cleaner(full, index_folder=tmp_path / "a", evaluation=["x"]) as cleaner:
        assert cleaner.steps == (
            "unicode",
            "empty",
            "length",
            "language",
            "toxicity",
            "contamination",
            "pii",
            "exact_duplicates",
            "near_duplicates",
        )
        assert set(cleaner.report()) == set(cleaner.steps)
    with Cleaner(CleanConfig(), index_folder=tmp_path / "b") as cleaner:
        assert cleaner.steps == ("unicode", "empty", "exact_duplicates")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [EXACT_FILE]
    with Cleaner(CleanConfig(**OFF), index_folder=tmp_path / "c") as cleaner:
        assert cleaner.steps == ("empty",)
    assert NEAR_FILE in {path.name for path in (tmp_path / "a").iterdir()}


def test_counts_add_up_from_step_to_step(clean):
    records = [example(), example(), example("cafe\u0301"), example(answer="x"), example("ok", "fine, thanks\r\n")]
    results, report = clean(*records, unicode=True, exact_duplicates=True, min_chars=3, tag_language=True)
    seen = [counts["seen"] for counts in report.values()]
    dropped = [counts["dropped"] for counts in report.values()]
    assert seen[0] == len(records)
    assert seen[1:] == [s - d for s, d in zip(seen, dropped, strict=True)][:-1]
    assert sum(not isinstance(result, Dropped) for result in results) == seen[-1] - dropped[-1] == 3


def test_all_faults_of_a_config_come_together():
    with pytest.raises(ConfigError) as caught:
        CleanConfig(toxicity="flagg", pii="on", min_chars=9, max_chars=3, near_duplicates=1.5, languages=("English",))
    assert len(caught.value.faults) == 5
    for words in (
        'did you mean "flag"',
        "pii must be one of off, redact",
        "nothing would be kept",
        "got 1.5",
        "'English'",
    ):
        assert words in str(caught.value)


def test_a_foreign_object_is_refused(tmp_path):
    with (
        Cleaner(CleanConfig(), index_folder=tmp_path) as cleaner,
        pytest.raises(UserError, match="cannot clean a dict"),
    ):
        cleaner.apply({"prompt": "x"})


def test_parts_of_each_record():
    assert parts(example("q", "a")) == (("q",), ("a",))
    assert parts(preference("q", "c", "r")) == (("q",), ("c", "r"))
    assert parts(label("q", "a")) == (("q",), ("a",)) and parts(prompt("q")) == (("q",), ())


def test_cleaning_opens_no_connection_and_loads_no_torch(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("cleaning opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    full = CleanConfig(languages=("en",), toxicity="flag", pii="redact", near_duplicates=True)
    with Cleaner(full, index_folder=tmp_path, evaluation=["x"]) as cleaner:
        assert cleaner.apply(example()).tags == ("lang:en",)
    code = (
        "import sys, tutelage.data.clean, tutelage.data.annotate, tutelage.data.expand; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_step_is_on_the_page(request):
    page = (request.config.rootpath / "docs" / "cleaning.md").read_text(encoding="utf-8")
    for name in (
        "unicode",
        "empty",
        "length",
        "language",
        "toxicity",
        "contamination",
        "pii",
        "exact_duplicates",
        "near_duplicates",
        *CleanConfig.__dataclass_fields__,
    ):
        assert re.search(rf"`{name}`", page), f"docs/cleaning.md does not mention `{name}`"
