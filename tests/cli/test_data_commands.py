"""`tutelage data ...` from files to snapshots and back to what a person wants to see."""

import json

import pytest
from calling import call, instructions, write_lines

from tutelage.commands import expand as expand_command
from tutelage.commands.data import parse_clean, parse_shares
from tutelage.core.errors import ConfigError, UserError
from tutelage.core.words import Response
from tutelage.data.snapshot import open_snapshot


@pytest.fixture
def mixed(workspace):
    """Four good records, one twice, two broken ones, one with a telephone number."""
    rows = [
        *instructions(3),
        instructions(1)[0],
        {"instruction": "no answer", "output": ""},
        {"instruction": "Where can I reach you?", "output": "Write to jane.doe@example.com."},
    ]
    path = write_lines(workspace / "mixed.jsonl", rows)
    path.write_text(path.read_text() + '{"instruction": "cut o\n')
    return path


def test_import_counts_what_it_kept_and_why_it_did_not(mixed, workspace):
    done = call("data", "import", mixed, "--json", "--license", "CC0")
    facts = done.json
    assert facts["kind"] == "examples" and sum(facts["counts"].values()) == 4
    assert facts["quarantined"] == {
        "total": 3,
        "by_reason": {"clean:exact_duplicates": 1, "empty field": 1, "not JSON": 1},
    }
    assert facts["clean"]["exact_duplicates"]["dropped"] == 1
    snapshot = open_snapshot(facts["snapshot"], workspace)
    assert {row.license for split in ("train", "val", "test") for row in snapshot.rows(split)} == {"CC0"}


def test_import_shows_the_same_to_a_person(mixed):
    done = call("data", "import", mixed, "--name", "mine")
    assert "Snapshot data/mine@" in done.out and "3 quarantined" in done.out and "1  not JSON" in done.out
    assert "tutelage sft data=mine@" in done.out


def test_redacted_data_can_be_restored_from_a_key_that_lies_apart(mixed, workspace):
    done = call("data", "import", mixed, "--clean", "pii", "--json")
    snapshot = open_snapshot(done.json["snapshot"], workspace)
    assert "jane.doe@example.com" not in "".join(path.read_text() for path in snapshot.path.iterdir())
    (key,) = (workspace / "keys").iterdir()
    assert "jane.doe@example.com" in key.read_text() and key.stat().st_mode & 0o077 == 0
    assert not [path for path in (workspace / "data").iterdir() if path.name.startswith(".")]


def test_fields_can_be_named(workspace):
    write_lines(
        workspace / "odd.jsonl", [{"frage": f"Was ist {at}?", "antwort": {"text": f"Das ist {at}."}} for at in range(3)]
    )
    done = call("data", "import", "odd.jsonl", "--map", "instruction=frage", "output=antwort.text", "--json")
    assert sum(done.json["counts"].values()) == 3, done.err


@pytest.mark.parametrize("text, shares", [("90/5/5", (0.9, 0.05, 0.05)), ("100/0/0", (1.0, 0.0, 0.0))])
def test_shares_are_percent(text, shares):
    assert tuple(parse_shares(text).values()) == shares


@pytest.mark.parametrize("text", ["90/10", "90/5/6", "a/b/c", "-10/60/50", ""])
def test_shares_must_make_a_hundred(text):
    with pytest.raises(UserError, match="three percentages that make 100"):
        parse_shares(text)


def test_cleaning_steps_are_named_and_all_faults_come_at_once():
    config = parse_clean("exact,near=0.9,min_chars=5,max_chars=90,toxicity,pii,tag_language")
    assert (config.unicode, config.exact_duplicates, config.near_duplicates, config.min_chars, config.max_chars) == (
        False,
        True,
        0.9,
        5,
        90,
    )
    assert (config.toxicity, config.pii, config.tag_language) == ("flag", "redact", True)
    assert parse_clean("none") is None
    with pytest.raises(ConfigError) as caught:
        parse_clean("uniccode,near=x,min_chars,languages=ENGLISH")
    assert len(caught.value.faults) == 4 and 'did you mean "unicode"?' in caught.value.faults[0]


def test_a_file_that_is_not_there_leaves_nothing_behind(workspace):
    done = call("data", "import", "nope.jsonl", "--clean", "pii")
    assert done.code == 2 and "nope.jsonl" in done.err
    assert not list((workspace / "data").iterdir())


@pytest.mark.parametrize("from_snapshot", [False, True])
def test_inspect_tells_the_same_of_a_file_and_of_its_snapshot(mixed, from_snapshot):
    if from_snapshot:
        call("data", "import", mixed, "--clean", "none", "--name", "mine")
    facts = call("data", "inspect", "mine" if from_snapshot else mixed, "--json", "--show", "2").json
    assert sum(facts["counts"].values()) == 5 and len(facts["examples"]) == 2
    assert facts["quarantined"]["by_reason"] == {"not JSON": 1, "empty field": 1}
    assert {row["line"] for row in facts["quarantined"]["first"]} == {5, 7}


def test_inspect_shows_text_as_it_is(workspace):
    write_lines(workspace / "a.jsonl", [{"instruction": "[bold]x[/bold] :smile:", "output": "[red]y"}])
    done = call("data", "inspect", "a.jsonl")
    assert "user: [bold]x[/bold] :smile:" in done.out and "assistant: [red]y" in done.out


def test_inspect_names_the_nearest_snapshot(mixed):
    call("data", "import", mixed, "--name", "customers")
    assert 'did you mean "customers' in call("data", "inspect", "custmers").err


def test_tokens_mark_what_is_trained_on(workspace):
    write_lines(workspace / "a.jsonl", [{"instruction": "Name a colour.", "output": "Blue."}])
    done = call("data", "inspect", "a.jsonl", "--tokens")
    assert "Name a colour.<|im_end|>\n<|im_start|>assistant\n[[Blue.<|im_end|>]]" in done.out
    (record,) = call("data", "inspect", "a.jsonl", "--tokens", "--json").json["records"]
    assert [piece["text"] for piece in record["pieces"] if piece["weight"]] == ["Blue.<|im_end|>"]
    assert record["trained"] == len("Blue.") + 1  # bytes, and the end of the turn


def test_split_keeps_every_record_and_conversations_together(trained, tmp_path):
    facts = call(
        "data", "split", "chat", "--split", "50/25/25", "--name", "anew", "--json", "--workspace", trained
    ).json
    before, after = open_snapshot("chat", trained), open_snapshot(facts["snapshot"], trained)
    rows = lambda snapshot: sorted(
        json.dumps(row.to_dict(), sort_keys=True) for split in ("train", "val", "test") for row in snapshot.rows(split)
    )
    assert rows(before) == rows(after)
    assert after.counts != before.counts


def test_annotate_counts_words_and_tags(workspace):
    write_lines(
        workspace / "a.jsonl",
        [
            {"instruction": "Name three rivers.", "output": "Rhine, Nile."},
            {"instruction": "你好吗？", "output": "我很好。"},
        ],
    )
    facts = call("data", "annotate", "a.jsonl", "--out", "words.jsonl", "--json").json
    assert facts["statistics"]["records"] == {"en": 1, "zh": 1, "all": 2} and facts["tags"]["en"]["PUNCT"] == 3
    first = json.loads((workspace / "words.jsonl").read_text().splitlines()[0])
    assert [word for word, _ in first["question"][0]] == ["Name", "three", "rivers", "."]
    with_tokens = call("data", "annotate", "a.jsonl", "--model", "test", "--json").json
    assert with_tokens["statistics"]["tokens"]["all"]["most"] == len(
        "Name three rivers.\nRhine, Nile."
    )  # a byte is a token


class Writer:
    """An engine that writes a numbered list when asked for tasks, and else an answer."""

    policy = "writer"

    def __init__(self, tasks):
        self.tasks = tasks

    def respond(self, requests):
        for prompt, sampling in requests:
            asked = prompt.messages[-1].text
            text = (
                "\n".join(f"{at}. {task}" for at, task in enumerate(self.tasks, start=1))
                if "numbered list" in asked
                else "Here it is."
            )
            yield Response(prompt_id=prompt.id, text=text, policy=self.policy, sampling=sampling)


def test_expand_makes_a_snapshot_of_what_a_model_wrote(trained, monkeypatch):
    tasks = ["Name three rivers of northern Europe.", "Explain to a child why it rains."]
    monkeypatch.setattr(expand_command, "open_engine", lambda *args, **kwargs: Writer(tasks))
    done = call("data", "expand", "chat", "--wanted", "2", "--name", "new", "--json", "--workspace", trained)
    assert done.code == 0, done.err
    snapshot = open_snapshot(done.json["snapshot"], trained)
    rows = [row for split in ("train", "val", "test") for row in snapshot.rows(split)]
    assert sorted(row.messages[0].text for row in rows) == sorted(tasks) and {row.author for row in rows} == {
        "model:writer"
    }
    assert "written by a model" in done.err and not list((trained / "data").glob(".expanding-*"))


def test_expand_says_when_a_model_cannot_write(trained, monkeypatch):
    monkeypatch.setattr(expand_command, "open_engine", lambda *args, **kwargs: Writer([]))
    done = call("data", "expand", "chat", "--wanted", "1", "--workspace", trained)
    assert done.code == 2 and "wrote no usable instruction" in done.err
    assert not list((trained / "data").glob(".expanding-*"))
