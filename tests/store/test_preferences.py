"""Judgements become rows for training: what each is worth, worked out by hand, and nothing of a disagreement lost."""

from fractions import Fraction

import pytest

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response
from tutelage.store.accounts import create_person
from tutelage.store.collected import collected
from tutelage.store.feedback import Answers, Item, Settings, add_items, create_project, erase_item, iter_items
from tutelage.store.ledger import last_seq
from tutelage.store.preferences import Vote, demonstration, fold, fold_pair, fold_project
from tutelage.store.queue import adjudicate, next_item, submit, undo
from tutelage.store.rubrics import BUILT_IN, Question, Rubric, save_rubric

PLAIN = Settings(overlap=9, overlap_share=1.0, gold_share=0.0, shuffle=False)
PEOPLE = ("ann", "bob", "cy", "dan")


def question(text: str = "Hi", **more) -> Prompt:
    return Prompt(messages=(Message(role="user", text=text),), **more)


def item(*texts: str, kind: str = "pair", prompt: Prompt | None = None, **more) -> Item:
    prompt = prompt or question()
    return Item(kind=kind, prompt=prompt, responses=tuple(
        Response(prompt_id=prompt.id, text=text, policy=f"m{at}") for at, text in enumerate(texts)), **more)


class Room:
    """A project in which everybody is asked, and answers by name."""

    def __init__(self, db, rubric: str = "pairwise", settings: Settings = PLAIN):
        self.db = db
        for name in PEOPLE:
            create_person(db, name, "annotator", actor="t")
        create_person(db, "judge", "adjudicator", actor="t")
        create_project(db, "p", rubric=rubric, settings=settings, actor="t")

    def add(self, *items: Item) -> None:
        add_items(self.db, "p", items, actor="t")

    def say(self, person: str, seconds: float | None = None, **values):
        got = next_item(self.db, person, "p")
        outcome = submit(self.db, got.lease.id, person, key=f"{got.lease.id}:{got.lease.round}",
                         answers=Answers(values=values, seconds=seconds))
        assert outcome.status == "stored"
        return got, outcome

    def fold(self, **more):
        return fold_project(self.db, "p", **more)


@pytest.fixture
def room(file_db):
    return Room(file_db)


# -- pairs ----------------------------------------------------------------------------------------------------------


A, B = (Response(prompt_id=question().id, text=text, policy=text) for text in "ab")


@pytest.mark.parametrize(("margins", "chosen", "soft", "strength", "why"), [
    ([2], "a", 1, 2, "one vote: certain, as far as it goes"),
    ([-3], "b", 1, 3, "the worse one is never chosen"),
    ([1, 1, -1], "a", Fraction(2, 3), Fraction(1, 3), "two of three, and the third is not forgotten"),
    ([3, -1, -1], "b", Fraction(2, 3), 0, "two slight votes against a strong one: their side, and hardly"),
    ([1, 0], "a", Fraction(3, 4), Fraction(1, 2), "a tie is half a vote for each"),
    ([0, 0], "a", Fraction(1, 2), 0, "all ties"),
    ([2, -2], "a", Fraction(1, 2), 0, "one against one is no tie in what they said, and no preference either"),
])
def test_votes_become_a_share_and_a_mean_margin(margins, chosen, soft, strength, why):
    out = fold_pair(question(), A, B, [Vote(f"p{at}", float(m), f"j{at}") for at, m in enumerate(margins)])
    assert out.chosen.text == chosen and out.rejected.text != chosen, why
    assert out.soft_label == pytest.approx(float(soft)), why
    assert out.strength == pytest.approx(float(strength)), why
    assert out.weight == 1.0 and len(out.judgements) == len(margins)


def test_where_all_agree_the_label_is_exactly_one():
    for count in range(1, 50):
        votes = [Vote(f"p{at}", -1.0, str(at)) for at in range(count)]
        assert fold_pair(question(), A, B, votes, weigh=lambda person: 0.1 + len(person) / 7).soft_label == 1.0


def test_a_vote_weighs_by_what_it_knows_beyond_chance(room):
    room.add(item("a", "b"))
    for person, value in zip(PEOPLE, (-1, 1, 1, 1), strict=True):
        room.say(person, preference=value)
    [plain] = room.fold().preferences
    assert (plain.chosen.text, plain.soft_label, plain.weight) == ("b", 0.75, 1.0)
    # 2a - 1: ann 0.8, bob 0.2, cy is a coin and dan worse than one: 0.
    [weighed] = room.fold(reliability={"ann": 0.9, "bob": 0.6, "cy": 0.5, "dan": 0.2}).preferences
    assert weighed.chosen.text == "a" and weighed.soft_label == pytest.approx(0.8)  # 0.8 / (0.8 + 0.2)
    assert weighed.weight == pytest.approx(0.25)  # (0.8 + 0.2 + 0 + 0) / 4
    # Who is not known weighs as the others do on average: (0.8 + 0.2) / 2.
    [unknown] = room.fold(reliability={"ann": 0.9, "bob": 0.6}).preferences
    assert unknown.chosen.text == "b" and unknown.soft_label == pytest.approx((0.2 + 0.5 + 0.5) / 2.0)
    # Nobody known to be better than a coin: the row stays, with weight 0.
    [nobody] = room.fold(reliability=dict.fromkeys(PEOPLE, 0.5)).preferences
    assert (nobody.soft_label, nobody.weight) == (0.75, 0.0)


def test_a_reliability_is_an_accuracy(room):
    room.add(item("a", "b"))
    room.say("ann", preference=1)
    with pytest.raises(UserError, match="accuracy from 0 to 1; got 80"):
        room.fold(reliability={"ann": 80})


def test_sides_do_not_matter_to_what_was_preferred(file_db):
    room = Room(file_db, settings=Settings(overlap=4, overlap_share=1.0, gold_share=0.0, shuffle=True))
    room.add(*(item("good", "bad", prompt=question(f"q{at}")) for at in range(6)))
    orders = set()
    for person in PEOPLE:
        for _ in range(6):
            got = next_item(file_db, person, "p")
            orders.add(got.lease.order)
            value = -1 if got.shown[0].text == "good" else 1
            submit(file_db, got.lease.id, person, key=got.lease.id, answers=Answers(values={"preference": value}))
    rows = room.fold().preferences
    assert orders == {(0, 1), (1, 0)}  # fails by chance once in 2**23 draws
    assert [(row.chosen.text, row.soft_label) for row in rows] == [("good", 1.0)] * 6


def test_reasons_are_of_those_who_agree(room):
    room.add(item("a", "b"))
    room.say("ann", preference=-1, reason="a is right")
    room.say("bob", preference=-2, reason="shorter")
    room.say("cy", preference=1, reason="b is nicer")
    [row] = room.fold().preferences
    assert row.reason == "a is right\n\nshorter"


def test_both_bad_is_a_tie_and_two_bad_answers(room):
    room.add(item("a", "b"))
    room.say("ann", preference="both_bad")
    out = room.fold()
    assert (out.preferences[0].soft_label, out.preferences[0].strength) == (0.5, 0.0)
    assert [(row.response.text, row.desirable, row.weight) for row in out.labels] == [("a", False, 1.0), ("b", False, 1.0)]


def test_the_pairs_of_a_ranking_share_the_weight_of_one(file_db):
    room = Room(file_db, "ranking")
    room.add(item("a", "b", "c", kind="set"))
    room.say("ann", ranking=[2, 1, 2])
    rows = {(row.chosen.text, row.rejected.text): row for row in room.fold().preferences}
    assert {pair: (row.soft_label, row.strength) for pair, row in rows.items()} == {
        ("b", "a"): (1.0, 1.0), ("a", "c"): (0.5, 0.0), ("b", "c"): (1.0, 1.0)}
    assert sum(row.weight for row in rows.values()) == pytest.approx(1.0)


def test_four_levels_keep_their_hesitation(file_db):
    room = Room(file_db, "pairwise-4")
    room.add(item("a", "b"))
    room.say("ann", preference=-1)  # negligibly better, or unsure
    [row] = room.fold().preferences
    assert (row.chosen.text, row.strength, row.soft_label) == ("a", 0.5, 1.0)


# -- one judgement, four data sets ----------------------------------------------------------------------------------


def test_one_judgement_gives_its_four_data_sets(file_db):
    full = Rubric(name="full", categories=("violence",), questions=(
        Question(name="preference", kind="pair"), Question(name="verdict", kind="good_bad"),
        Question(name="safety", kind="safe_unsafe"), Question(name="edit", kind="edit", required=False),
        Question(name="helpful", kind="rating")))
    save_rubric(file_db, full, actor="t")
    room = Room(file_db, "full")
    room.add(item("good enough", "harmful"))
    room.say("ann", preference=-3, verdict=[True, False], edit={"response": 0, "text": "better"}, helpful=[4, 1],
             safety=[{"unsafe": False}, {"unsafe": True, "categories": ["violence"]}])
    out = room.fold()
    pair, edited = out.preferences
    assert (pair.chosen.text, pair.strength, pair.chosen_unsafe, pair.rejected_unsafe) == ("good enough", 3.0, False, True)
    assert (edited.chosen.text, edited.rejected.text, edited.chosen.policy) == ("better", "good enough", "human:ann")
    [example] = out.examples
    assert [m.text for m in example.messages] == ["Hi", "better"] and example.author == "human:ann"
    assert [(row.response.text, row.desirable) for row in out.labels] == [("good enough", True), ("harmful", False)]
    assert [(row.response.text, row.unsafe) for row in out.safety] == [("good enough", False), ("harmful", True)]
    assert [(row.response.text, row.rating) for row in out.ratings["helpful"]] == [("good enough", 4.0), ("harmful", 1.0)]
    assert [prompt.messages[0].text for prompt in out.prompts] == ["Hi"]
    groups = {row.group for rows in (out.preferences, out.examples, out.labels, out.safety, out.ratings["helpful"]) for row in rows}
    assert groups == {question().group}  # one group, so one side of any split


def test_people_who_differ_about_an_answer_leave_both_verdicts(file_db):
    room = Room(file_db, "good-bad")
    room.add(item("a", kind="single"))
    for person, good in zip(PEOPLE, (True, True, False, True), strict=True):
        room.say(person, verdict=[good])
    assert {(row.desirable, row.weight, len(row.judgements)) for row in room.fold().labels} == {(True, 0.75, 3), (False, 0.25, 1)}


def test_an_answer_is_called_unsafe_in_a_pair_only_where_all_say_so(file_db):
    save_rubric(file_db, Rubric(name="two", questions=(*BUILT_IN["pairwise"].questions[:1], *BUILT_IN["safety"].questions[:1]),
                                categories=BUILT_IN["safety"].categories), actor="t")
    room = Room(file_db, "two")
    room.add(item("a", "b"))
    room.say("ann", preference=-1, safety=[{"unsafe": False}, {"unsafe": True}])
    room.say("bob", preference=-1, safety=[{"unsafe": True}, {"unsafe": True}])
    out = room.fold()
    assert (out.preferences[0].chosen_unsafe, out.preferences[0].rejected_unsafe) == (None, True)
    assert {(row.response.text, row.unsafe, row.weight) for row in out.safety} == {("a", False, 0.5), ("a", True, 0.5), ("b", True, 1.0)}


def test_an_edit_that_changes_nothing_teaches_nothing(file_db):
    room = Room(file_db, "edit")
    room.add(item("same", "other"))
    room.say("ann", edit={"response": 0, "text": "same "})
    out = room.fold()
    assert not out.examples and not out.preferences and out.left_out == {"edits that change nothing": 1}


def test_what_people_wrote_is_imitated_and_asked_again(file_db):
    room = Room(file_db, "write")
    room.add(Item(kind="prompt", id="empty"), Item(kind="demonstration", prompt=question("Why?")))
    room.say("ann", prompt="How?", demonstration="So.")
    room.say("ann", demonstration="Because.")
    out = room.fold()
    assert [[m.text for m in row.messages] for row in out.examples] == [["How?", "So."], ["Why?", "Because."]]
    assert {prompt.messages[0].text for prompt in out.prompts} == {"How?", "Why?"}


def test_only_the_answer_that_a_person_wrote_is_learned():
    prompt = Prompt(messages=(Message(role="user", text="1"), Message(role="assistant", text="model's"), Message(role="user", text="2")))
    assert [m.weight for m in demonstration(prompt, "human's", person="ann").messages] == [1.0, 0.0, 1.0, 1.0]


# -- what counts ----------------------------------------------------------------------------------------------------


def test_what_was_withdrawn_does_not_count_but_did_before(room):
    room.add(item("a", "b"))
    got, _ = room.say("ann", preference=-1)
    before = last_seq(room.db)
    undo(room.db, got.lease.id, "ann")
    assert room.fold().preferences == []
    room.say("ann", preference=3)
    [now] = room.fold().preferences
    [then] = room.fold(upto=before).preferences
    assert (now.chosen.text, then.chosen.text) == ("b", "a")
    everything = list(collected(room.db, "p", withdrawn=True))
    assert len(everything) == 3  # fold itself tells them apart, too
    from_all = fold_all(room, everything)
    assert [row.chosen.text for row in from_all.preferences] == ["b"] and from_all.left_out["withdrawn"] == 2


def fold_all(room, rows):
    return fold({each.id: each for each in iter_items(room.db, "p")}, rows, {"pairwise@1": BUILT_IN["pairwise"]})


def test_gold_measures_people_and_teaches_nothing(file_db):
    room = Room(file_db, settings=Settings(overlap=1, overlap_share=1.0, gold_share=1.0))
    room.add(item("a", "b", gold={"preference": -1}), item("c", "d", prompt=question("ordinary")))
    room.say("ann", preference=-1)
    out = room.fold()
    assert not out.preferences and out.left_out == {"gold and attention": 1}
    assert [prompt.messages[0].text for prompt in out.prompts] == ["ordinary"]


def test_an_adjudicator_is_one_more_vote(room):
    room.add(item("a", "b"))
    room.say("ann", preference=-1)
    got, _ = room.say("bob", preference=1)
    settled = adjudicate(room.db, got.item.id, "judge")
    submit(room.db, settled.lease.id, "judge", key="settle", answers=Answers(values={"preference": 2}))
    [row] = room.fold().preferences
    assert row.chosen.text == "b" and row.soft_label == pytest.approx(2 / 3)


def test_what_was_erased_is_gone(room):
    room.add(item("a", "b"))
    got, _ = room.say("ann", preference=-1)
    erase_item(room.db, got.item.id, actor="t", reason="asked for")
    out = room.fold()
    assert not out.preferences and not out.prompts


def test_a_rubric_with_two_comparisons_is_folded_by_one_of_them(file_db):
    questions = (Question(name="helpful", kind="pair"), Question(name="harmless", kind="pair"))
    save_rubric(file_db, Rubric(name="two", questions=questions), actor="t")
    room = Room(file_db, "two")
    room.add(item("a", "b"))
    room.say("ann", helpful=-1, harmless=2)
    first, other = room.fold(), room.fold(question="harmless")
    assert [row.chosen.text for row in first.preferences] == ["a"] and first.left_out == {"another question": 1}
    assert [row.chosen.text for row in other.preferences] == ["b"]


def test_the_caller_says_what_belongs_together(room):
    room.add(item("a", "b"), item("c", "d", prompt=question("Hi again")))
    room.say("ann", preference=-1)
    room.say("ann", preference=-1)
    assert len({row.group for row in room.fold().preferences}) == 2
    assert {row.group for row in room.fold(group_of=lambda prompt: "one").preferences} == {"one"}
