import json
import subprocess
import sys
import textwrap

import pytest

from tutelage.core.errors import DamagedError, UserError
from tutelage.core.words import Example
from tutelage.data.clean import CleanConfig, Cleaner
from tutelage.data.importer import import_data, summary

GOOD = [{"instruction": f"Name {n} things that are blue.", "input": "", "output": f"Answer {n}."} for n in range(60)]


def jsonl(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows),
        encoding="utf-8",
    )
    return path


def texts(snapshot):
    return [row.messages[-1].text for split in ("train", "val", "test") for row in snapshot.rows(split)]


def test_good_records_are_kept_and_broken_ones_are_quarantined_with_line_and_reason(tmp_path):
    source = tmp_path / "mixed.jsonl"
    bad = [
        ('{"instruction": "a", ', "not JSON"),
        ('{"instruction": "a", "output": ""}', "empty field"),
        ('{"instruction": "a"}', "missing field"),
        ('{"instruction": "a", "output": 5}', "wrong type"),
        ('{"instruction": ["a"], "output": "b"}', "wrong type"),
        ("[1, 2]", None),
        ('"text"', None),
        ('{"messages": [{"role": "wizard", "content": "x"}]}', "unknown role"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "another kind"),
    ]
    jsonl(source, [*GOOD[:10], *(line for line, _ in bad), *GOOD[10:20]])
    with open(source, "ab") as file:
        file.write(b'{"instruction": "caf\xe9", "output": "b"}\n')
    snapshot = import_data(source, workspace=tmp_path / "w")
    assert sorted(texts(snapshot)) == sorted(row["output"] for row in GOOD[:20])
    quarantine = list(snapshot.quarantine())
    assert [row["line"] for row in quarantine] == [*range(11, 20), 30]
    assert all(row["file"] == "mixed.jsonl" and row["raw"] for row in quarantine)
    for row, (_, reason) in zip(quarantine, bad, strict=False):
        assert reason is None or row["reason"].startswith(reason), row
    assert quarantine[-1]["reason"].startswith("not UTF-8")
    facts = snapshot.manifest["quarantined"]
    assert facts["total"] == 10 == sum(facts["by_reason"].values())
    assert any("1 quarantined: not UTF-8" in line for line in summary(snapshot))


def test_quarantined_raw_is_cut_at_2_kilobytes(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [GOOD[0], {"instruction": "长" * 5000, "output": ""}])
    (row,) = import_data(source, workspace=tmp_path).quarantine()
    assert 1000 < len(row["raw"].encode()) <= 2048


def test_importing_the_same_again_gives_the_same_snapshot_and_leaves_nothing_else(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", GOOD)
    first = import_data(source, workspace=tmp_path / "w")
    again = import_data(source, workspace=tmp_path / "w")
    elsewhere = import_data(source, workspace=tmp_path / "v")
    assert first.path == again.path and first.manifest == again.manifest
    assert first.digest == elsewhere.digest and first.name == elsewhere.name == f"a@{first.digest[:8]}"
    assert [path.name for path in (tmp_path / "w" / "data").iterdir()] == [first.name]
    assert import_data(source, workspace=tmp_path / "w", seed=1).digest != first.digest


def test_the_manifest_tells_where_everything_came_from(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [*GOOD, "broken"])
    manifest = import_data(
        source, workspace=tmp_path, license="CC0-1.0", seed=3, splits={"train": 0.5, "val": 0.5}
    ).manifest
    assert manifest["kind"] == "examples" and sum(manifest["counts"].values()) == 60 and manifest["counts"]["test"] == 0
    (fact,) = manifest["sources"]
    assert (fact["name"], fact["format"], fact["rows"], fact["kept"], fact["quarantined"]) == (
        "a.jsonl",
        "alpaca",
        61,
        60,
        1,
    )
    assert len(fact["sha256"]) == 64 and manifest["license"] == "CC0-1.0" and manifest["seed"] == 3
    assert manifest["steps"] == ["read", "convert", "split"]
    assert set(manifest["files"]) == {"train.jsonl", "val.jsonl", "test.jsonl", "quarantine.jsonl"}


def test_a_file_broken_as_a_whole_is_refused_and_nothing_is_left_behind(tmp_path):
    array = tmp_path / "bad.json"
    array.write_text("[\n" + ",\n".join(map(json.dumps, GOOD)) + ',\n{"instruction": oops}\n]' + " " * 200)
    with pytest.raises(UserError, match=r"bad\.json, line 62"):
        import_data(array, workspace=tmp_path / "w")
    nothing = jsonl(tmp_path / "none.jsonl", [{"instruction": "a", "output": ""}] * 3)
    with pytest.raises(UserError, match="none of its 3 record.*line 1: empty field"):
        import_data(nothing, workspace=tmp_path / "w")
    strange = jsonl(tmp_path / "strange.jsonl", [{"foo": 1, "bar": "x"}])
    with pytest.raises(UserError, match="bar, foo.*field_map"):
        import_data(strange, workspace=tmp_path / "w")
    binary = jsonl(tmp_path / "all.jsonl", ["x", "y"])
    with pytest.raises(UserError, match="line 1: not JSON"):
        import_data(binary, workspace=tmp_path / "w")
    assert list((tmp_path / "w" / "data").iterdir()) == []


def test_a_field_map_reads_an_odd_file(tmp_path):
    source = jsonl(
        tmp_path / "odd.jsonl", [{"q": {"text": f"why {n}?"}, "a": [{"body": f"because {n}"}]} for n in range(5)]
    )
    snapshot = import_data(source, workspace=tmp_path, field_map={"instruction": "q.text", "output": "a.0.body"})
    assert sorted(texts(snapshot)) == [f"because {n}" for n in range(5)]


def test_the_named_format_overrides_what_the_content_looks_like(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"sentence {n}", "label": "x"} for n in range(3)])
    assert import_data(source, workspace=tmp_path).kind == "labels"
    assert import_data(source, workspace=tmp_path, format="text").kind == "examples"
    with pytest.raises(UserError, match='did you mean "alpaca"'):
        import_data(source, workspace=tmp_path, format="alpacca")


def test_pairs_can_be_imported_as_examples_of_the_chosen_answers(tmp_path):
    rows = [{"prompt": f"q {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(5)]
    snapshot = import_data(jsonl(tmp_path / "p.jsonl", rows), workspace=tmp_path, as_kind="examples")
    assert snapshot.kind == "examples" and sorted(texts(snapshot)) == [f"good {n}" for n in range(5)]


def test_several_files_make_one_snapshot_unless_their_kinds_differ(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    jsonl(folder / "a.jsonl", GOOD[:30])
    jsonl(
        folder / "b.jsonl",
        [
            {"messages": [{"role": "user", "content": f"hey {n}"}, {"role": "assistant", "content": "ho"}]}
            for n in range(4)
        ],
    )
    assert sum(import_data(folder, workspace=tmp_path, name="both").counts.values()) == 34
    pairs = jsonl(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(UserError, match="pairs.jsonl.*preferences.*examples"):
        import_data([folder / "a.jsonl", pairs], workspace=tmp_path)


def test_no_prompt_and_no_conversation_stands_on_both_sides(tmp_path):
    rows = []
    for n in range(150):  # each question three times: spelled otherwise, answered otherwise, at another depth
        rows.append(
            {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": "a"}]}
        )
        rows.append(
            {"messages": [{"role": "user", "content": f"question  {n}?"}, {"role": "assistant", "content": "b"}]}
        )
        rows.append(
            {
                "messages": [
                    *rows[-2]["messages"],
                    {"role": "user", "content": "And?"},
                    {"role": "assistant", "content": "c"},
                ]
            }
        )
    snapshot = import_data(
        jsonl(tmp_path / "a.jsonl", rows), workspace=tmp_path, splits={"train": 0.4, "val": 0.3, "test": 0.3}
    )
    sides = [
        {row.messages[0].text.lower().replace(" ", "") for row in snapshot.rows(split)}
        for split in ("train", "val", "test")
    ]
    assert all(sides) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert sum(snapshot.counts.values()) == 450


def test_cleaning_drops_into_the_quarantine_and_reports_its_steps(tmp_path):
    rows = [*GOOD, GOOD[0], {"instruction": "short", "output": "x" * 500}]
    cleaner = Cleaner(CleanConfig(max_chars=300), index_folder=tmp_path / "index")
    with cleaner:
        snapshot = import_data(jsonl(tmp_path / "a.jsonl", rows), workspace=tmp_path / "w", clean=cleaner)
    dropped = {row["line"]: row["reason"] for row in snapshot.quarantine()}
    assert dropped[61].startswith("clean:exact_duplicates: ") and dropped[62].startswith("clean:length: ")
    assert snapshot.manifest["clean"]["length"]["dropped"] == 1
    assert "clean:length" in snapshot.manifest["steps"]
    assert snapshot.manifest["quarantined"]["by_reason"]["clean:length"] == 1


def test_cleaning_may_be_any_function_that_changes_records(tmp_path):
    def shout(record: Example) -> Example:
        return Example(
            messages=(*record.messages[:-1], type(record.messages[-1])(role="assistant", text="LOUD")),
            group=record.group,
        )

    assert set(texts(import_data(jsonl(tmp_path / "a.jsonl", GOOD), workspace=tmp_path, clean=shout))) == {"LOUD"}


def test_a_changed_snapshot_is_detected(tmp_path):
    snapshot = import_data(jsonl(tmp_path / "a.jsonl", GOOD), workspace=tmp_path)
    snapshot.verify()
    train = snapshot.path / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"blue", b"blux", 1))
    with pytest.raises(DamagedError, match=r"train\.jsonl"):
        snapshot.verify()


def test_a_workspace_that_cannot_be_written_gives_a_clear_error(tmp_path):
    (tmp_path / "w").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write the snapshot"):
        import_data(jsonl(tmp_path / "a.jsonl", GOOD), workspace=tmp_path / "w")


MEASURE = textwrap.dedent("""
    import json, sys, tracemalloc
    from pathlib import Path
    from tutelage.data.importer import import_data
    folder = Path(sys.argv[1])
    for rows in map(int, sys.argv[2:]):
        with open(folder / f"{rows}.jsonl", "w") as file:
            for n in range(rows):
                row = {"instruction": f"Question number {n}, asked once.", "output": "An answer of words. " * 40}
                file.write(json.dumps(row) + "\\n")
        tracemalloc.start()
        snapshot = import_data(folder / f"{rows}.jsonl", workspace=folder / "w")
        print(tracemalloc.get_traced_memory()[1], sum(snapshot.counts.values()))
        tracemalloc.stop()
""")


def assert_constant_memory(folder, few, many):
    """`few` fills all buffers already; what `many` takes beyond that grows with the file."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(few), str(few), str(many)],
        capture_output=True,
        text=True,
        check=True,
    )
    _, (small, kept), (large, more) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )  # the first run warms up
    assert (kept, more) == (few, many)
    # Keeping the records would take over 1000 bytes each.
    assert large < small + (many - few) * 25, f"{small} bytes for {few} rows, {large} for {many}"


def test_memory_does_not_grow_with_the_file(tmp_path):
    assert_constant_memory(tmp_path, 1_500, 4_500)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_long_file(tmp_path):
    assert_constant_memory(tmp_path, 5_000, 200_000)
