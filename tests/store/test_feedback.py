"""Projects and items: what goes in comes out, once; and what people said is read back from it."""

from dataclasses import replace

import pytest
from people.rooms import PLAIN, asked, pair, project

from tutelage.core.errors import UserError
from tutelage.core.words import Response
from tutelage.store.accounts import change_person
from tutelage.store.collected import collected, comparisons, disagreements, gold_checks, progress, written
from tutelage.store.feedback import (
    EVERYBODY,
    Answers,
    Item,
    Settings,
    add_items,
    change_project,
    create_project,
    iter_items,
    list_projects,
    load_item,
    load_project,
)
from tutelage.store.ledger import audit
from tutelage.store.queue import adjudicate, next_item, skip, submit
from tutelage.store.rubrics import Question, Rubric, save_rubric

BOTH = replace(PLAIN, overlap=2, overlap_share=1.0)


def say(db, person: str, value, *, question: str = "preference", now: float = 1.0, own_order: bool = True) -> str:
    """Judge the next item; a pair's value is meant for the item's own order, whatever was shown."""
    got = next_item(db, person, "p", now=now)
    if own_order and got.lease.order == (1, 0):
        value = -value if isinstance(value, int) else value[::-1] if isinstance(value, list) else value
    submit(db, got.lease.id, person, key=got.lease.id, answers=Answers(values={question: value}, seconds=3.0), now=now)
    return got.item.id


def test_hostile_text_comes_back_as_it_was(db):
    prompt = asked("<script>alert(1)</script> \0 \u202e gnp.exe \U0001f600 '; DROP TABLE items; --")
    item = Item(kind="single", prompt=prompt, responses=(Response(prompt_id=prompt.id, text="ж" * 1_000_000 + "\0"),), harms=("hate",))
    project(db, items=[item])
    [kept] = iter_items(db, "p")
    assert (kept.prompt, kept.responses, kept.harms, load_item(db, kept.id)) == (item.prompt, item.responses, item.harms, kept)


def test_adding_the_same_items_again_adds_nothing(db):
    project(db, items=2)
    assert add_items(db, "p", [pair(0), pair(5), pair(1), pair(5)], actor="boss") == (1, 3)
    assert add_items(db, "p", [pair(0, batch=1), pair(0, gold={"preference": 1})], actor="boss") == (2, 0)  # asked anew, on purpose
    assert [item.overlap for item in iter_items(db, "p")] == [1, 1, 1, 1, EVERYBODY]
    assert len(audit(db, kind="item")) == 5


def test_items_take_language_skill_and_overlap_from_the_project_unless_they_have_their_own(db):
    project(db, items=[pair(0), pair(1, language="zh", skill="law", overlap=5)],
            settings=replace(PLAIN, language="en", skill="maths"))
    assert [(item.language, item.skill, item.overlap) for item in iter_items(db, "p")] == [("en", "maths", 1), ("zh", "law", 5)]


def test_projects_are_kept_and_every_state_of_them_is_in_the_log(db):
    made = create_project(db, "p", rubric="ratings", title="评分", settings=Settings(daily_limit=7), actor="boss", now=5)
    assert load_project(db, "p") == made and made.rubric == "ratings@1"
    changed = change_project(db, "p", title="Ratings", actor="boss", now=6)
    assert list_projects(db) == [changed] and changed.settings.daily_limit == 7
    assert [each.content["title"] for each in audit(db, kind="project")] == ["评分", "Ratings"]
    with pytest.raises(UserError, match="is there already"):
        create_project(db, "p", rubric="ratings", actor="boss")
    with pytest.raises(UserError, match="no project"):
        load_project(db, "q")
    with pytest.raises(UserError, match="no rubric"):
        create_project(db, "q", rubric="ratngs", actor="boss")


@pytest.mark.parametrize("make, told", [
    (lambda: pair(kind="pear"), "TypeError|multiple"), (lambda: Item(kind="pear"), "did you mean"),
    (lambda: replace(pair(), responses=pair().responses[:1]), "has 2 to 2 responses"),
    (lambda: replace(pair(), responses=pair().responses[:1] * 2), "same id"), (lambda: replace(pair(), prompt=None), "needs a prompt"),
    (lambda: pair(attention=True), "expected answer"), (lambda: pair(arm="left"), "random"), (lambda: pair(batch=-1), "batch"),
    (lambda: pair(skill="\n"), "can be seen"), (lambda: pair(harms=("a\0",)), "can be seen"),
])
def test_an_item_that_cannot_be_asked_is_refused(make, told):
    with pytest.raises((UserError, TypeError), match=told):
        make()


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "ä", "x" * 65, "a\0", ".x", 7, None, "a\u202eb"])
def test_a_name_that_does_not_do_is_refused(file_db, name):
    with pytest.raises(UserError, match="name of"):
        create_project(file_db, name, rubric="pairwise", actor="boss")


def test_gold_that_does_not_fit_the_rubric_is_refused_when_it_is_added(file_db):
    with pytest.raises(UserError, match="question preference"):
        project(file_db, items=[pair(gold={"preference": 9})])


def test_comparisons_name_the_policies_as_shown(db):
    project(db, items=12, people=1)
    for now in range(12):
        say(db, "ann-0", -2, now=now)  # m1 is better by 2
    rows = comparisons(db, "p")
    assert {(row.left, row.right, row.outcome) for row in rows} == {("m1", "m2", -2.0), ("m2", "m1", 2.0)}  # both orders were drawn
    assert {(row.person, row.seconds, row.left_length, row.arm, row.both_bad) for row in rows} == {("ann-0", 3.0, 1, "random", False)}


def test_disagreements_are_those_of_side_and_are_settled_by_adjudication(db):
    project(db, items=3, settings=BOTH)
    ids = [item.id for item in iter_items(db, "p")]
    for number, (first, second) in enumerate(((-1, -3), (-1, 1), (0, 2))):  # the same side, other sides, tie or not
        assert say(db, "ann-0", first, now=number) == say(db, "ann-1", second, now=number) == ids[number]
    found = {each.item: each for each in disagreements(db, "p")}
    assert set(found) == set(ids[1:])
    assert found[ids[1]].values == {"ann-0": (1.0, 0.0), "ann-1": (0.0, 1.0)}  # in the item's own order
    change_person(db, "ann-1", role="adjudicator", actor="boss")
    with pytest.raises(UserError, match="somebody else"):
        adjudicate(db, ids[1], "ann-1")
    assert not found[ids[1]].adjudicated


def test_ratings_one_step_apart_are_no_disagreement(db):
    save_rubric(db, Rubric(name="r", questions=(Question(name="q", kind="rating"),)), actor="boss")
    project(db, items=2, settings=BOTH, rubric="r")
    for now, (first, second) in enumerate((([2, 5], [3, 4]), ([2, 5], [4, 5]))):
        say(db, "ann-0", first, question="q", now=now)
        last = say(db, "ann-1", second, question="q", now=now)
    assert [each.item for each in disagreements(db, "p")] == [last]


@pytest.mark.parametrize("attention, value, right", [(False, -1, True), (False, -3, True), (False, 0, False), (False, 2, False),
                                                     (True, -3, True), (True, -2, False)])
def test_gold_is_met_on_its_side_and_attention_exactly(file_db, attention, value, right):
    project(file_db, items=[pair(at) for at in range(9)] + [pair(9, gold={"preference": -3}, attention=attention)], people=8,
            settings=replace(PLAIN, gold_share=1.0))
    for name in [f"ann-{at}" for at in range(8)]:
        say(file_db, name, value)
    assert {check[1:4] for check in gold_checks(file_db, "p")} == {(f"ann-{at}", right, attention) for at in range(8)}
    assert len({each.order for each in collected(file_db, "p")}) == 2  # both orders were drawn


def test_what_people_write_becomes_prompts_and_demonstrations(db):
    project(db, rubric="write", people=1, items=[
        Item(kind="prompt", id="wanted-1", language="en"), Item(kind="demonstration", prompt=asked("2 + 2?"))])
    with pytest.raises(UserError, match="question prompt: an answer is needed"):
        say(db, "ann-0", "four", question="demonstration")
    say(db, "ann-0", "Why is the sky blue?", question="prompt")
    say(db, "ann-0", "four", question="demonstration", now=2)
    first, second = written(db, "p")
    assert (first.prompt.messages[-1].text, first.prompt.source, first.prompt.tag("lang"), first.demonstration) == (
        "Why is the sky blue?", "human:ann-0", "en", None)
    assert (second.prompt, second.demonstration) == (asked("2 + 2?"), "four")


def test_progress_counts_by_person_and_batch_and_gold_apart(db):
    project(db, items=[pair(0), pair(1), pair(2, batch=1), pair(9, gold={"preference": 1})], settings=BOTH)
    for now in range(2):
        say(db, "ann-0", 1, now=now)
    say(db, "ann-1", 1, now=5)
    skip(db, next_item(db, "ann-1", "p", now=6).lease.id, "ann-1", reason="", now=6)
    next_item(db, "ann-1", "p", now=7)
    far = progress(db, "p", now=8)
    assert (far.items, far.wanted, far.judged, far.complete, far.open_leases, far.skipped, far.gold_items) == (3, 6, 3, 1, 1, 1, 1)
    assert far.people == {"ann-0": (2, 0, 6.0, 1.0), "ann-1": (1, 1, 3.0, 5.0)}
    assert far.batches == {0: (3, 4), 1: (0, 2)}
    assert progress(db, "p", now=99).open_leases == 0  # expired


def test_an_empty_project_has_nothing_and_says_so(db):
    project(db, items=0)
    assert progress(db, "p")[:3] == (0, 0, 0)
    assert comparisons(db, "p") == disagreements(db, "p") == gold_checks(db, "p") == written(db, "p") == []
