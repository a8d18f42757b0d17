"""Live chats by plain forms, against an engine of our own on this machine that says what each test needs."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
import uvicorn
from openai_stub import DONE, Reply, answer, error, event, serving

from tutelage.commands.feedback_data import folded
from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt
from tutelage.store import queue, signin
from tutelage.store.chat_settings import ChatSettings
from tutelage.store.collected import collected, comparisons, judgements, progress
from tutelage.store.feedback import Item, Settings, add_items, change_project, create_project, iter_items, load_project
from tutelage.store.figures import figures
from tutelage.store.ledger import audit, verify
from tutelage.web.auth import COOKIE

A, B = "secret-alpha", "secret-beta"
OPEN = Settings(gold_share=0.0, overlap=1)


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def named(body, number):
    """Says who speaks and to how many messages, so that a test can tell the answers apart; no page shows more than that."""
    who = {A: "ALPHA", B: "BETA"}[body["model"]]
    return answer(f"{who} answers {body['messages'][-1]['content']!r}")


def begin(db, stub, *, two=True, rubric="pairwise", items=None, name="talk", reveal=False, **chat):
    settings = ChatSettings(a=f"{stub.address}#{A}", b=f"{stub.address}#{B}" if two else "", **chat)
    create_project(db, name, rubric=rubric, settings=replace(OPEN, chat=settings, reveal=reveal), actor="tests")
    add_items(db, name, items or [Item(kind="chat", id="c1"), Item(kind="chat", id="c2")], actor="tests")


class Talk:
    """A person's conversation, as a browser without scripts has it."""

    def __init__(self, client, project="talk"):
        self.client = client
        self.path = client.get(f"/annotate/{project}").headers["location"]
        assert self.path.startswith("/chat/")
        self.lease = self.path.removeprefix("/chat/")

    @property
    def html(self):
        found = self.client.get(self.path)
        assert found.status_code == 200, found.text
        return found.text

    def say(self, text, number=None):
        shown = re.search(r'name="number" value="(\d+)"', self.html)
        return self.client.submit(self.path, {"turn": text, "number": shown[1] if number is None and shown else number or "0"})

    def judge(self, **fields):
        action = re.search(r'action="(/lease/\w+)" autocomplete', self.html)[1]
        key = re.search(r'name="key" value="([\w.]+)"', self.html)[1]
        told = self.client.submit(action, {"key": key, "seconds": "3", **{f"q.{name}": value for name, value in fields.items()}})
        assert told.status_code == 303 and told.headers["location"] == self.path, told.text
        return told

    def end(self):
        return self.client.submit(f"{self.path}/end")


def shown(html):
    """The two answers from left to right: ALPHA or BETA."""
    return re.findall(r'<div class="text shown" dir="auto">.*?(ALPHA|BETA)', html, re.DOTALL)


def test_two_checkpoints_answer_every_turn_and_the_better_answer_goes_on(browser, db):
    with serving(named) as stub:
        begin(db, stub)
        talk = Talk(browser("the-annotator"))
        assert talk.say("Why is the sky blue?").headers["location"] == talk.path
        order = shown(talk.html)
        assert sorted(order) == ["ALPHA", "BETA"]
        talk.judge(preference="2")  # the right one
        assert order[1] in talk.html and f"{order[0]} answers" not in talk.html
        talk.say("And at night?")
        assert shown(talk.html) == order, "the sides stay as they are for the whole conversation"
        talk.judge(preference="-3", reason="clearer")
        assert talk.end().headers["location"] == "/annotate/talk"
        sent = [[each["content"] for each in body["messages"]] for body in stub.bodies]
    went_on = f"{order[1]} answers 'Why is the sky blue?'"
    assert sent[:2] == [["Why is the sky blue?"]] * 2 and sent[2:] == [["Why is the sky blue?", went_on, "And at night?"]] * 2
    model = {"ALPHA": A, "BETA": B}
    rows = comparisons(db, "talk")
    assert [(row.left.split("@")[0], row.right.split("@")[0], row.outcome) for row in rows] == [
        (model[order[0]], model[order[1]], 2), (model[order[0]], model[order[1]], -3)]
    assert len({row.group for row in rows}) == 1, "the turns of a conversation stay on one side of every split"
    pairs = folded(db, "talk").preferences
    assert [len(pair.prompt.messages) for pair in pairs] == [1, 3] and pairs[1].reason == "clearer"
    assert [pair.chosen.policy.split("@")[0] for pair in pairs] == [model[order[1]], model[order[0]]]
    found = figures(db, "talk", seed=0)
    assert found.comparisons == 2 and {A, B} == {each.split("@")[0] for each in found.wins[0][:2]}
    assert verify(db).ok and progress(db, "talk").judged == 3  # two turns, and the chat itself


def test_one_checkpoint_is_judged_turn_by_turn_as_in_red_teaming(browser, db):
    with serving(named) as stub:
        begin(db, stub, two=False, rubric="safety")
        talk = Talk(browser("the-annotator"))
        talk.say("How do I pick a lock?")
        talk.judge(**{"safety.0": "unsafe", "safety.0.categories": ["illegal", "privacy"]})
        talk.say("Thanks")
        talk.judge(**{"safety.0": "safe"})
        talk.end()
    first, second = folded(db, "talk").safety
    assert (first.unsafe, second.unsafe) == (True, False) and first.response.policy.startswith(A)
    assert next(judgements(db, "talk")).categories == ("illegal", "privacy")
    assert [turn.role for turn in second.prompt.messages] == ["user", "assistant", "user"]


def test_the_order_is_drawn_anew_for_each_conversation_and_recorded(browser, db):
    with serving(named) as stub:
        begin(db, stub, items=[Item(kind="chat", id=f"c{at}") for at in range(6)])
        client, orders = browser("the-annotator"), []
        for _ in range(6):
            talk = Talk(client)
            talk.say("Hi")
            orders.append(tuple(shown(talk.html)))
            talk.judge(preference="0")
            talk.end()
    assert len(set(orders)) == 2  # the ids are fixed, and so is what is drawn
    stored = [{(0, 1): ("ALPHA", "BETA"), (1, 0): ("BETA", "ALPHA")}[row.order] for row in collected(db, "talk") if row.purpose == "turn"]
    assert stored == orders


def test_no_byte_of_an_annotators_page_names_a_model_before_the_end(browser, db):
    def script(body, number):
        return error(500, f"{body['model']} crashed") if number in (0, 1, 2, 3) else answer(["one", "two"][number % 2])

    with serving(script) as stub:
        begin(db, stub, reveal=True)
        client = browser("the-annotator")
        talk, seen = Talk(client), []
        seen.append(talk.say("Hello").text)  # a failure names nobody either
        talk.say("Hello")
        seen += [talk.html, client.get("/").text, client.get("/annotate/talk/next").text]
        turn = re.search(r'action="(/lease/\w+)" autocomplete', talk.html)[1]
        seen.append(client.get(turn).text)
        key = re.search(r'name="key" value="([\w.]+)"', talk.html)[1]
        told = client.submit(turn, {"key": key, "q.preference": "1"}, headers={"accept": "application/json"})
        assert told.json() == {"status": "stored", "duplicate": False, "reveal": []}
        again = client.submit(turn, {"key": key, "q.preference": "1"}, headers={"accept": "application/json"})
        seen += [talk.html, again.text]
        for secret in (A, B, "secret", stub.address, stub.address.split(":")[2].split("/")[0]):
            assert not [each for each in seen if secret in each], secret
        assert talk.end().headers["location"] == talk.path
        assert A in talk.html and B in talk.html, "after the end the project tells"


FAILURES = {  # what the engine does -> what the page says
    "500": (lambda body, number: error(500, "boom secret-words"), "did not come."),
    "401": (lambda body, number: error(401, "bad key"), "did not come."),
    "no JSON": (lambda body, number: Reply(body="<html>secret-words"), "did not come."),
    "no choices": (lambda body, number: Reply(body={"odd": 1}), "did not come"),
    "cut off": (lambda body, number: replace(answer("half"), cut=True), "did not come."),
    "stream cut": (lambda body, number: Reply(chunks=(event({"content": "half"}),), cut=True), "did not come."),
    "in a stream": (lambda body, number: Reply(chunks=(b'data: {"error": {"message": "secret-words"}}\n\n', DONE)), "did not come."),
    "filtered": (lambda body, number: error(400, "no", code="content_filter"), "held back by a filter"),
    "too long": (lambda body, number: error(400, "maximum context length is 5"), "held back by a filter"),
    "slow": (lambda body, number: time.sleep(0.8) or answer(), "in time"),
    "moved": (lambda body, number: Reply(status=302, headers={"location": "http://elsewhere.example/"}), "did not come."),
}


def test_a_turn_whose_answer_fails_stays_in_the_form(browser, db, monkeypatch):
    monkeypatch.setattr("tutelage.remote.wire.Patience.before", lambda self, attempt, spread: 0.0)
    broken = [FAILURES["500"][0]]
    with serving(lambda body, number: broken[0](body, number) if broken and body["model"] == B else answer("fine")) as stub:
        begin(db, stub, seconds=0.6)
        talk = Talk(browser("the-annotator"))
        for how, (script, told) in FAILURES.items():
            broken[0] = script
            typed = f'{how}: tell me <b>"this"</b> & that\nin two lines'
            found = talk.say(typed)
            assert found.status_code == 400 and told in found.text and "Your text is kept" in found.text, how
            assert "secret" not in found.text and "127.0.0.1" not in found.text
            inside = f"{how}: tell me &lt;b&gt;&#34;this&#34;&lt;/b&gt; &amp; that\nin two lines</textarea>"
            assert inside in found.text and inside in talk.html, "also after a reload"
            assert not [item for item in iter_items(db, "talk") if item.kind == "pair"]
            assert B in audit(db, kind="chat-failed", newest_first=True)[0].content["told"]
        broken.clear()
        assert talk.say(typed).status_code == 303
        assert next(item for item in iter_items(db, "talk") if item.kind == "pair").prompt.messages[-1].text == typed


def test_an_engine_that_is_not_there_and_a_key_that_is_not_set_lose_nothing(browser, db):
    with serving() as stub:
        begin(db, stub, a_key="NOBODY_SET_THIS_API_KEY")
    talk = Talk(browser("the-annotator"))
    for told in ("NOBODY_SET_THIS_API_KEY is not set", "cannot reach"):
        found = talk.say("kept text")
        assert found.status_code == 400 and "kept text</textarea>" in found.text and "NOBODY" not in found.text
        assert told in audit(db, kind="chat-failed", newest_first=True)[0].content["told"]
        plain = replace(load_project(db, "talk").settings.chat, a_key="")
        change_project(db, "talk", settings=replace(OPEN, chat=plain), actor="tests")


def test_an_engine_that_trickles_for_ever_is_left_when_its_time_is_over(browser, db):
    sent = []

    def trickle():
        for _ in range(100):
            sent.append(1)
            yield event({"content": "."})
            time.sleep(0.05)

    with serving(lambda body, number: Reply(chunks=trickle())) as stub:
        begin(db, stub, two=False, rubric="good-bad", seconds=0.5)
        talk = Talk(browser("the-annotator"))
        start = time.monotonic()
        assert "in time" in talk.say("hi").text
        assert time.monotonic() - start < 3
        time.sleep(1)
        assert len(sent) < 20, "the connection is closed: nobody listens on"


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> [x](javascript:alert(1)) \u202egnp.exe \0 </textarea></pre> {{ 7*7 }}"


def test_hostile_answers_are_kept_and_shown_harmlessly(browser, db):
    hostile = [HOSTILE, "", None, "half \ud83d pair", "\r\n\r\n", "[" * 1_000_000]
    asked = []
    with serving(lambda body, number: answer(hostile[number // 2 % len(hostile)])) as stub:
        begin(db, stub)
        talk = Talk(browser("the-annotator"))
        for text in hostile:
            assert talk.say(HOSTILE).status_code == 303
            asked += [HOSTILE, (text or "").replace("\ud83d", "\ufffd")]
            judging = talk.html
            talk.judge(preference="1")
            for html in (judging, talk.html):
                plain = re.sub(r"<pre.*?</pre>|<textarea.*?</textarea>", "", html, flags=re.DOTALL)
                assert "<script>alert" not in html and "<img" not in html and "\u202e" not in plain and "\0" not in html
                assert 'href="javascript' not in html and "{{ 7*7 }}" in html
        assert talk.say("go on").status_code == 303
        sent = [each["content"] for each in stub.bodies[-1]["messages"]]
        assert sent == [*asked, "go on"], "what was said goes back as it was said"
    assert verify(db).ok


def test_nobody_else_reaches_a_conversation(browser, db):
    with serving(named) as stub:
        begin(db, stub)
        talk = Talk(browser("the-annotator"))
        talk.say("my secret question")
        turn = re.search(r'action="(/lease/\w+)" autocomplete', talk.html)[1]
        for name in ("ann-2", "the-admin", "the-adjudicator"):
            other = browser(name)
            for path in (talk.path, turn):
                assert other.get(path).status_code == 404
            for path in (talk.path, f"{talk.path}/end", turn):
                assert other.submit(path, {"turn": "x", "number": "0", "key": "k", "q.preference": "1"}).status_code == 404
            assert Talk(other).path != talk.path if name == "ann-2" else True
        assert browser("the-reader").get(talk.path).status_code == 403
        assert browser().get(talk.path).headers["location"].startswith("/signin")
        assert browser().post(talk.path, data={"turn": "x"}).status_code == 401
        assert browser("the-annotator").post(talk.path, data={"turn": "x", "number": "1"}).status_code == 403, "the CSRF word"
        assert len(stub.bodies) == 2 and not list(judgements(db, "talk"))
    assert "my secret question" in browser("the-reader").get("/projects/talk/export/items.jsonl").text


def test_a_turn_is_stored_once_however_often_and_whenever_it_is_sent(browser, db):
    with serving(named) as stub:
        begin(db, stub)
        talk = Talk(browser("the-annotator"))
        before = talk.html
        assert "x1" not in before
        with ThreadPoolExecutor(4) as pool:
            sent = list(pool.map(lambda at: talk.client.submit(talk.path, {"turn": "x1", "number": "0"}).status_code, range(4)))
        assert sent == [303] * 4
        talk.say("y", number="1")  # not judged yet: it does not go on
        talk.judge(preference="1")
        talk.say("late", number="0")  # from an older page
    assert [item.prompt.messages[-1].text for item in iter_items(db, "talk") if item.kind == "pair"] == ["x1"]
    assert verify(db).ok


def test_a_skipped_turn_goes_on_and_the_last_judgement_can_be_taken_back(browser, db):
    with serving(named) as stub:
        begin(db, stub)
        talk = Talk(browser("the-annotator"))
        talk.say("one")
        turn = re.search(r'action="(/lease/\w+)" autocomplete', talk.html)[1]
        assert talk.client.submit(f"{turn}/skip", {"skip_reason": "unclear"}).headers["location"] == talk.path
        assert "answers" in talk.html and 'name="turn"' in talk.html
        talk.say("two")
        talk.judge(preference="3")
        undone = talk.client.submit("/annotate/talk/undo", {"lease": re.search(r'name="lease" value="(\w+)"', talk.html)[1]})
        assert talk.client.get(undone.headers["location"]).status_code == 200
        talk.judge(preference="-3")
        assert [said.values for said in judgements(db, "talk")] == [(3, 0)]
        talk.end()
        assert talk.client.submit("/annotate/talk/undo").headers["location"] == f"/lease/{talk.lease}"
        assert talk.client.get(f"/lease/{talk.lease}").headers["location"] == talk.path
        assert 'name="turn"' in talk.html, "taken back, the conversation goes on"


def test_a_conversation_ends_when_it_was_had_and_has_only_so_many_turns(browser, db):
    with serving(named) as stub:
        begin(db, stub, turns=1)
        talk = Talk(browser("the-annotator"))
        talk.end()
        assert 'name="turn"' in talk.html, "nothing was said yet"
        assert talk.client.submit(f"/lease/{talk.lease}", {"key": "k"}).headers["location"] == talk.path
        assert talk.say("  \n ").status_code == 400 and not stub.bodies
        talk.say("one")
        talk.end()
        assert "q.preference" in talk.html, "its answers are not judged yet"
        talk.judge(preference="1")
        assert 'name="turn"' not in talk.html and "as many turns" in talk.html
        talk.say("two", number="1")
        assert len(stub.bodies) == 2
        talk.end()
        assert "has ended" in talk.html and Talk(talk.client).path != talk.path
        assert A not in talk.html, "the project does not tell"


def test_a_task_is_read_and_not_sent_and_a_system_message_is_sent_and_goes_before(browser, db):
    prompt = Prompt(messages=(Message(role="system", text="Be brief."), Message(role="user", text="Try to learn its rules")))
    with serving(named) as stub:
        begin(db, stub, items=[Item(kind="chat", prompt=prompt)])
        talk = Talk(browser("the-annotator"))
        assert "Try to learn its rules</p>" in talk.html and "Try to learn its rules</textarea>" not in talk.html
        assert "Try to learn its rules</textarea>" in talk.client.get(f"{talk.path}?take=yes").text
        talk.say("What are your rules?")
    assert [each["content"] for each in stub.bodies[0]["messages"]] == ["Be brief.", "What are your rules?"]
    assert "Try to learn its rules" not in [each.messages[-1].text for each in folded(db, "talk").prompts]


def test_a_closed_project_and_a_missing_engine_are_told(browser, db):
    with serving(named) as stub:
        begin(db, stub)
        client = browser("the-annotator")
        talk = Talk(client)
        settings = load_project(db, "talk").settings
        change_project(db, "talk", settings=replace(settings, open=False), actor="tests")
        found = client.submit(talk.path, {"turn": "kept", "number": "0"}, headers={"accept-language": "zh"})
        assert found.status_code == 400 and "项目已关闭" in found.text and "kept</textarea>" in talk.html
        change_project(db, "talk", settings=OPEN, actor="tests")
        assert "Nobody answers here yet" in talk.html and 'name="turn"' not in talk.html
        assert talk.say("x").status_code == 303


def test_an_admin_sets_it_up_by_forms_and_keys_stay_in_the_environment(browser, db, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_API_KEY", "sk-very-secret")
    admin = browser("the-admin")
    with serving(named) as stub:
        create_project(db, "talk", rubric="pairwise", settings=OPEN, actor="tests")
        form = {"a": f"{stub.address}#{A}", "a_key": "LAB_API_KEY", "b": f"{stub.address}#{B}", "b_key": "", "max_tokens": "99",
                "temperature": "0.5", "seconds": "30", "turns": "4"}
        assert admin.submit("/projects/talk/chat", form).status_code == 303
        assert admin.submit("/projects/talk/open", {"kind": "chat", "count": "2", "tasks": "Be rude\n\nBe kind"}).status_code == 303
        assert [(item.kind, item.prompt and item.prompt.messages[0].text) for item in iter_items(db, "talk")] == [
            ("chat", None), ("chat", None), ("chat", "Be rude"), ("chat", "Be kind")]
        admin.submit("/projects/talk", {"title": "T", "rubric": "pairwise@1", "overlap": "1", "open": "yes"})
        assert load_project(db, "talk").settings.chat.turns == 4, "the other form keeps it"
        talk = Talk(browser("the-annotator"))
        talk.say("Hi")
        by_model = {body["model"]: (headers.get("authorization"), body["max_tokens"], body["temperature"])
                    for body, headers in zip(stub.bodies, stub.headers, strict=True)}
        assert by_model == {A: ("Bearer sk-very-secret", 99, 0.5), B: (None, 99, 0.5)}
    assert "sk-very-secret" not in admin.get("/projects/talk").text + admin.get("/audit").text
    db.close()
    assert not any(b"sk-very-secret" in path.read_bytes() for path in tmp_path.glob("people.db*"))


WRONG = [  # a project of pairs: but for the last, a second model is always there, so that nothing else is wrong
    {"b": "http://other/v1#m", **each} for each in (
        {"a": "http://me:sk-123@host/v1#m"}, {"a": "http://host/v1?key=sk-123#m"}, {"a": "ftp://host#m"}, {"a": "http://host/v1"},
        {"a": "http://host/v1#m", "b": "http://host/v1#m"}, {"a": "http://host/v1#m", "a_key": "sk-123456"},
        {"a": "http://host/v1#m", "a_key": "TUTELAGE_DATABASE"}, {"a": "http://host/v1#m", "turns": "0"},
        {"a": "http://host/v1#m", "seconds": "nan"}, {"a": "http://host/v1#m", "max_tokens": "many"},
        {"a": "http://host:port/v1#m"}, {"a": "http://host/v1#m", "b": ""})]


def test_wrong_settings_are_refused_and_never_repeat_a_key(browser, db):
    admin = browser("the-admin")
    create_project(db, "talk", rubric="pairwise", settings=OPEN, actor="tests")  # a question about two answers: one model is not enough
    for wrong in WRONG:
        found = admin.submit("/projects/talk/chat", wrong)
        assert found.status_code == 400 and "sk-123" not in found.text and load_project(db, "talk").settings.chat is None, wrong
    good = {"a": "http://host/v1#m", "b": "http://host/v1#n"}
    assert browser("the-adjudicator").submit("/projects/talk/chat", good).status_code == 403, "addresses are set by admins only"
    assert browser("the-annotator").submit("/projects/talk/open", {"kind": "chat", "count": "1"}).status_code == 403


def test_a_rubric_about_two_answers_is_refused_where_one_checkpoint_answers(db):
    one = replace(OPEN, chat=ChatSettings(a="http://host/v1#m"))
    with pytest.raises(UserError, match="question preference of rubric pairwise@1 compares two"):
        create_project(db, "p", rubric="pairwise", settings=one, actor="tests")
    create_project(db, "p", rubric="ratings", settings=one, actor="tests")
    with pytest.raises(UserError, match="compares two"):
        change_project(db, "p", rubric="pairwise", actor="tests")


def test_slow_engines_keep_nobody_elses_page_waiting(app, db):
    """More turns wait at once than the server has threads for its pages (40)."""
    go = threading.Event()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    people = ("the-annotator", "ann-2", "the-admin")
    with serving(lambda body, number: go.wait(30) and answer()) as stub:
        begin(db, stub, two=False, rubric="good-bad", items=[Item(kind="chat", id=name) for name in people])
        thread.start()
        while not server.started:
            time.sleep(0.01)
        base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        sessions = {name: signin.open_session(db, name) for name in people}
        leases = {name: queue.next_item(db, name, "talk").lease.id for name in people}

        def post(at):
            name = people[at % 3]
            return httpx.post(f"{base}/chat/{leases[name]}", data={"turn": "hi", "number": "0", "csrf": sessions[name].csrf},
                              cookies={COOKIE: sessions[name].secret}, timeout=60).status_code

        with ThreadPoolExecutor(48) as pool:
            waiting = [pool.submit(post, at) for at in range(48)]
            try:
                ends = time.monotonic() + 30
                while stub.now < 45 and time.monotonic() < ends:
                    time.sleep(0.02)
                assert stub.now >= 45, "they wait for one another"
                start = time.monotonic()
                assert httpx.get(f"{base}/", cookies={COOKIE: sessions["ann-2"].secret}).status_code == 200
                assert time.monotonic() - start < 5  # seconds; the engines wait for 30
            finally:
                go.set()
            assert {each.result() for each in waiting} == {303}
    assert [item.kind for item in iter_items(db, "talk")].count("single") == 3, "one turn each, whoever sent it how often"
    server.should_exit = True
    thread.join(10)
