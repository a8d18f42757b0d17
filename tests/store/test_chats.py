"""Live chats in the database: turns that are items, an order drawn once, a conversation read back."""

import threading
from dataclasses import replace

import pytest
from people.rooms import PLAIN, project
from sqlalchemy import delete

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response
from tutelage.store.chat_settings import ChatSettings
from tutelage.store.chats import best, conversation, goes_on, opening, task
from tutelage.store.collected import collected, comparisons, progress
from tutelage.store.feedback import Answers, Item, Settings, add_items, change_project, create_project, load_project
from tutelage.store.ledger import verify
from tutelage.store.preferences import fold_project
from tutelage.store.queue import add_turn, chat_of, handed, left_in_batch, next_item, next_items, skip, submit, undo
from tutelage.store.rubrics import BUILT_IN
from tutelage.store.tables import contents

TWO = ChatSettings(a="http://host:8000/v1#alpha", b="http://host:8000/v1#beta", b_key="LAB_API_KEY")


def begin(db, *, chats=1, **settings):
    """A project of chats; the first of them in ann-0's hands."""
    project(db, items=0)
    change_project(db, "p", settings=replace(PLAIN, chat=TWO, **settings), actor="boss")
    add_items(db, "p", [Item(kind="chat", id=f"c{at}") for at in range(chats)], actor="boss")
    return next_item(db, "ann-0", "p", now=1)


def say(db, chat, text, *, number=0, now=2.0):
    messages = (*conversation(db, chat).messages, Message(role="user", text=text))
    prompt = Prompt(messages=messages)
    responses = [Response(prompt_id=prompt.id, text=f"{name} to {text}", policy=name, index=at)
                 for at, name in enumerate(("alpha", "beta"))]
    return add_turn(db, "p", "ann-0", prompt=prompt, responses=responses, chat=chat, number=number, now=now)


def judge(db, turn, value, key):
    return submit(db, turn.lease.id, "ann-0", key=key, answers=Answers(values={"preference": value}), now=3)


def test_a_conversation_is_read_back_from_its_turns(db):
    chat = begin(db)
    assert conversation(db, chat) == (0, None, ())
    first = say(db, chat, "one\0 \u202e")
    talk = conversation(db, chat)
    assert (talk.turns, talk.waits, [each.text for each in talk.messages]) == (1, True, ["one\0 \u202e"])
    judge(db, first, 2, "k1")
    second = say(db, chat, "two", number=1)
    assert second.lease.order == first.lease.order and chat_of(second.item.id) == chat.lease.id
    judge(db, second, -1, "k2")
    talk = conversation(db, chat)
    right, left = first.shown[1].text, second.shown[0].text
    assert (talk.turns, talk.waits) == (2, False)
    assert [each.text for each in talk.messages] == ["one\0 \u202e", right, "two", left]
    assert [row.outcome for row in comparisons(db, "p")] == [2, -1]
    assert submit(db, chat.lease.id, "ann-0", key="end", answers=Answers(), now=4).status == "stored"
    assert progress(db, "p", now=5).judged == 3 and verify(db).ok


def test_an_undone_judgement_waits_again_and_another_answer_may_go_on(db):
    chat = begin(db)
    turn = say(db, chat, "one")
    judge(db, turn, 3, "k1")
    undo(db, turn.lease.id, "ann-0", now=4)
    assert conversation(db, chat).waits
    judge(db, turn, -3, "k2")
    assert conversation(db, chat).messages[-1].text == turn.shown[0].text


def test_a_tie_and_a_skip_go_on_with_what_was_drawn_half_of_the_time_each(db):
    chat = begin(db)
    turn = say(db, chat, "one")
    skip(db, turn.lease.id, "ann-0", reason="unclear", now=3)
    talk = conversation(db, chat)
    assert not talk.waits and talk.messages[-1].text == turn.shown[goes_on(turn, {})].text
    drawn = [goes_on(replace(turn, item=replace(turn.item, id=str(at))), {"preference": 0}) for at in range(400)]
    assert 150 < sum(drawn) < 250  # by chance outside about once in 10**6 choices of ids, and these are fixed


def test_a_turn_that_is_sent_at_once_from_two_sides_is_there_once(db):
    chat = begin(db)
    gate, out = threading.Barrier(4), []

    def send(at):
        gate.wait()
        out.append(say(db, chat, f"text {at}"))

    threads = [threading.Thread(target=send, args=(at,)) for at in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert len(out) == 4 and len({turn.lease.id for turn in out}) == len({turn.item.prompt.id for turn in out}) == 1
    assert conversation(db, chat).turns == 1 and verify(db).ok


def test_a_turn_reveals_no_model_while_the_conversation_may_go_on(db):
    chat = begin(db, reveal=True)
    turn = say(db, chat, "one")
    assert judge(db, turn, 1, "k").reveal == judge(db, turn, 1, "k").reveal == ()
    assert judge(db, turn, 1, "k").duplicate


def test_nobody_else_is_handed_a_turn_and_an_expired_chat_goes_on_where_it_was(db):
    chat = begin(db)
    judge(db, say(db, chat, "one"), 1, "k")
    later = 10**6
    assert next_items(db, "ann-1", "p", now=later).handed[0].item.kind == "chat", "the chat itself, for it has expired"
    with pytest.raises(UserError, match="no such lease"):
        handed(db, conversation(db, chat).last.lease.id, "ann-1")
    again = next_item(db, "ann-0", "p", now=2 * later)
    assert again.lease.id == chat.lease.id and conversation(db, again).turns == 1


def test_an_erased_judgement_leaves_the_conversation_readable(db):
    chat = begin(db)
    judge(db, say(db, chat, "one"), 3, "k")
    said = next(collected(db, "p"))
    with db.write() as conn:
        conn.execute(delete(contents).where(contents.c.seq == said.seq))
    assert len(conversation(db, chat).messages) == 2


@pytest.mark.parametrize("wrong", [
    {"a": "http://me:sk-123@host/v1#m"}, {"a": "http://host/v1?key=sk-123#m"}, {"a": "sk-123"}, {"a": ""}, {"b": "http://host/v1"},
    {"a_key": "sk-123"}, {"b_key": "PATH"}, {"b": TWO.a}, {"max_tokens": 0}, {"turns": 101}, {"temperature": 2.5}, {"seconds": 0.0}])
def test_settings_that_hold_a_key_or_make_no_sense_are_refused_without_repeating_it(wrong):
    with pytest.raises(UserError, match="chat") as caught:
        replace(TWO, **wrong)
    assert "sk-123" not in str(caught.value)


def test_settings_come_back_as_they_were(db):
    begin(db)
    assert load_project(db, "p").settings.chat == TWO
    assert load_project(db, "p").settings.chat.engines == ((TWO.a, ""), (TWO.b, "LAB_API_KEY"))
    create_project(db, "q", rubric="pairwise", settings=Settings(), actor="boss")
    assert load_project(db, "q").settings.chat is None


def test_a_task_for_people_is_no_prompt_to_learn_from(db):
    said = (Message(role="system", text="s"), Message(role="user", text="try this"))
    begin(db)
    add_items(db, "p", [Item(kind="chat", prompt=Prompt(messages=said))], actor="boss")
    assert (opening(Prompt(messages=said)), task(Prompt(messages=said))) == (said[:1], "try this")
    assert (opening(Prompt(messages=said[:1])), task(None)) == (said[:1], "")
    assert fold_project(db, "p").prompts == []


def test_a_batch_counts_what_is_held_and_what_is_free(db):
    chat = begin(db, chats=3)
    count = lambda who, now=2.0: left_in_batch(db, who, "p", 0, now=now)
    assert (count("ann-0"), count("ann-1"), left_in_batch(db, "ann-0", "p", 1, now=2)) == (3, 2, 0), "one is in ann-0's hands alone"
    judge(db, say(db, chat, "one"), 1, "k")
    assert count("ann-0") == 3, "a turn is no item of the batch"
    submit(db, chat.lease.id, "ann-0", key="end", answers=Answers(), now=4)
    assert count("ann-0") == 2 and left_in_batch(db, "ann-0", "p", 0, most=1, now=2) == 1


@pytest.mark.parametrize("rubric, values, drawn, goes_on", [
    ("pairwise", {"preference": -1}, 1, 0),
    ("pairwise", {"preference": 0}, 1, 1),  # a tie: as drawn
    ("pairwise", {"preference": "both_bad"}, 0, 0),
    ("pairwise", {}, 1, 1),  # skipped
    ("pairwise-4", {"preference": 1}, 0, 1),
    ("ranking", {"ranking": [2, 1]}, 0, 1),
    ("ratings", {"helpful": [3, 3], "harmless": [2, 5]}, 0, 1),  # the first question that tells
    ("good-bad", {"verdict": [False, True]}, 0, 1),
    ("good-bad", {"verdict": [True, True]}, 1, 1),
    ("safety", {"safety": [{"unsafe": True, "categories": []}, {"unsafe": False}]}, 0, 1),
    ("edit", {"preference": 2, "edit": {"response": 0, "text": "x"}}, 0, 1),
])
def test_the_conversation_goes_on_with_the_answer_that_was_judged_better(rubric, values, drawn, goes_on):
    assert best(BUILT_IN[rubric], values, drawn=drawn) == goes_on
