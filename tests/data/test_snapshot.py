import json

import pytest

from tutelage.core.errors import DamagedError, UserError
from tutelage.core.words import Example, Preference, Prompt
from tutelage.data.importer import import_data
from tutelage.data.snapshot import load_rows, open_snapshot


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"}) + "\n"
            for n in range(40)
        )
        + "oops\n"
    )
    return path


def test_a_snapshot_is_found_by_name_by_full_name_and_by_folder(tmp_path, pairs):
    snapshot = import_data(pairs, workspace=tmp_path / "w")
    for key, workspace in (("pairs", tmp_path / "w"), (snapshot.name, tmp_path / "w"), (snapshot.path, None)):
        assert open_snapshot(key, workspace).digest == snapshot.digest
    with pytest.raises(UserError, match="no snapshot 'pears'.*did you mean"):
        open_snapshot("pears", tmp_path / "w")
    with pytest.raises(UserError, match="no split 'dev'"):
        list(snapshot.rows("dev"))


def test_the_newest_of_two_snapshots_of_one_name_is_taken(tmp_path, pairs):
    first = import_data(pairs, workspace=tmp_path, seed=1)
    manifest = json.loads((first.path / "manifest.json").read_text())
    (first.path / "manifest.json").write_text(json.dumps({**manifest, "created": "2020-01-01T00:00:00Z"}))
    second = import_data(pairs, workspace=tmp_path, seed=2)
    assert open_snapshot("pairs", tmp_path).digest == second.digest != first.digest


def test_rows_come_back_as_they_were_imported(tmp_path, pairs):
    snapshot = import_data(pairs, workspace=tmp_path)
    rows = [row for split in ("train", "val", "test") for row in snapshot.rows(split)]
    assert all(isinstance(row, Preference) for row in rows)
    assert {(row.prompt.messages[0].text, row.chosen.text, row.rejected.text) for row in rows} == {
        (f"question {n}", f"good {n}", f"bad {n}") for n in range(40)
    }


def test_a_damaged_manifest_or_a_missing_file_is_named(tmp_path, pairs):
    snapshot = import_data(pairs, workspace=tmp_path)
    (snapshot.path / "val.jsonl").unlink()
    with pytest.raises(DamagedError, match=r"val\.jsonl: is missing"):
        snapshot.verify()
    (snapshot.path / "manifest.json").write_text("{}")
    with pytest.raises(DamagedError, match="not a snapshot's manifest"):
        open_snapshot(snapshot.path)


def test_every_data_name_of_a_recipe_is_resolved(tmp_path, pairs):
    kind, splits = load_rows("starter:instructions")
    assert (
        kind == "examples" and isinstance(splits["train"][0], Example) and len(splits["train"]) > len(splits["val"]) > 0
    )
    kind, splits = load_rows("starter:preferences")
    assert kind == "preferences" and isinstance(splits["val"][0], Preference)
    kind, splits = load_rows("starter:evaluation")
    assert kind == "prompts" and isinstance(splits["test"][0], Prompt) and not splits["train"]
    told = []
    direct = load_rows(pairs, tell=told.append)
    assert "40 records kept, 1 quarantined (1 not JSON)" in told[0]
    snapshot = import_data(pairs, workspace=tmp_path)
    by_name = load_rows("pairs", tmp_path)
    assert direct == by_name == load_rows(snapshot.path)
    assert sum(map(len, direct.splits.values())) == 40


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("feedback:mine", "tutelage feedback snapshot"),
        ("starter:instruction", 'did you mean "instructions"'),
        ("nowhere.jsonl", "neither a file, nor a folder, nor a snapshot"),
    ],
)
def test_a_name_that_leads_nowhere_is_explained(tmp_path, name, says):
    with pytest.raises(UserError, match=says):
        load_rows(name, tmp_path)


def test_rows_of_another_kind_are_turned_and_the_rest_is_told(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text(
        "".join(
            json.dumps({"instruction": f"q{n}", "response1": "a", "response2": "b", "annotator1": vote}) + "\n"
            for n, vote in enumerate([1, 2, 0, 1])
        )
    )
    import_data(path, workspace=tmp_path)
    told = []
    kind, splits = load_rows("votes", tmp_path, kind="examples", tell=told.append)
    assert kind == "examples" and sum(map(len, splits.values())) == 3
    assert "1 of the preferences could not be read as examples" in told[0] and "a tie" in told[0]
