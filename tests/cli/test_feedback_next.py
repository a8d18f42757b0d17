"""`tutelage feedback plan --features` and `tutelage score`: what is asked next, and whether choosing has paid."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from feedback_calls import call, item, write_lines

from tutelage.commands import score
from tutelage.commands.arguments import parser
from tutelage.store.arms import put_first
from tutelage.store.db import open_database
from tutelage.store.feedback import Settings, add_items, create_project, iter_items
from tutelage.store.imported import Imported, add_judgements, add_people
from tutelage.terminal import Terminal
from tutelage.web.pages import agreement


@pytest.fixture
def ws(tmp_path, monkeypatch):
    monkeypatch.delenv("TUTELAGE_DATABASE", raising=False)
    (tmp_path / "tutelage.yaml").write_text("model: test\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def db(ws):
    found = open_database(ws / "people.db")
    yield found
    found.close()


def asked(db, count: int) -> list:
    create_project(db, "p", rubric="pairwise", settings=Settings(overlap=1, overlap_share=0.0, gold_share=0.0), actor="t")
    add_items(db, "p", [item(f"q{at}", f"good {at}", f"bad {at}") for at in range(count)], actor="t")
    return list(iter_items(db, "p"))


def judged(db, items, better) -> None:
    """One person says of each item whether its first answer is the better one."""
    add_people(db, ["ann"], actor="t")
    votes = [Imported(item=each, person="ann", order=(0, 1), values={"preference": -1 if first else 1})
             for each, first in zip(items, better, strict=True)]
    assert add_judgements(db, "p", votes, actor="t", source="t").new == len(items)


def write_npz(path, items, x, **more):
    np.savez(path, id=np.array([each.id for each in items]), features=x, **more)
    return path


def test_the_next_pairs_stand_first_with_their_arm_and_a_fifth_is_drawn(ws, db):
    items = asked(db, 40)
    x = np.random.default_rng(0).normal(size=(40, 3))
    file = write_npz(ws / "f.npz", items, x, score=np.zeros(40))
    done = call("plan", "--project", "p", "--features", file, "--choose", 10, "--method", "d-optimal", "--out", ws / "next.jsonl", "--json")
    assert done.code == 0, done.err
    arms = done.json["next"]["arms"]
    assert sorted(arms.values()) == ["active"] * 8 + ["random"] * 2 and done.json["next"]["waiting"] == 40
    assert {each.id: each.arm for each in iter_items(db, "p") if each.batch == 0} == arms
    assert [json.loads(line) for line in (ws / "next.jsonl").read_text().splitlines()] == [
        {"item": key, "arm": arm} for key, arm in arms.items()]
    assert "too early to tell" in done.json["next"]["text"]


def test_random_is_the_default_until_choosing_is_seen_to_pay(ws, db):
    items = asked(db, 30)
    file = write_npz(ws / "f.npz", items, np.random.default_rng(0).normal(size=(30, 3)))
    done = call("plan", "--project", "p", "--features", file, "--choose", 10)
    assert done.code == 0 and "the default is random" in done.out and "10 drawn at random, 0 chosen (random)" in done.out
    assert {each.arm for each in iter_items(db, "p")} == {"random"}


def planted(db, ws, *, informative: bool):
    """15 chosen and 100 random labels.  Informative: the chosen pairs lie along what matters, which 15 random ones in 20 dimensions
    hardly show; otherwise their labels are coins."""
    random = np.random.default_rng(1)
    items, truth = asked(db, 120), random.normal(size=20)
    x = random.normal(size=(120, 20))
    put_first(db, "p", {each.id: "active" for each in items[:15]}, actor="t")
    better = x @ truth > 0
    if informative:
        x[:15] = np.where(better[:15], 1, -1)[:, None] * truth + 0.1 * x[:15]
    else:
        better[:15] = random.random(15) < 0.5
    items = list(iter_items(db, "p"))
    judged(db, items[:115], better[:115])
    return write_npz(ws / "f.npz", items, x)


@pytest.mark.parametrize(("informative", "says", "method"), [
    (True, "choosing beats random", "d-optimal"), (False, "choosing does not beat random", "random")])
def test_the_gain_over_random_is_told_from_what_was_judged_and_sets_the_default(ws, db, informative, says, method):
    done = call("plan", "--project", "p", "--features", planted(db, ws, informative=informative), "--choose", 5, "--json")
    assert done.code == 0, done.err
    found = done.json["next"]
    assert found["text"].startswith(says) and found["method"] == method and found["gain"]["better"] is informative
    assert found["gain"]["low"] < found["gain"]["estimate"] < found["gain"]["high"]
    shown = call("plan", "--project", "p", "--features", ws / "f.npz")
    assert ("the default is random" in shown.out) is not informative


@pytest.mark.parametrize(("rows", "says"), [
    ([{"id": "a", "features": [1, "x"]}], "features are a list of numbers"),
    ([{"id": "a", "features": [1.0]}, {"id": "b", "features": [1.0, 2.0]}], "line 2: wanted 1 finite numbers"),
    ([{"id": "a", "features": [1.0]}, {"id": "a", "features": [1.0]}], "line 2: wanted an id, each once"),
    ([{"id": "a", "features": [1e999]}], 'line 1: wanted {"id"'),
    ([{"id": "nobody's", "features": [1.0]}], "no id in it is that of an item"),
])
def test_a_file_of_vectors_that_does_not_do_is_explained(ws, db, rows, says):
    asked(db, 2)
    done = call("plan", "--project", "p", "--features", write_lines(ws / "f.jsonl", rows), "--choose", 1)
    assert done.code == 2 and says in done.err, done.err
    assert {each.batch for each in iter_items(db, "p")} == {0}


def test_more_than_there_are_cannot_be_chosen(ws, db):
    items = asked(db, 3)
    done = call("plan", "--project", "p", "--features", write_npz(ws / "f.npz", items[:2], np.eye(2)), "--choose", 3)
    assert done.code == 2 and "2 pairs with vectors wait to be judged" in done.err


@pytest.mark.parametrize("ending", ["npz", "jsonl"])
def test_score_writes_vectors_that_the_plan_reads(ws, db, ending):
    items = asked(db, 4)
    words = ["score", "test", "--project", "p", "--out", str(ws / f"f.{ending}")]
    assert score.run(parser().parse_args(words), Terminal(json_only=True)) == 0
    done = call("plan", "--project", "p", "--features", ws / f"f.{ending}", "--choose", 2, "--json")
    assert done.code == 0 and len(done.json["next"]["arms"]) == 2 and done.json["next"]["without"] == 0
    assert {each.id for each in items} >= set(done.json["next"]["arms"])


# -- the web page and the report ------------------------------------------------------------------------------------


def test_the_report_and_the_web_page_show_the_same_figures(ws, db, monkeypatch):
    rows = [{"instruction": f"Do {at}.", "input": "", "response1": f"one {at}", "response2": f"two and more {at}", "cmp_key": "m1_m2",
             **{f"annotator{who}": (at * who) % 3 for who in (1, 2, 3)}} for at in range(12)]
    call("import", write_lines(ws / "votes.jsonl", rows), "--project", "p")
    told = call("report", "--project", "p", "--json").json
    shown = {}
    monkeypatch.setattr(agreement, "page", lambda visit, template, **facts: shown.update(facts))
    agreement.agreement("p", SimpleNamespace(db=db))
    of = lambda interval: {key: getattr(interval, key) for key in ("estimate", "low", "high", "n")}
    [question] = shown["questions"]
    for name, found in (("raw", question.raw), ("alpha", question.alpha)):
        assert told["agreement"]["preference"][name]["value"] == found.value
        assert told["agreement"]["preference"][name]["interval"] == of(found.interval)
    assert {each.name: (each.judged, each.agreement) for each in shown["raters"]} == {
        name: (row["judged"], row["one_coin"]) for name, row in told["annotators"].items()}
    assert told["left"] == of(shown["left"].rate) and told["longer"] == of(shown["longer"].rate)
    assert [(row["a"], row["b"], row["rate"]) for row in told["win_rates"]] == [(a, b, of(won.rate)) for a, b, won in shown["wins"]]
    assert shown["wins"] and told["longer"]["n"] > 1
