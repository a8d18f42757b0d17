"""Recipes that train on `feedback:P[@ROW]`: each command gets its own data set of the same judgements, frozen."""

import shutil

import pytest
from feedback_calls import call, item, write_lines

from tutelage.commands import cost, prefer, reward, rl, sft
from tutelage.commands.engines import read_prompts
from tutelage.commands.feedback_data import parse
from tutelage.commands.training import prepare
from tutelage.core.errors import UserError
from tutelage.store.accounts import create_person
from tutelage.store.db import open_database
from tutelage.store.feedback import Answers, Settings, add_items, create_project
from tutelage.store.ledger import verify
from tutelage.store.queue import next_item, submit
from tutelage.store.rubrics import Question, Rubric, save_rubric

RUBRIC = Rubric(name="all", questions=(
    Question(name="preference", kind="pair"), Question(name="verdict", kind="good_bad"), Question(name="safety", kind="safe_unsafe"),
    Question(name="edit", kind="edit", required=False)))
MODEL = ["model=test", "device=cpu"]


@pytest.fixture
def ws(tmp_path, monkeypatch):
    """A workspace with a project of 12 judged pairs."""
    monkeypatch.delenv("TUTELAGE_DATABASE", raising=False)
    (tmp_path / "tutelage.yaml").write_text("model: test\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    db = open_database(tmp_path / "people.db")
    save_rubric(db, RUBRIC, actor="t")
    create_project(db, "p", rubric="all", settings=Settings(overlap=1, overlap_share=0.0, gold_share=0.0, shuffle=False), actor="t")
    create_person(db, "ann", "annotator", actor="t")
    add_items(db, "p", [item(f"Why {at}?", f"because {at}", f"so {at}") for at in range(12)], actor="t")
    judge(db, 12)
    db.close()
    return tmp_path


def judge(db, count: int) -> None:
    for _ in range(count):
        got = next_item(db, "ann", "p")
        submit(db, got.lease.id, "ann", key=got.lease.id, answers=Answers(values={
            "preference": -2, "verdict": [True, False], "safety": [{"unsafe": False}, {"unsafe": True}],
            "edit": {"response": 0, "text": f"Mended {got.lease.id}."}}))


def plan(module, *words, **more):
    return prepare(module.JOB, words=[*MODEL, *words], **more)


def test_each_command_gets_its_own_data_set_of_the_same_judgements(ws):
    made = {
        "sft": plan(sft, "data=feedback:p"), "reward": plan(reward, "data=feedback:p"), "cost": plan(cost, "data=feedback:p"),
        "dpo": plan(prefer, "data=feedback:p", "method=dpo"), "kto": plan(prefer, "data=feedback:p", "method=kto"),
        "rl": plan(rl, "data=feedback:p", "reward=rule:length")}
    kinds = {name: (each.rows.kind, sum(len(rows) for rows in each.rows.splits.values())) for name, each in made.items()}
    assert kinds == {"sft": ("examples", 12), "reward": ("preferences", 24), "cost": ("labels", 24), "dpo": ("preferences", 24),
                     "kto": ("labels", 24), "rl": ("prompts", 12)}
    sides: dict[str, set[str]] = {}
    for each in made.values():
        for split, rows in each.rows.splits.items():
            for row in rows:
                sides.setdefault(row.group, set()).add(split)
    assert len(sides) == 12 and all(len(splits) == 1 for splits in sides.values())
    assert any("feedback:p: examples as of row" in note for note in made["sft"].notes)


def test_the_runs_configuration_names_the_frozen_rows(ws):
    first = plan(reward, "data=feedback:p")
    assert first.config.data.startswith("p-preferences@") and first.data_id == first.config.data
    db = open_database(ws / "people.db")
    add_items(db, "p", [item("One more?", "yes", "no")], actor="t")
    judge(db, 1)
    db.close()
    later = plan(reward, "data=feedback:p")
    assert later.config.data != first.config.data
    assert plan(reward, f"data={first.config.data}").rows == first.rows  # what a resumed run reads


def test_a_row_of_the_log_is_a_snapshot(ws):
    row = call("snapshot", "--project", "p", "--json").json["row"]
    shutil.rmtree(ws / "data")  # the database alone must know what stood then
    db = open_database(ws / "people.db")
    add_items(db, "p", [item("One more?", "yes", "no")], actor="t")
    judge(db, 1)
    db.close()
    old, new = plan(reward, f"data=feedback:p@{row}"), plan(reward, "data=feedback:p")
    assert (sum(old.counts.values()), sum(new.counts.values())) == (24, 26)
    (ws / "people.db").unlink()  # the snapshot lies in the workspace: no database is needed
    assert plan(reward, f"data=feedback:p@{row}").rows == old.rows
    with pytest.raises(UserError, match="no database at"):
        plan(reward, "data=feedback:p")


def test_training_reads_the_database_and_writes_nothing_there(ws):
    db = open_database(ws / "people.db")
    before = verify(db).rows
    plan(reward, "data=feedback:p")
    assert verify(db).rows == before
    db.close()


def test_prompts_of_a_project_can_be_answered(ws):
    assert len(read_prompts("feedback:p", ws, held_out=False)) == 12


@pytest.mark.parametrize(("name", "says"), [
    ("feedback:q", "no project is named 'q'"), ("feedback:p@99999", "the log ends at row"), ("feedback:p@one", "wanted feedback:PROJECT"),
    ("feedback:@3", "wanted feedback:PROJECT")])
def test_a_name_that_leads_nowhere_is_explained(ws, name, says):
    with pytest.raises(UserError, match=says):
        plan(reward, f"data={name}")


def test_what_the_judgements_do_not_give_is_told(ws):
    call("import", write_lines(ws / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}]), "--project", "pairs")
    with pytest.raises(UserError, match="cost needs safety, and the judgements give 1 preferences, 1 prompts"):
        plan(cost, "data=feedback:pairs")
    assert parse("feedback:p@7") == ("p", 7)
