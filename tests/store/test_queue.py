"""Who gets which item, and what becomes of it: overlap, leases, duplicates, undo, and two at once."""

import itertools
import multiprocessing
import threading
from collections import Counter
from dataclasses import replace

import pytest
from people.rooms import PLAIN, asked, left, pair, project
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from tutelage.core.errors import UserError
from tutelage.core.words import Response
from tutelage.store.accounts import change_person, create_person
from tutelage.store.collected import collected, judgements, progress
from tutelage.store.db import open_database
from tutelage.store.feedback import Answers, Settings, add_items, change_project, iter_items
from tutelage.store.ledger import audit, verify
from tutelage.store.queue import (
    UNDO_DEPTH,
    add_turn,
    adjudicate,
    handed,
    judged_today,
    next_item,
    next_items,
    recent,
    release,
    renew,
    save_draft,
    skip,
    submit,
    undo,
)
from tutelage.store.rubrics import BUILT_IN, save_rubric
from tutelage.store.tables import items, leases, submissions


def judge(db, person: str, *, now: float, key: str = "") -> str | None:
    """Take the next item and judge it; its id."""
    got = next_item(db, person, "p", now=now)
    if got is None:
        return None
    assert submit(db, got.lease.id, person, key=key or f"{person} {now}", answers=left(), now=now).status == "stored"
    return got.item.id


# -- handing out ----------------------------------------------------------------------------------------------------


def test_a_judgement_is_stored_as_it_was_shown(db):
    project(db)
    got = next_item(db, "ann-0", "p", now=100)
    assert [response.text for response in got.shown] == [got.item.responses[place].text for place in got.lease.order]
    given = Answers(values={"preference": -2, "reason": "why"}, seconds=7.5)
    outcome = submit(db, got.lease.id, "ann-0", key="k", answers=given, now=101.5)
    [said] = judgements(db, "p")
    assert (said,) == outcome.judgements
    assert said.responses == tuple(response.id for response in got.shown)
    assert (said.judge, said.values, said.rubric, said.reason, said.seconds, said.at) == (
        "human:ann-0", (2.0, 0.0), "pairwise@1", "why", 7.5, "1970-01-01T00:01:41.500Z")
    [row] = collected(db, "p")
    assert (row.order, row.values, row.seconds) == (got.lease.order, {"preference": -2, "reason": "why"}, 7.5)


def test_a_reload_shows_the_same_item_and_prefetch_goes_ahead(db):
    project(db, items=4)
    first = next_item(db, "ann-0", "p", now=1)
    assert next_item(db, "ann-0", "p", now=2).lease.id == first.lease.id
    ahead = next_items(db, "ann-0", "p", count=3, now=3).handed
    assert [each.item.id for each in ahead] == [item.id for item in iter_items(db, "p")][:3]
    assert ahead[0].lease.id == first.lease.id
    assert next_item(db, "ann-1", "p", now=4).item.id not in {each.item.id for each in ahead}


def test_nobody_gets_an_item_that_others_fill_until_their_lease_expires(db):
    project(db, items=1)
    first = next_item(db, "ann-0", "p", now=100)
    assert next_items(db, "ann-1", "p", now=159) == ((), "finished", None)
    assert next_item(db, "ann-1", "p", now=160).item.id == first.item.id  # the lease of 60 s ends at 160


def test_overlap_is_met_by_different_people_and_never_exceeded(db):
    project(db, items=2, people=5, settings=replace(PLAIN, overlap=3, overlap_share=1.0))
    clock = itertools.count(100)
    for person in range(5):
        for _ in range(3):  # one more than there are items
            judge(db, f"ann-{person}", now=next(clock))
    said = Counter((each.item, each.person) for each in collected(db, "p"))
    assert set(said.values()) == {1}
    assert sorted(Counter(item for item, _ in said).values()) == [3, 3]


def test_the_share_with_overlap_is_chosen_by_the_hash_of_the_item(file_db):
    project(file_db, items=400, settings=replace(PLAIN, overlap=3, overlap_share=0.25))
    wanted = Counter(item.overlap for item in iter_items(file_db, "p"))
    assert set(wanted) == {1, 3}
    assert 60 <= wanted[3] <= 140  # 100 expected, sd 8.7: by chance about once in 10**5 hashes, and the hashes are fixed


def test_a_late_judgement_is_kept_while_there_is_room_and_refused_when_there_is_none(db):
    project(db, items=1)
    mine = next_item(db, "ann-0", "p", now=100)
    assert submit(db, mine.lease.id, "ann-0", key="k", answers=left(), now=500).status == "stored"  # nobody else came
    undo(db, mine.lease.id, "ann-0", now=501)
    theirs = next_item(db, "ann-1", "p", now=600)
    assert submit(db, mine.lease.id, "ann-0", key="k2", answers=left(), now=601).status == "late"  # in ann-1's hands
    assert submit(db, theirs.lease.id, "ann-1", key="k", answers=left(), now=602).status == "stored"
    refused = submit(db, mine.lease.id, "ann-0", key="k3", answers=left(), now=603)
    assert (refused.status, refused.submission, refused.judgements) == ("late", "", ())
    assert progress(db, "p", now=603).judged == 1


def test_what_came_too_late_is_taken_with_the_same_key_where_there_is_room_by_then(db):
    project(db, items=1)
    mine = next_item(db, "ann-0", "p", now=100)
    next_item(db, "ann-1", "p", now=600)
    sent = [submit(db, mine.lease.id, "ann-0", key="k", answers=left(), now=now) for now in (601, 9_000, 9_001)]
    assert [(each.status, each.duplicate) for each in sent] == [("late", False), ("stored", False), ("stored", True)]
    assert sent[1].submission == sent[2].submission and progress(db, "p", now=9_002).judged == 1


def test_one_may_have_ones_own_expired_item_again_in_the_same_order(db):
    project(db, items=1)
    first = next_item(db, "ann-0", "p", now=100)
    again = next_item(db, "ann-0", "p", now=500)
    assert (again.lease.id, again.lease.order, again.lease.expires) == (first.lease.id, first.lease.order, 560)


def test_renewing_keeps_and_releasing_gives_back(db):
    project(db, items=1)
    mine = next_item(db, "ann-0", "p", now=100).lease.id
    assert renew(db, mine, "ann-0", now=150).expires == 210
    assert next_item(db, "ann-1", "p", now=170) is None
    assert renew(db, mine, "ann-0", now=300).expires == 210  # too late: it is as if it were gone
    release(db, next_item(db, "ann-0", "p", now=301).lease.id, "ann-0", now=302)
    assert next_item(db, "ann-1", "p", now=303) is not None


def test_orders_are_balanced_over_people_and_off_when_asked(file_db):
    project(file_db, items=200, people=10)
    lefts = Counter(each.lease.order[0] for at in range(10) for each in next_items(file_db, f"ann-{at}", "p", count=20, now=1).handed)
    assert 70 <= lefts[0] <= 130 and lefts.total() == 200  # sd 7; fixed by the hash
    change_project(file_db, "p", settings=replace(PLAIN, shuffle=False), actor="boss")
    create_person(file_db, "new", "annotator", actor="boss")
    add_items(file_db, "p", [pair(1000)], actor="boss")
    assert next_item(file_db, "new", "p", now=10**6).lease.order == (0, 1)


def test_batches_come_in_order(db):
    project(db, items=[pair(0, batch=2), pair(1, batch=1), pair(2, batch=1), pair(3)])
    known = {item.id: item.batch for item in iter_items(db, "p")}
    assert [known[judge(db, "ann-0", now=now)] for now in range(4)] == [0, 1, 1, 2]


def test_skill_language_and_opt_outs_are_respected(db):
    project(db, items=[pair(0, skill="law"), pair(1, language="zh"), pair(2, harms=("violence", "hate")), pair(3)])
    plain, lawyer, chinese, gentle = [item.id for item in iter_items(db, "p")][3], *[item.id for item in iter_items(db, "p")][:3]
    change_person(db, "ann-0", languages=["en"], opt_outs=["hate"], actor="boss")
    assert [each.item.id for each in next_items(db, "ann-0", "p", count=9, now=1).handed] == [plain]
    change_person(db, "ann-0", languages=["en", "zh"], skills=["law"], opt_outs=["sexual"], actor="boss")
    assert {each.item.id for each in next_items(db, "ann-0", "p", count=9, now=2).handed} == {plain, lawyer, chinese, gentle}


def test_the_daily_limits_hold_and_begin_anew_at_midnight(db):
    project(db, items=9, settings=replace(PLAIN, daily_limit=3))
    change_person(db, "ann-1", daily_limit=2, actor="boss")
    noon = 86400 * 10.5
    assert [bool(judge(db, "ann-0", now=noon + at)) for at in range(4)] == [True] * 3 + [False]
    assert [bool(judge(db, "ann-1", now=noon + at)) for at in range(3)] == [True] * 2 + [False]
    assert next_items(db, "ann-1", "p", count=2, now=noon + 9)[1:] == ("daily-limit", 0)
    assert len(next_items(db, "ann-1", "p", count=5, now=noon + 43200).handed) == 2  # no more ahead than may be judged
    undo(db, recent(db, "ann-0", "p")[0].id, "ann-0", now=noon + 10)
    assert judged_today(db, "ann-0", now=noon + 11) == 2


def test_gold_comes_in_at_its_share_once_a_person_and_not_at_the_end(db):
    gold = [pair(100 + at, gold={"preference": -1}) for at in range(5)]
    project(db, items=[pair(at) for at in range(12)] + gold, settings=replace(PLAIN, gold_share=0.3, lease_seconds=1000.0))
    special = {item.id for item in iter_items(db, "p") if item.gold}
    had = []
    while (got := judge(db, "ann-0", now=len(had))) is not None:
        had.append(got)
    count = len(special & set(had))
    assert len(set(had)) == len(had) and len(set(had) - special) == 12
    assert 2 <= count <= 5
    change_project(db, "p", settings=replace(PLAIN, gold_share=1.0), actor="boss")
    assert judge(db, "ann-1", now=99) is None  # gold alone is not worth asking for


def test_closed_projects_and_readers_get_nothing(db):
    project(db)
    mine = next_item(db, "ann-0", "p", now=1)
    create_person(db, "looker", "reader", actor="boss")
    assert next_items(db, "looker", "p", now=1).reason == "not-allowed"
    change_project(db, "p", settings=replace(PLAIN, open=False), actor="boss")
    assert next_items(db, "ann-1", "p", now=2) == ((), "closed", None)
    assert submit(db, mine.lease.id, "ann-0", key="k", answers=left(), now=3).status == "stored"  # what is out comes back


def test_the_rubric_in_force_when_shown_is_named(db):
    project(db)
    mine = next_item(db, "ann-0", "p", now=1)
    changed = save_rubric(db, replace(BUILT_IN["pairwise"], guidelines={"en": "be kind"}), actor="boss")
    assert change_project(db, "p", rubric="pairwise", actor="boss").rubric == changed.ref == "pairwise@2"
    assert submit(db, mine.lease.id, "ann-0", key="k", answers=left(), now=2).judgements[0].rubric == "pairwise@1"
    assert next_item(db, "ann-0", "p", now=3).rubric == changed


# -- what comes back ------------------------------------------------------------------------------------------------


def test_the_same_key_again_is_the_same_outcome_stored_once(db):
    project(db, settings=replace(PLAIN, reveal=True))
    lease = next_item(db, "ann-0", "p", now=1).lease
    first = submit(db, lease.id, "ann-0", key="k", answers=left(), now=2)
    again = submit(db, lease.id, "ann-0", key="k", answers=left(3), now=9999)  # even with another content, long after
    assert again == replace(first, duplicate=True)
    assert first.reveal == tuple(("m1", "m2")[place] for place in lease.order)
    assert len(list(collected(db, "p"))) == 1


def test_another_key_for_what_was_judged_is_refused(db):
    project(db)
    lease = next_item(db, "ann-0", "p", now=1).lease.id
    submit(db, lease, "ann-0", key="k", answers=left(), now=2)
    assert submit(db, lease, "ann-0", key="other", answers=left(), now=3).status == "judged"
    with pytest.raises(UserError, match="used for another item"):
        submit(db, next_item(db, "ann-0", "p", now=4).lease.id, "ann-0", key="k", answers=left(), now=4)


@pytest.mark.parametrize("table, changed", [
    (submissions, {"seq": 1, "round": 9}),  # the same key of the same person
    (submissions, {"seq": 1, "key": "new"}),  # a second one of the same lease that was not undone
    (submissions, {"key": "new", "round": 9}),  # the same row of the log
    (leases, {}),  # the same item to the same person
])
def test_the_database_itself_refuses_a_second_one(file_db, table, changed):
    """Whatever the code does."""
    project(file_db)
    got = next_item(file_db, "ann-0", "p", now=1)
    submit(file_db, got.lease.id, "ann-0", key="k", answers=left(), now=2)
    with pytest.raises(IntegrityError, match="UNIQUE"), file_db.write() as conn:
        conn.execute(insert(table).values(**{**conn.execute(select(table)).mappings().one(), "id": "new", **changed}))


def test_a_lease_is_nobody_elses_business(db):
    project(db)
    lease = next_item(db, "ann-0", "p", now=1).lease.id
    for call in (lambda: submit(db, lease, "ann-1", key="k", answers=left(), now=2), lambda: skip(db, lease, "ann-1", reason="", now=2),
                 lambda: undo(db, lease, "ann-1", now=2), lambda: renew(db, lease, "ann-1", now=2), lambda: handed(db, lease, "ann-1"),
                 lambda: release(db, lease, "ann-1", now=2), lambda: save_draft(db, lease, "ann-1", {}),
                 lambda: submit(db, "no\0ne", "ann-0", key="k", answers=left(), now=2)):
        with pytest.raises(UserError, match="no such lease"):
            call()


def test_answers_that_do_not_fit_are_refused_and_the_lease_stays(db):
    project(db)
    lease = next_item(db, "ann-0", "p", now=1).lease.id
    with pytest.raises(UserError, match="question preference"):
        submit(db, lease, "ann-0", key="k", answers=Answers(values={"preference": 4}), now=2)
    with pytest.raises(UserError, match="key of a submission"):
        submit(db, lease, "ann-0", key="", answers=left(), now=2)
    assert submit(db, lease, "ann-0", key="k", answers=left(), now=3).status == "stored"


def test_undo_withdraws_and_hands_the_same_item_back(db):
    project(db, items=1)
    got = next_item(db, "ann-0", "p", now=1)
    first = submit(db, got.lease.id, "ann-0", key="k", answers=left(2), now=2)
    before = audit(db, kind="judgement")
    back = undo(db, got.lease.id, "ann-0", now=3)
    assert (back.item, back.lease.order, back.draft) == (got.item, got.lease.order, {"preference": -2})
    assert undo(db, got.lease.id, "ann-0", now=4).lease == back.lease  # again: nothing more
    assert list(judgements(db, "p")) == []
    assert next_item(db, "ann-1", "p", now=4) is None  # it is in ann-0's hands
    second = submit(db, got.lease.id, "ann-0", key="k2", answers=left(1), now=5)
    assert list(judgements(db, "p")) == list(second.judgements)
    everything = list(judgements(db, "p", withdrawn=True))
    assert [each.follows for each in everything] == [None, first.judgements[0].id, None]
    assert [each.flags for each in everything] == [(), ("withdrawn",), ()]
    assert audit(db, kind="judgement")[:1] == before  # nothing was edited
    assert verify(db).ok


def test_a_snapshot_reads_the_same_after_an_undo(db):
    project(db, items=1)
    got = next_item(db, "ann-0", "p", now=1)
    submit(db, got.lease.id, "ann-0", key="k", answers=left(2), now=2)
    seq = verify(db).seq
    before = list(judgements(db, "p", upto=seq))
    undo(db, got.lease.id, "ann-0", now=3)
    submit(db, got.lease.id, "ann-0", key="k2", answers=left(1), now=4)
    assert list(judgements(db, "p", upto=seq)) == before != list(judgements(db, "p"))


def test_only_the_last_ones_can_be_undone(db):
    project(db, items=UNDO_DEPTH + 1)
    for now in range(UNDO_DEPTH + 1):
        judge(db, "ann-0", now=now)
    kept = recent(db, "ann-0", "p", limit=99)
    assert len(kept) == UNDO_DEPTH + 1
    with pytest.raises(UserError, match="last 10"):
        undo(db, kept[-1].id, "ann-0", now=99)
    undo(db, kept[-2].id, "ann-0", now=99)


def test_a_skip_is_an_event_and_can_be_undone_while_there_is_room(db):
    project(db, items=1)
    mine = next_item(db, "ann-0", "p", now=1)
    assert skip(db, mine.lease.id, "ann-0", reason="not my field", now=2)
    assert not skip(db, mine.lease.id, "ann-0", reason="again", now=3)
    assert next_item(db, "ann-0", "p", now=4) is None
    assert [(each.subject, each.content["reason"]) for each in audit(db, kind="skipped")] == [(mine.item.id, "not my field")]
    assert submit(db, mine.lease.id, "ann-0", key="k", answers=left(), now=4).status == "skipped"
    assert undo(db, mine.lease.id, "ann-0", now=5).lease.state == "open"
    skip(db, mine.lease.id, "ann-0", reason="", now=6)
    judge(db, "ann-1", now=7)
    with pytest.raises(UserError, match="others have judged"):
        undo(db, mine.lease.id, "ann-0", now=8)


def test_drafts_are_kept_until_the_judgement_comes(db):
    project(db)
    lease = next_item(db, "ann-0", "p", now=1).lease.id
    save_draft(db, lease, "ann-0", {"reason": "half a se\0ntence \u202e"})
    assert next_item(db, "ann-0", "p", now=2).draft == {"reason": "half a se\0ntence \u202e"}
    submit(db, lease, "ann-0", key="k", answers=left(), now=3)
    assert handed(db, lease, "ann-0").draft is None


def test_adjudication_is_outside_the_overlap_and_by_somebody_else(db):
    project(db, items=1)
    item = judge(db, "ann-0", now=1)
    with pytest.raises(UserError, match="only adjudicators"):
        adjudicate(db, item, "ann-1", now=2)
    for name in ("ann-0", "ann-1"):
        change_person(db, name, role="adjudicator", actor="boss")
    with pytest.raises(UserError, match="somebody else"):
        adjudicate(db, item, "ann-0", now=2)
    lease = adjudicate(db, item, "ann-1", now=2).lease
    assert adjudicate(db, item, "ann-1", now=3).lease.id == lease.id
    [said] = submit(db, lease.id, "ann-1", key="k", answers=left(3), now=9999).judgements  # as late as it may be
    assert said.flags == ("adjudication",)
    assert progress(db, "p", now=4).judged == 1


def test_a_turn_of_a_chat_is_judged_by_the_one_who_had_it(db):
    project(db, items=0)
    prompt = asked("live?")
    responses = [Response(prompt_id=prompt.id, text=text, policy=text) for text in ("yes", "no")]
    turn = add_turn(db, "p", "ann-0", prompt=prompt, responses=responses, now=1)
    assert next_items(db, "ann-1", "p", now=99999).handed == ()
    submit(db, turn.lease.id, "ann-0", key="k", answers=left(), now=99999)
    undo(db, turn.lease.id, "ann-0", now=99999)
    assert next_items(db, "ann-1", "p", now=10**6).handed == ()  # undone, it is still nobody else's
    submit(db, turn.lease.id, "ann-0", key="k2", answers=left(), now=10**6)
    assert [said.judge for said in judgements(db, "p")] == ["human:ann-0"]


# -- at once --------------------------------------------------------------------------------------------------------


def at_once(calls: list) -> list:
    """Results of all calls, begun together, each in its own thread; an exception is a result."""
    gate, out = threading.Barrier(len(calls)), [None] * len(calls)

    def run(at: int) -> None:
        gate.wait()
        try:
            out[at] = calls[at]()
        except Exception as error:
            out[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def test_eight_who_race_for_the_last_item_are_not_two(db):
    project(db, items=1, people=8)
    got = at_once([lambda name=f"ann-{at}": next_item(db, name, "p", now=1) for at in range(8)])
    assert [type(each) for each in got if isinstance(each, Exception)] == []
    assert sum(each is not None for each in got) == 1


def test_one_key_sent_eight_times_at_once_is_one_judgement(db):
    project(db, items=1)
    lease = next_item(db, "ann-0", "p", now=1).lease.id
    got = at_once([lambda: submit(db, lease, "ann-0", key="k", answers=left(), now=2)] * 8)
    assert sorted(each.duplicate for each in got) == [False] + [True] * 7
    assert len({each.submission for each in got}) == 1
    assert len(list(collected(db, "p"))) == 1


def test_eight_late_judgements_at_once_do_not_exceed_the_overlap(db):
    project(db, items=1, people=8, settings=replace(PLAIN, overlap=8, overlap_share=1.0))
    lease = [next_item(db, f"ann-{at}", "p", now=1).lease.id for at in range(8)]
    with db.write() as conn:
        conn.execute(update(items).values(overlap=2))
    got = at_once([lambda at=at: submit(db, lease[at], f"ann-{at}", key="k", answers=left(), now=999) for at in range(8)])
    assert sorted(each.status for each in got) == ["late"] * 6 + ["stored"] * 2
    assert verify(db).ok


def test_an_item_that_is_locked_for_a_moment_is_waited_for(db):
    """Somebody decides about the last item and leaves it as it was: it is not "finished" for the others."""
    project(db, items=1)
    got: list = []
    waiting = threading.Thread(target=lambda: got.append(next_item(db, "ann-0", "p", now=1)))
    with db.write() as conn:
        conn.execute(select(items.c.id).with_for_update(key_share=True))
        waiting.start()
        waiting.join(0.3)
    waiting.join()
    assert got[0] is not None


def _work(address: str, person: str, out) -> None:
    db = open_database(address)
    done = 0
    while judge(db, person, now=1, key=f"{person} {done}"):
        done += 1
    out.put(done)


def test_processes_share_a_project_without_a_gap(db, address):
    project(db, items=24, people=4)
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [context.Process(target=_work, args=(address, f"ann-{at}", out)) for at in range(4)]
    for worker in workers:
        worker.start()
    assert sum(out.get(timeout=60) for _ in workers) == 24
    for worker in workers:
        worker.join()
    assert set(Counter(each.item for each in collected(db, "p")).values()) == {1}
    assert verify(db).ok


def test_whoever_waited_for_a_lock_goes_by_the_time_after_it(file_db, monkeypatch):
    """The lease runs out while a submission waits, and the item goes to somebody else: then the submission is late."""
    project(file_db, items=1)
    mine = next_item(file_db, "ann-0", "p", now=100)
    time_is = [159.0]
    monkeypatch.setattr("tutelage.store.db.time.time", lambda: time_is[0])
    with file_db.write() as conn:
        waiting = threading.Thread(target=lambda: told.append(submit(file_db, mine.lease.id, "ann-0", key="k", answers=left())))
        told: list = []
        waiting.start()
        waiting.join(0.3)  # it has begun and waits for the lock
        time_is[0] = 161.0
        conn.execute(insert(leases).values(id="theirs", item=mine.item.id, person="ann-1", project="p", purpose="judge", shown="[0,1]",
                                           rubric="pairwise@1", granted=161.0, expires=221.0, state="open", round=0, draft=""))
    waiting.join()
    assert told[0].status == "late"


def test_settings_are_checked():
    for wrong in ({"overlap": 0}, {"gold_share": 1.5}, {"lease_seconds": 0.0}, {"daily_limit": -1}, {"overlap_share": float("nan")}):
        with pytest.raises(UserError):
            Settings(**wrong)
