"""What an annotator is told: faults in the visitor's language, how many items a batch still has, and how often programs may call."""

import time

import pytest
from web_world import PLAIN, item_of, pairs

from tutelage.core.errors import UserError
from tutelage.store import queue, signin
from tutelage.store.answers import Answers
from tutelage.store.feedback import Item, Settings, add_items, create_project
from tutelage.store.queue import left_in_batch
from tutelage.store.rubrics import Question, Rubric, save_rubric
from tutelage.web import auth
from tutelage.web.auth import Calls
from tutelage.web.faults import FAULTS, in_words, language_of
from tutelage.web.texts import catalogue, speaker


def raised(call):
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def from_the_store(db):
    """The message of each fault, raised where it comes from: name of the fault -> message."""
    create_project(db, "rated", rubric="ratings", settings=PLAIN, actor="tests")
    add_items(db, "rated", [item_of(["a"])], actor="tests")
    create_project(db, "texts", rubric="write", settings=PLAIN, actor="tests")
    add_items(db, "texts", [Item(kind="prompt", id="w")], actor="tests")
    create_project(db, "shut", rubric="pairwise", settings=Settings(open=False), actor="tests")
    rated, text, pair = (queue.next_item(db, "ann-2", name) for name in ("rated", "texts", "demo"))
    send = lambda handed, values, key="k": lambda: queue.submit(db, handed.lease.id, "ann-2", key=key, answers=Answers(values=values))
    out = {
        "needed": raised(send(rated, {"helpful": [3]})),
        "unfit": raised(send(pair, {"preference": 9})),
        "too_long": raised(send(text, {"prompt": "x" * 8_000_001})),
        "lease": raised(lambda: queue.submit(db, "nope", "ann-2", key="k", answers=Answers(values={}))),
        "no_project": raised(lambda: queue.next_item(db, "ann-2", "nowhere")),
        "closed": raised(lambda: queue.add_turn(db, "shut", "ann-2", prompt=pair.item.prompt, responses=pair.item.responses)),
        "password": raised(lambda: signin.check_password(db, "ann-2", "wrong words")),
        "link": raised(lambda: signin.use_link(db, "nope")),
        "password_length": raised(lambda: signin.set_password(db, "ann-2", "short", actor="tests")),
        "password_weak": raised(lambda: signin.set_password(db, "ann-2", "aaaaaaaaaaaa", actor="tests")),
    }
    easy = Rubric(name="easy", questions=(Question(name="preference", kind="pair", required=False),
                                          Question(name="reason", kind="reason", required=False, min_length=5)))
    save_rubric(db, easy, actor="tests")
    create_project(db, "easy", rubric="easy", settings=Settings(overlap=1, overlap_share=1, gold_share=0), actor="tests")
    add_items(db, "easy", [item_of([f"a{at}", "b"]) for at in range(12)], actor="tests")
    first = queue.next_item(db, "ann-2", "easy")
    out["nothing"] = raised(send(first, {}))
    out["short"] = raised(send(first, {"reason": "hm"}))
    queue.skip(db, first.lease.id, "ann-2", reason="broken")
    other = queue.next_item(db, "the-annotator", "easy")
    queue.submit(db, other.lease.id, "the-annotator", key="k", answers=Answers(values={"preference": 1}))
    out["undo_gone"] = raised(lambda: queue.undo(db, first.lease.id, "ann-2"))
    for at in range(11):
        handed = queue.next_item(db, "ann-2", "easy")
        queue.submit(db, handed.lease.id, "ann-2", key=f"e{at}", answers=Answers(values={"preference": 1}), now=time.time() + at)
    out["undo_old"] = raised(lambda: queue.undo(db, first.lease.id, "ann-2"))
    for _ in range(5):
        out["locked"] = raised(lambda: signin.check_password(db, "the-reader", "wrong words"))
    out["locked"] = raised(lambda: signin.check_password(db, "the-reader", "wrong words"))
    return out


def from_the_pages(browser):
    """Likewise, as a program is told them: in English, by the browser's language."""
    english = {"accept": "application/json", "accept-language": "en"}
    told = lambda response: response.json()["error"]["message"]
    ann, reader = browser("the-annotator"), browser("the-reader")
    return {
        "signin": told(browser().get("/annotate/demo", headers=english)),
        "role": told(reader.get("/annotate/demo", headers=english)),
        "old_form": told(ann.post("/annotate/demo/undo", data={"csrf": "x"}, headers=english)),
        "other_site": told(ann.submit("/annotate/demo/undo", headers={**english, "sec-fetch-site": "cross-site"})),
        "nowhere": told(ann.get("/no/such/page", headers=english)),
        "tries": [told(browser().post("/signin", data={"name": "x"}, headers=english)) if at == 31 else browser().post(
            "/signin", data={"name": "x", "password": "y"}) for at in range(32)][-1],
    }


def test_every_fault_that_an_annotator_can_meet_is_known_by_its_words(browser, db, monkeypatch):
    monkeypatch.setattr(signin, "_matches", lambda hashed, password: False)  # argon2 forty times would take long
    english, chinese = speaker("en"), speaker("zh")
    met = from_the_pages(browser) | from_the_store(db)
    assert set(met) == set(FAULTS)
    for name, message in met.items():
        found = FAULTS[name].fullmatch(message)
        assert found, (name, message)
        first = next(key for key, pattern in FAULTS.items() if pattern.fullmatch(message))
        assert first == name, "no other pattern comes before"
        values = found.groupdict()
        assert in_words(message, chinese) == catalogue("zh")[f"fault.{name}"].format(**values)
        assert language_of(in_words(message, chinese)) == "zh" and language_of(in_words(message, english)) == "en"
        assert all(value in in_words(message, chinese) for value in values.values())
    assert in_words("something else", chinese) == "something else"


def test_a_chinese_page_tells_faults_in_chinese_and_the_api_in_english(browser, db):
    client = browser("the-annotator")
    client.cookies.set("lang", "zh")
    page = client.get("/annotate/demo").text
    lease = page.split('action="/lease/')[1].split('"')[0]
    told = client.submit(f"/lease/{lease}", {"key": "k"})
    assert told.status_code == 400 and '<span lang="zh">问题 preference：请作答</span>' in told.text
    by_script = client.submit(f"/lease/{lease}", {"key": "k"}, headers={"accept": "application/json"})
    assert by_script.json()["error"]["message"] == "问题 preference：请作答"
    assert '<p class="fault" role="alert" lang="zh">此处没有内容</p>' in client.get("/nope").text
    stranger = browser()
    stranger.cookies.set("lang", "zh")
    assert '<span lang="zh">用户名或密码错误</span>' in stranger.post("/signin", data={"name": "x", "password": "y"}).text
    token = signin.make_token(db, "the-annotator", title="t", scopes=["judge"], actor="tests").secret
    by_program = client.post(f"/api/v1/leases/{lease}", json={"key": "k", "values": {}}, headers={"authorization": f"Bearer {token}"})
    assert by_program.json()["error"]["message"].startswith("question preference: an answer is needed")


# -- left in the batch ------------------------------------------------------------------------------------------------


def test_the_bar_says_how_many_items_of_the_batch_are_left_for_this_person(browser, db):
    create_project(db, "p", rubric="pairwise", settings=PLAIN, actor="tests")
    rows = [(3, {}), (2, {"batch": 1}), (1, {"skill": "law"}), (1, {"harms": ("hate",)})]
    for at, (count, more) in enumerate(rows):
        add_items(db, "p", [item_of(["a", "b"], text=f"{at}.{number}", **more) for number in range(count)], actor="tests")
    client = browser("the-annotator")
    client.submit("/account/opt-outs", {"category": ["hate"]})
    for left in (3, 2, 1, 2, 1):  # the first batch, then the second
        page = client.get("/annotate/p").text
        assert f'<span id="batch" class="progress">{left} left in batch</span>' in page
        offer = client.get("/annotate/p/next").json()
        assert offer["batch"] == f"{left} left in batch"
        lease = page.split('action="/lease/')[1].split('"')[0]
        client.submit(f"/lease/{lease}", {"key": lease, "q.preference": "1"})
    assert client.get("/annotate/p/next").json()["batch"] == ""
    assert left_in_batch(db, "ann-2", "p", 0) == 4, "somebody else reads hate, and lacks the skill too"


def test_beyond_a_hundred_nobody_counts(browser, db):
    create_project(db, "p", rubric="pairwise", settings=PLAIN, actor="tests")
    add_items(db, "p", pairs(120), actor="tests")
    assert "100+ left in batch" in browser("the-annotator").get("/annotate/p").text


# -- how often programs may call --------------------------------------------------------------------------------------


def test_a_token_may_call_so_often_in_a_minute_and_is_told_how_long_to_wait(browser, db, monkeypatch):
    now = [600.0 + 15]
    monkeypatch.setattr(auth, "CALLS", Calls(lambda: now[0]))
    monkeypatch.setattr(auth, "API_CALLS", 3)
    tokens = [signin.make_token(db, "the-reader", title=str(at), scopes=["read"], actor="tests").secret for at in range(2)]
    client = browser()
    call = lambda at: client.get("/api/v1/projects", headers={"authorization": f"Bearer {tokens[at]}"})
    assert [call(0).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = call(0)
    assert refused.headers["retry-after"] == "46" and "more than 3 calls" in refused.json()["error"]["message"]
    assert call(1).status_code == 200, "each token by itself"
    now[0] += 46
    assert call(0).status_code == 200
    assert client.get("/api/v1/projects").status_code == 401, "who has no token is not counted"


def test_six_hundred_calls_a_minute_are_allowed_and_described(browser):
    assert auth.API_CALLS == 600
    calls = Calls(lambda: 61.0)
    assert [calls.wait("t") for _ in range(601)] == [0] * 600 + [60]
    described = browser("the-annotator").get("/api/v1/openapi.json").json()
    assert all("429" in each["responses"] for path in described["paths"].values() for each in path.values())
