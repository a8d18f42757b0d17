"""`tutelage feedback`: what is asked, what comes in, what goes out, and what is said of it."""

import json
import re
import sqlite3

import pytest
from feedback_calls import call, item, question, write_lines
from sqlalchemy import select

from tutelage.core.words import Message, Prompt, Response
from tutelage.data.reading import Reading
from tutelage.data.split import split_of
from tutelage.store import tables
from tutelage.store.accounts import create_person, list_people
from tutelage.store.collected import collected, progress
from tutelage.store.db import open_database
from tutelage.store.feedback import Answers, Item, Settings, add_items, create_project, iter_items, list_projects, load_project
from tutelage.store.imported import person_name
from tutelage.store.ledger import audit, verify
from tutelage.store.queue import next_item, submit
from tutelage.store.rubrics import Question, Rubric, save_rubric

FULL = Rubric(name="full", categories=("violence", "self-harm"), questions=(
    Question(name="preference", kind="pair"), Question(name="order", kind="rank"), Question(name="helpful", kind="rating"),
    Question(name="verdict", kind="good_bad"), Question(name="safety", kind="safe_unsafe"),
    Question(name="edit", kind="edit", required=False),
    Question(name="marks", kind="spans", labels=("good", "wrong"), required=False),
    Question(name="flags", kind="flags", labels=("expert", "odd"), required=False), Question(name="reason", kind="reason", required=False)))


@pytest.fixture
def ws(tmp_path, monkeypatch):
    """An empty workspace, which is the current folder."""
    monkeypatch.delenv("TUTELAGE_DATABASE", raising=False)
    (tmp_path / "tutelage.yaml").write_text("model: test\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def db(ws):
    found = open_database(ws / "people.db")
    yield found
    found.close()


def answers(model: str, count: int = 3) -> list[dict]:
    """Rows as `tutelage respond` writes them."""
    return [{"prompt_id": question(f"q{at}").id, "text": f"{model} says {at}", "policy": model, "prompt": question(f"q{at}").to_dict()}
            for at in range(count)]


def pandalm(count: int, *votes) -> list[dict]:
    return [{"instruction": f"Do {at}.", "input": "", "response1": f"one {at}", "response2": f"two {at}", "cmp_key": "m1_m2",
             **{f"annotator{who}": vote for who, vote in enumerate(votes, start=1)}} for at in range(count)]


def judge(db, project: str, person: str, values, *, count: int = 1) -> None:
    if not any(person == each for each in _people(db)):
        create_person(db, person, "annotator", actor="t")
    for _ in range(count):
        got = next_item(db, person, project)
        given = values(got) if callable(values) else values
        assert submit(db, got.lease.id, person, key=got.lease.id, answers=Answers(values=given, seconds=9.5)).status == "stored"


def _people(db):
    return [person.name for person in list_people(db)]


# -- ask ------------------------------------------------------------------------------------------------------------


def test_two_files_of_answers_become_pairs_of_one_model_against_the_other(ws, db):
    old, new = write_lines(ws / "old.jsonl", answers("old")), write_lines(ws / "new.jsonl", answers("new"))
    done = call("ask", old, new, "--project", "duel", "--overlap", 2, "--share", 1, "--json")
    assert done.code == 0 and done.json["new"] == 3 and done.json["kind"] == "pair" and done.json["rubric"] == "pairwise@1"
    items = list(iter_items(db, "duel"))
    assert [[each.policy for each in item.responses] for item in items] == [["old", "new"]] * 3
    assert {item.overlap for item in items} == {2}
    again = call("ask", old, new, "--project", "duel", "--json")
    assert again.json["new"] == 0 and again.json["known"] == 3  # asked twice is asked once


@pytest.mark.parametrize(("rubric", "kind", "count"), [("pairwise", "pair", 6), ("ranking", "set", 1), ("good-bad", "single", 4),
                                                       ("write", "demonstration", 1)])
def test_the_rubric_says_what_is_asked_about(ws, db, rubric, kind, count):
    rows = [{"prompt_id": question("q").id, "text": f"answer {at}", "index": at, "policy": "m", "prompt": question("q").to_dict()}
            for at in range(4)]
    done = call("ask", write_lines(ws / "four.jsonl", rows), "--project", "p", "--rubric", rubric, "--json")
    assert (done.json["kind"], done.json["new"]) == (kind, count)


def test_empty_and_equal_answers_are_left_out_and_told(ws):
    rows = [*answers("old", 1), {**answers("new", 1)[0], "text": "  "}, {**answers("odd", 1)[0], "text": "old says 0"}]
    done = call("ask", write_lines(ws / "a.jsonl", rows), "--project", "p")
    assert done.code == 2 and "nothing to ask a pair question about (1 empty answers, 1 fewer than 2 different answers)" in done.err


def test_pairs_of_a_known_format_are_asked_anew_without_their_verdict(ws, db):
    done = call("ask", write_lines(ws / "p.jsonl", [{"prompt": "q", "chosen": "yes", "rejected": "no"}]), "--project", "p")
    assert done.code == 0 and not list(collected(db, "p"))
    assert {each.text for each in next(iter_items(db, "p")).responses} == {"yes", "no"}


def test_a_file_that_gives_nothing_leaves_no_project(ws, db):
    done = call("ask", write_lines(ws / "a.jsonl", [{"instruction": "x", "output": "y"}]), "--project", "p")
    assert done.code == 2 and "people are asked about answers" in done.err and not list_projects(db)


def test_another_rubric_than_the_projects_is_refused(ws):
    file = write_lines(ws / "a.jsonl", answers("a") + answers("b"))
    call("ask", file, "--project", "p")
    done = call("ask", file, "--project", "p", "--rubric", "ranking")
    assert done.code == 2 and "project p asks by pairwise@1, not ranking" in done.err


# -- import ---------------------------------------------------------------------------------------------------------


def test_each_annotator_of_a_file_is_a_person_with_a_judgement(ws, db):
    done = call("import", write_lines(ws / "votes.jsonl", pandalm(2, 1, 2, 0)), "--project", "p", "--json")
    assert done.code == 0 and done.json["files"][0] | {"new_people": 0} == {
        "file": "votes.jsonl", "new": 6, "known": 0, "items": 2, "people": 3, "new_people": 0, "quarantined": {}, "quarantine": None}
    said = {(row.person, row.values["preference"]) for row in collected(db, "p")}
    assert said == {("annotator1", -1), ("annotator2", 1), ("annotator3", 0)}
    assert all(row.order == (0, 1) and row.judgements[0].flags == ("imported",) for row in collected(db, "p"))
    assert verify(db).ok and "import" in {entry.kind for entry in audit(db, limit=100)}
    assert not any(person.active for person in list_people(db))  # nobody can sign in as them


def test_the_same_file_again_changes_nothing(ws, db):
    file = write_lines(ws / "votes.jsonl", pandalm(2, 1, 2))
    call("import", file, "--project", "p")
    rows = verify(db).rows
    done = call("import", file, "--project", "p", "--json")
    assert done.json["files"][0]["known"] == 4 and done.json["files"][0]["new"] == 0
    assert verify(db).rows == rows


def test_nobody_is_asked_again_for_what_was_imported(ws, db):
    call("import", write_lines(ws / "votes.jsonl", pandalm(1, 1, 2)), "--project", "p")
    create_person(db, "eve", "annotator", actor="t")
    assert next_item(db, "eve", "p") is None
    assert [each.overlap for each in iter_items(db, "p")] == [2]
    done = progress(db, "p")
    assert (done.items, done.complete, done.judged, done.wanted) == (1, 1, 2, 2)
    with db.read() as conn:
        assert conn.execute(select(tables.items.c.full)).scalars().all() == [True]


def side_by_side(evaluator: str, preference: str, a: str = "x", b: str = "y") -> dict:
    return {"prompt": "q", "model_a": f"m{a}", "model_b": f"m{b}", "completion_a": f"says {a}", "completion_b": f"says {b}",
            "preference": preference, "evaluator": evaluator}


def test_two_who_saw_the_sides_swapped_judged_one_item(ws, db):
    rows = [side_by_side("ann", "a-is-better"), side_by_side("bob", "b-is-slightly-better", a="y", b="x"),
            side_by_side("cy", "b-is-better")]
    call("import", write_lines(ws / "t.jsonl", rows), "--project", "p")
    [one] = iter_items(db, "p")  # one item, or the two could not be compared
    ann, bob, cy = collected(db, "p")
    assert ann.order != bob.order and (ann.values["preference"], bob.values["preference"]) == (-2, 1)
    for row in (ann, bob):  # both liked x
        assert one.responses[row.order[0 if row.values["preference"] < 0 else 1]].text == "says x"
    assert cy.values["preference"] == 2 and one.responses[cy.order[1]].text == "says y"
    assert call("report", "--project", "p", "--json").json["agreement"]["preference"]["raw"]["value"] == pytest.approx(1 / 3)


def test_broken_rows_are_quarantined_and_named_and_cost_nothing_else(ws, db):
    good = pandalm(2, 1, 2)
    bad = [{**good[0], "annotator1": 7}, {**good[1], "response1": ""}, side_by_side("ann", "tie")]
    file = ws / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*good, *bad]) + "{not json\n", encoding="utf-8")
    done = call("import", file, "--project", "p", "--json")
    [facts] = done.json["files"]
    assert facts["new"] == 5 and facts["quarantined"] == {"unknown verdict": 1, "empty field": 1, "not JSON": 1}
    rows = [json.loads(line) for line in open(facts["quarantine"], encoding="utf-8")]
    assert [(row["file"], row["line"]) for row in rows] == [("mixed.jsonl", 3), ("mixed.jsonl", 4), ("mixed.jsonl", 6)]


def test_who_judged_the_same_answers_twice_and_differently_counts_once(ws, db):
    rows = [side_by_side("ann", "a-is-better"), side_by_side("ann", "tie"), side_by_side("ann", "a-is-better")]
    done = call("import", write_lines(ws / "t.jsonl", rows), "--project", "p", "--json")
    [facts] = done.json["files"]
    assert (facts["new"], facts["known"], facts["quarantined"]) == (1, 1, {"judged twice": 1})


def test_where_the_file_does_not_tell_the_sides_they_are_drawn_and_marked(ws, db):
    rows = [{"prompt": f"q{at}", "chosen": f"good {at}", "rejected": f"bad {at}"} for at in range(40)]
    call("import", write_lines(ws / "pairs.jsonl", rows), "--project", "p")
    left = 0
    items = {each.id: each for each in iter_items(db, "p")}
    for row in collected(db, "p"):
        assert row.judgements[0].flags == ("imported", "sides-unknown") and row.person == "pairs"
        won = items[row.item].responses[row.order[0 if row.values["preference"] < 0 else 1]]
        assert won.text.startswith("good")
        left += row.values["preference"] < 0
    assert 5 < left < 35  # a coin fails this once in a million, and this one has a seed
    assert call("report", "--project", "p", "--json").json["left"] is None


def test_a_soft_label_without_names_is_no_judgement(ws):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "soft_label": 0.67}]
    done = call("import", write_lines(ws / "soft.jsonl", rows), "--project", "p", "--json")
    assert done.code == 2 and "no row of" in done.err
    assert "folded: soft label 0.67" in next((ws / "data").glob("quarantine-*")).read_text(encoding="utf-8")


def test_verdicts_on_single_answers_come_in_by_the_rubric_for_them(ws, db):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{at}"}], "label": at == 0}
            for at in range(2)]
    call("import", write_lines(ws / "kto.jsonl", rows), "--project", "p")
    assert load_project(db, "p").rubric == "good-bad@1"
    assert sorted(row.values["verdict"] for row in collected(db, "p")) == [[False], [True]]


def test_four_levels_have_no_tie(ws, db):
    rows = [side_by_side("ann", "a-is-better"), side_by_side("bob", "tie")]
    done = call("import", write_lines(ws / "t.jsonl", rows), "--project", "p", "--rubric", "pairwise-4", "--json")
    [facts] = done.json["files"]
    assert facts["new"] == 1 and list(facts["quarantined"]) == ["not by the rubric"]
    assert [row.values["preference"] for row in collected(db, "p")] == [-3] and next(collected(db, "p")).judgements[0].values[0] == 2.0


def test_names_that_cannot_be_had_are_changed_and_stay_apart():
    assert person_name("rater-1.b") == "rater-1.b"
    names = {person_name(name) for name in ("Jo Ann", "Jo-Ann", "Jo/Ann", "张三", "李四", "")}
    assert len(names) == 6 and all(re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name) for name in names)


# -- export and back ------------------------------------------------------------------------------------------------


@pytest.fixture
def full(ws, db):
    """A project with every kind of question, two people, sides swapped."""
    save_rubric(db, FULL, actor="t")
    create_project(db, "p", rubric="full", settings=Settings(overlap=2, overlap_share=1.0, gold_share=0.0), actor="t")
    add_items(db, "p", [item(f"Why {at}?", f"because {at}", f"so <b>{at}</b>") for at in range(3)], actor="t")
    for at, person in enumerate(("ann", "bob")):
        judge(db, "p", person, {
            "preference": (-2, "both_bad")[at], "order": [1, 2 - at], "helpful": [4, 1 + at], "verdict": [True, bool(at)],
            "safety": [{"unsafe": True, "categories": ["violence"]}, {"unsafe": False, "categories": []}],
            "edit": {"response": at, "text": "Mended."}, "marks": [{"response": 1, "start": 0, "end": 2, "label": "wrong"}],
            "flags": ["odd"], "reason": "I think so."}, count=3)
    return db


def told(db, project: str) -> set:
    """Everything that was said, by what it was said of."""
    items = {each.id: each for each in iter_items(db, project)}
    return {(row.person, items[row.item].prompt.messages[0].text, tuple(items[row.item].responses[at].text for at in row.order),
             tuple(items[row.item].responses[at].policy for at in row.order), row.seconds, json.dumps(row.values, sort_keys=True))
            for row in collected(db, project)}


@pytest.mark.parametrize("format", ["judgements", "label-studio", "argilla"])
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_what_goes_out_with_its_annotators_comes_back_the_same(ws, full, format, ending):
    file = ws / f"out{ending}"
    done = call("export", "--project", "p", "--format", format, "--out", file)
    assert done.code == 0, done.err
    back = call("import", file, "--project", "copy", "--json")
    assert back.code == 0, back.err
    assert back.json["files"][0]["quarantined"] == {} and back.json["files"][0]["new"] == 6
    assert told(full, "copy") == told(full, "p") and load_project(full, "copy").rubric == "full@1"
    assert {tuple(r.order) for r in collected(full, "p")} == {(0, 1), (1, 0)}  # sides were drawn: there is something to keep


@pytest.mark.parametrize("format", ["label-studio", "argilla", "judgements"])
def test_a_damaged_record_of_a_tool_is_quarantined(ws, full, format):
    file = ws / "out.jsonl"
    call("export", "--project", "p", "--format", format, "--out", file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    key = {"label-studio": "annotations", "argilla": "responses", "judgements": "values"}[format]
    rows[1][key] = 5
    done = call("import", write_lines(file, rows), "--project", "copy", "--format", format, "--json")
    assert done.json["files"][0]["quarantined"] == {"wrong shape": 1} and done.json["files"][0]["new"] >= 3


def test_label_studios_own_pairwise_control_is_understood(ws, db):
    task = {"id": 1, "data": {"prompt": "q", "answer1": "a", "answer2": "b"}, "annotations": [
        {"completed_by": 7, "lead_time": 3.5,
         "result": [{"from_name": "preference", "to_name": "x", "type": "pairwise", "value": {"selected": "right"}}]},
        {"completed_by": 8, "was_cancelled": True, "result": []}]}
    (ws / "ls.json").write_text(json.dumps([task]), encoding="utf-8")
    assert call("import", ws / "ls.json", "--project", "p").code == 0
    [row] = collected(db, "p")
    assert (row.person, row.values, row.seconds) == ("user-7", {"preference": 1}, 3.5)


@pytest.fixture
def voted(ws, db):
    """Six pairs with three votes each: four unanimous, one two to one, one tie."""
    rows = pandalm(4, 1, 1, 1) + pandalm(6, 2, 2, 1)[4:5] + pandalm(6, 0, 0, 0)[5:6]
    call("import", write_lines(ws / "votes.jsonl", rows), "--project", "p")
    return db


FIELDS = ("soft_label", "strength")


@pytest.mark.parametrize(("format", "file"), [("trl", "o.jsonl"), ("hh", "o.jsonl"), ("sharegpt", "o.json"), ("csv", "o.csv"),
                                              ("parquet", "o.parquet"), ("native", "o.jsonl")])
def test_folded_pairs_are_read_back_by_the_readers_of_data(ws, voted, format, file):
    done = call("export", "--project", "p", "--format", format, "--out", ws / file, "--json")
    assert done.code == 0 and done.json["rows"] == 6, done.err
    rows = sorted((row.prompt.messages[-1].text, row.chosen.text, row.rejected.text, round(row.soft_label, 6), round(row.strength, 6))
                  for row in Reading([ws / file]))
    unanimous = [(f"Do {at}.", f"one {at}", f"two {at}", 1.0, 1.0) for at in range(4)]
    assert rows == [*unanimous, ("Do 4.", "two 4", "one 4", 0.666667, 0.333333), ("Do 5.", "one 5", "two 5", 0.5, 0.0)]


def test_without_verdicts_the_better_answers_stand_as_good(ws, voted):
    done = call("export", "--project", "p", "--format", "kto", "--out", ws / "kto.jsonl")
    assert done.code == 0 and "the better answers of the pairs stand as good" in done.out
    rows = list(Reading([ws / "kto.jsonl"]))
    assert len(rows) == 10 and sum(row.desirable for row in rows) == 5  # the tie gives none


def test_a_tree_of_open_assistant_holds_the_order(ws, db):
    create_project(db, "p", rubric="ranking", settings=Settings(overlap=1, gold_share=0.0), actor="t")
    add_items(db, "p", [item("Why?", "good", "best", "bad", kind="set")], actor="t")
    rank = {"best": 1, "good": 2, "bad": 3}
    judge(db, "p", "ann", lambda got: {"ranking": [rank[each.text] for each in got.shown]})
    assert call("export", "--project", "p", "--format", "oasst", "--out", ws / "tree.jsonl").code == 0
    tree = json.loads((ws / "tree.jsonl").read_text(encoding="utf-8"))
    assert [(reply["text"], reply["rank"]) for reply in tree["prompt"]["replies"]] == [("best", 0), ("good", 1), ("bad", 2)]
    read = {(row.chosen.text, row.rejected.text, row.strength) for row in Reading([ws / "tree.jsonl"])}
    assert read == {("best", "good", 1.0), ("best", "bad", 2.0), ("good", "bad", 1.0)}


def test_spans_go_out_as_span_reward_reads_them(ws, full):
    assert call("export", "--project", "p", "--format", "spans", "--out", ws / "s.jsonl").code == 0
    rows = [json.loads(line) for line in (ws / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12 and sum(len(row["spans"]) for row in rows) == 6
    assert {each["value"] for row in rows for each in row["spans"]} == {-1.0}


def test_weights_that_a_format_has_no_place_for_are_told(ws, voted):
    done = call("export", "--project", "p", "--format", "trl", "--out", ws / "o.jsonl", "--reliability", "overlap")
    assert done.code == 0
    native = call("export", "--project", "p", "--format", "native", "--out", ws / "n.jsonl", "--reliability", "overlap")
    weights = {row.weight for row in Reading([ws / "n.jsonl"])}
    assert native.code == 0 and all(0 < weight < 1 for weight in weights)
    assert ("no place for weights" in done.out) == (len(weights) > 1)


def test_an_export_stands_in_the_log(ws, voted):
    call("export", "--project", "p", "--format", "trl", "--out", ws / "o.jsonl", "--actor", "boss")
    last = audit(voted, limit=1, newest_first=True)[0]
    assert (last.kind, last.actor, last.content["rows"]) == ("export", "boss", 6)


# -- snapshots ------------------------------------------------------------------------------------------------------


def test_no_group_stands_in_two_splits_of_any_two_data_sets(ws, full):
    create_project(full, "chat", rubric="full", settings=Settings(overlap=1, overlap_share=0, gold_share=0.0), actor="t")
    turns = []
    for at in range(12):  # two depths of one conversation, as a chat makes them: no group is set
        first = question(f"Opening {at}")
        deeper = Prompt(messages=(*first.messages, Message(role="assistant", text="ok"), *question("And then?").messages))
        for prompt in (first, deeper):
            turns.append(Item(kind="pair", prompt=prompt, responses=_two(prompt)))
    add_items(full, "chat", turns, actor="t")
    judge(full, "chat", "eve", {"preference": -1, "order": [1, 2], "helpful": [3, 3], "verdict": [True, False],
                                "safety": [{"unsafe": False}, {"unsafe": True}], "edit": {"response": 0, "text": "E"}}, count=24)
    done = call("snapshot", "--project", "chat", "--split", "50/25/25", "--json")
    assert done.code == 0, done.err
    assert set(done.json["snapshots"]) == {"preferences", "examples", "labels", "safety", "prompts", "ratings-helpful"}
    place: dict[str, set] = {}
    for facts in done.json["snapshots"].values():
        for split in ("train", "val", "test"):
            for line in (ws / "data" / facts["snapshot"] / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                opening = (row.get("prompt") or row)["messages"][0]["text"]
                group = row["group"] if "group" in row else row["prompt"]["group"]
                assert split == split_of(group, seed=0, shares={"train": 0.5, "val": 0.25, "test": 0.25})
                place.setdefault(opening, set()).add(split)
    assert len(place) == 12 and all(len(splits) == 1 for splits in place.values())
    assert len(set.union(*place.values())) > 1


def _two(prompt):
    return tuple(Response(prompt_id=prompt.id, text=text, policy=text) for text in ("a", "b"))


def test_a_snapshot_of_a_row_stays_what_it_was(ws, voted):
    first = call("snapshot", "--project", "p", "--json").json
    call("import", write_lines(ws / "more.jsonl", pandalm(9, 2, 2, 2)[6:]), "--project", "p")
    later = call("snapshot", "--project", "p", "--json").json
    then = call("snapshot", "--project", "p", "--upto", first["row"], "--json").json
    names = [each["snapshots"]["preferences"]["snapshot"] for each in (first, later, then)]
    assert names[0] == names[2] != names[1] and later["snapshots"]["preferences"]["counts"]["train"] >= 1


# -- report, plan, verify -------------------------------------------------------------------------------------------


def test_the_report_says_who_agrees_and_who_wins(ws, voted):
    done = call("report", "--project", "p", "--json")
    assert done.code == 0, done.err
    facts = done.json
    # 4 unanimous, one 2:1 (1 of 3 pairs of people agree), one unanimous tie: (5 + 1/3) / 6
    assert facts["agreement"]["preference"]["raw"]["value"] == pytest.approx(16 / 18)
    [win] = facts["win_rates"]
    assert (win["wins"], win["ties"], win["losses"], win["raters"]) == (13, 3, 2, 3)
    assert win["rate"]["estimate"] == pytest.approx(14.5 / 18) and win["rate"]["low"] < 14.5 / 18 < win["rate"]["high"]
    assert facts["left"]["estimate"] == pytest.approx(13 / 15)
    assert (facts["comparisons"], facts["ties"]) == (18, 3)


def test_the_report_is_written_in_both_languages_and_both_forms(ws, voted):
    for lang, ending, says in (("en", "html", "Win rates"), ("zh", "html", "胜率"), ("en", "md", "## Win rates"), ("zh", "md", "## 胜率")):
        out = ws / f"r.{lang}.{ending}"
        done = call("report", "--project", "p", "--lang", lang, "--out", out)
        assert done.code == 0 and says in out.read_text(encoding="utf-8") and says.removeprefix("## ") in done.out
    assert call("report", "--project", "p", "--out", ws / "r.pdf").code == 2
    assert call("report", "--project", "p").code == 0 and (ws / "reports" / "feedback-p.html").is_file()


def test_hostile_names_are_shown_harmlessly(ws, db):
    rows = [{**side_by_side("ann", "a-is-better"), "model_a": "<script>alert(1)</script>", "model_b": "x|y`z\n# head"}]
    call("import", write_lines(ws / "t.jsonl", rows), "--project", "p")
    for ending in ("html", "md"):
        assert call("report", "--project", "p", "--out", ws / f"r.{ending}").code == 0
    page, text = ((ws / f"r.{ending}").read_text(encoding="utf-8") for ending in ("html", "md"))
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src 'none'" in page
    assert "<script" not in text.replace("\\<", "") and "\n# head" not in text


@pytest.mark.parametrize(("votes", "says"), [
    ((1,), "no unit was rated by two raters or more"),
    ((1, 1, 1), "without variation there is nothing to agree on"),
    ((0, 0, 0), "without variation"),
])
def test_what_cannot_be_computed_is_explained(ws, db, votes, says):
    call("import", write_lines(ws / "v.jsonl", pandalm(3, *votes)), "--project", "p")
    done = call("report", "--project", "p")
    assert done.code == 0 and says in done.out and "nan" not in done.out.lower()
    assert call("plan", "--project", "p").code == 0


def test_an_empty_project_can_be_reported_on(ws, db):
    create_project(db, "p", rubric="pairwise", actor="t")
    done = call("report", "--project", "p")
    assert done.code == 0 and "0 of 0 wanted judgements" in done.out
    assert call("export", "--project", "p", "--format", "trl", "--out", ws / "o.jsonl").code == 2
    assert call("snapshot", "--project", "p").code == 2


def test_gold_items_count_for_people_and_for_nothing_else(ws, db):
    create_project(db, "p", rubric="pairwise", settings=Settings(overlap=1, overlap_share=1.0, gold_share=1.0, shuffle=False), actor="t")
    add_items(db, "p", [item("gold", "a", "b", gold={"preference": -1}), item("plain", "c", "d")], actor="t")
    judge(db, "p", "ann", {"preference": -2}, count=2)
    facts = call("report", "--project", "p", "--json").json
    assert facts["comparisons"] == 1 and facts["annotators"]["ann"]["gold"]["estimate"] == pytest.approx(2 / 3)
    plan = call("plan", "--project", "p", "--json").json
    assert [(row["rater"], row["right"], row["advice"]) for row in plan["training"]] == [("ann", 1, "more gold")]


def test_the_plan_counts_labels_and_people(ws, voted):
    curve = ws / "curve.csv"
    rows = "".join(f"{n},{1 - 0.5 * n**-0.3 - 0.1:.6f}\n" for n in (50, 100, 200, 400, 800))
    curve.write_text("labels,accuracy\n" + rows, encoding="utf-8")
    done = call("plan", "--project", "p", "--curve", curve, "--accuracy", "0.85", "--half-width", "0.05", "--json")
    assert done.code == 0, done.err
    assert done.json["accuracy"]["labels"] == pytest.approx(10 ** (10 / 3), rel=0.1)  # 0.5 n^-0.3 = 0.05
    assert done.json["win_rates"][0]["text"].startswith("now +-")
    assert call("plan", "--project", "p", "--curve", ws / "votes.jsonl").code == 2
    assert call("plan", "--project", "p", "--half-width", "0").code == 2


def test_verify_names_the_first_row_that_was_changed(ws, voted):
    done = call("verify", "--json")
    assert done.code == 0 and done.json["ok"]
    anchor = done.json["anchor"]
    assert call("verify", "--anchor", anchor).code == 0
    row = next(entry.seq for entry in audit(voted, kind="judgement"))
    voted.close()
    with sqlite3.connect(ws / "people.db") as raw:
        raw.execute("UPDATE contents SET content = replace(content, '\"preference\":-1', '\"preference\":1') WHERE seq = ?", (row,))
    raw.close()
    done = call("verify")
    assert done.code == 1 and f"row {row} of the log: its content was changed" in done.out
    assert call("verify", "--anchor", "twelve").code == 2


def test_a_database_that_is_not_there_is_not_made_by_looking(ws):
    for words in (("report", "--project", "p"), ("verify",), ("plan", "--project", "p")):
        done = call(*words)
        assert done.code == 2 and "no database at" in done.err
    assert not (ws / "people.db").exists()


def test_an_unknown_project_is_named_with_the_nearest(ws, voted):
    create_project(voted, "duel", rubric="pairwise", actor="t")
    done = call("report", "--project", "duell")
    assert done.code == 2 and 'did you mean "duel"' in done.err


def test_the_database_may_be_named_by_the_environment(ws, monkeypatch):
    monkeypatch.setenv("TUTELAGE_DATABASE", str(ws / "other.db"))
    call("import", write_lines(ws / "v.jsonl", pandalm(1, 1)), "--project", "p")
    assert (ws / "other.db").exists() and not (ws / "people.db").exists()
