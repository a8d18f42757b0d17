"""One reckoning of what people said: counted by hand, the same for the report and the web page."""

import pytest

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response
from tutelage.stats.agreement import krippendorff_alpha
from tutelage.stats.people_winrate import people_win_rate
from tutelage.store.accounts import create_person
from tutelage.store.answers import Answers
from tutelage.store.arms import put_first, waiting
from tutelage.store.collected import collected, disagreements, gold_checks
from tutelage.store.feedback import Item, Settings, add_items, change_project, create_project, iter_items
from tutelage.store.figures import (
    by_person,
    by_question,
    comparisons_of,
    figures,
    groups_of,
    left_preferred,
    longer_preferred,
    model_votes,
    votes_of,
    win_rates,
)
from tutelage.store.ledger import audit, verify
from tutelage.store.queue import adjudicate, next_item, submit

# one row an item: what ann and bob said in the item's own order; above 0 its first answer, of m1, is better
SAID = [(2, 1), (3, -1), (0, 0), (-2, -2), (1, 1), (-1, 0)]


def pair(at: int, **more) -> Item:
    prompt = Prompt(messages=(Message(role="user", text=f"q{at}"),), group=f"g{at // 2}")
    said = ((f"long answer {at}", "m1"), (f"short {at}", "m2"))
    return Item(kind="pair", prompt=prompt, responses=tuple(
        Response(prompt_id=prompt.id, text=text, policy=model) for text, model in said), **more)


@pytest.fixture
def told(file_db):
    """Six items that ann and bob judged, a gold item that ann got right, and an adjudicated one."""
    create_project(file_db, "p", rubric="pairwise", settings=Settings(overlap=2, overlap_share=1.0, gold_share=0.0), actor="t")
    for name, role in (("ann", "annotator"), ("bob", "annotator"), ("eve", "adjudicator")):
        create_person(file_db, name, role, actor="t")
    add_items(file_db, "p", [pair(at) for at in range(len(SAID))], actor="t")
    for person, said in (("ann", [a for a, _ in SAID]), ("bob", [b for _, b in SAID])):
        for value in said:
            _say(file_db, next_item(file_db, person, "p"), person, value)
    handed = adjudicate(file_db, [item.id for item in iter_items(file_db, "p")][1], "eve")
    _say(file_db, handed, "eve", -3)
    return file_db


def _say(db, handed, person: str, value: int) -> None:
    shown = -value if handed.lease.order[0] == 0 else value  # the form: below 0 the left one is better
    answers = Answers(values={"preference": shown}, seconds=2.0)
    assert submit(db, handed.lease.id, person, key=handed.lease.id, answers=answers).status == "stored"


def test_agreement_is_that_of_the_votes_counted_by_hand(told):
    votes = votes_of(told, "p")
    [found] = by_question(votes.rows, groups=groups_of(votes))
    assert found.raw.value == pytest.approx(4 / 6) and found.raw.n == 6  # the same side or both a tie: four of six
    table = list(zip(*SAID, strict=True))  # in the item's own order, whatever was shown
    assert {row.order for row in votes.rows} == {(0, 1), (1, 0)}
    assert found.alpha.value == pytest.approx(krippendorff_alpha(table, scale="ordinal").value, abs=1e-12)
    assert found.raw.interval.n == found.alpha.interval.n == 3, "prompts of one group are drawn together"


def test_bias_and_win_rates_are_counted_by_hand(told):
    compared = comparisons_of(votes_of(told, "p"))
    [(a, b, won)] = win_rates(compared)
    assert (a, b, won.wins, won.ties, won.losses) == ("m1", "m2", 5, 3, 4)  # the adjudicator's is no vote of the crowd
    longer = longer_preferred(compared)
    assert (longer.wins, longer.losses) == (5, 4)  # m1's answers are the longer ones
    left = left_preferred(compared)
    rows = list(collected(told, "p"))
    by_hand = sum((row.judgements[0].values[0] > row.judgements[0].values[1]) for row in rows if row.purpose == "judge")
    assert (left.wins, left.wins + left.losses) == (by_hand, 9)


def test_people_are_listed_with_gold_apart(told):
    add_items(told, "p", [pair(9, gold={"preference": -1}), pair(8)], actor="t")
    change_project(told, "p", settings=Settings(gold_share=1.0), actor="t")
    _say(told, next_item(told, "ann", "p"), "ann", 2)
    rows = {row.name: row for row in by_person(told, "p", votes_of(told, "p"))}
    assert rows["ann"].judged == rows["bob"].judged == 6 and rows["ann"].gold.n == 1 and rows["bob"].gold is None
    assert rows["ann"].shared == 6 and rows["ann"].left.n + rows["ann"].left.ties == 6
    assert "less than 3 s" in rows["ann"].warning
    assert [check.person for check in gold_checks(told, "p")] == ["ann"] and not gold_checks(told, "p", person="bob")


def test_intervals_of_rates_are_wider_where_prompts_come_back(told):
    """Two-way clustering never narrows; here each group holds two items with two votes each."""
    votes = model_votes(comparisons_of(votes_of(told, "p")))
    assert {vote.unit for vote in votes} == {"g0", "g1", "g2"}
    once, twice = (people_win_rate(votes, "m1", "m2", by_unit=by).rate for by in (False, True))
    [(_, _, shown)] = win_rates(comparisons_of(votes_of(told, "p")))
    assert shown.rate == twice and twice.high - twice.low > once.high - once.low


def test_only_items_with_two_judgements_can_differ(told):
    add_items(told, "p", [pair(7)], actor="t")
    found = {each.item: each.adjudicated for each in disagreements(told, "p")}
    ids = [item.id for item in iter_items(told, "p")]
    assert found == {ids[1]: True, ids[5]: False}


def test_figures_are_the_same_parts(told):
    found = figures(told, "p")
    votes = votes_of(told, "p")
    assert found.questions == by_question(votes.rows, groups=groups_of(votes)) and found.people == by_person(told, "p", votes)
    assert found.wins == win_rates(comparisons_of(votes)) and found.comparisons == 12 and found.ties == 3


# -- arms -----------------------------------------------------------------------------------------------------------


def test_what_was_chosen_is_handed_out_first_and_keeps_its_arm(db):
    create_project(db, "p", rubric="pairwise", settings=Settings(overlap=1, overlap_share=0.0, gold_share=0.0), actor="t")
    create_person(db, "ann", "annotator", actor="t")
    add_items(db, "p", [pair(at) for at in range(6)], actor="t")
    ids = waiting(db, "p")
    put_first(db, "p", {ids[4]: "active", ids[2]: "random"}, actor="boss")
    assert waiting(db, "p") == [ids[2], ids[4], ids[0], ids[1], ids[3], ids[5]]
    handed = next_item(db, "ann", "p")
    assert handed.lease.item == ids[2]
    submit(db, handed.lease.id, "ann", key="k", answers=Answers(values={"preference": 1}))
    put_first(db, "p", {ids[5]: "active"}, actor="boss")  # item 4 waits and was not chosen again
    assert waiting(db, "p") == [ids[5], ids[4], ids[0], ids[1], ids[3]]
    assert {item.id for item in iter_items(db, "p") if item.arm == "active"} == {ids[5]}
    assert [entry.content for entry in audit(db, kind="plan")][-1] == {"active": [ids[5]], "random": []} and verify(db).ok
    assert add_items(db, "p", [pair(at) for at in range(6)], actor="t").new == 0, "an item that was moved is still the same item"
    with pytest.raises(UserError, match="not waiting"):
        put_first(db, "p", {ids[2]: "active"}, actor="boss")
