"""Judging by plain forms: every kind of question, drafts, undo, skip, late and repeated submissions, hostile text."""

import re
import time
from html.parser import HTMLParser

import pytest
from web_world import PLAIN, Browser, item_of, pairs, prompt_of

from tutelage.core.words import Message
from tutelage.store import queue, signin
from tutelage.store.collected import judgements, written
from tutelage.store.feedback import Item, Settings, add_items, create_project
from tutelage.store.ledger import audit, verify
from tutelage.store.rubrics import Question, Rubric, save_rubric


class Fields(HTMLParser):
    """What a browser would send of the judging form, and its address."""

    def __init__(self, text):
        super().__init__()
        self.action, self.values, self.inside, self.reading = "", {}, False, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        at = dict(attrs)
        if tag == "form" and at.get("action", "").startswith(("/lease/", "/signin")):
            self.action, self.inside = at["action"], True
        if not self.inside or "name" not in at:
            return
        if tag == "textarea":
            self.reading = at["name"]
            self.values[self.reading] = ""
        elif tag == "input" and (at.get("type") not in ("radio", "checkbox") or "checked" in at):
            self.values[at["name"]] = at.get("value", "")

    def handle_data(self, data):
        if self.reading:
            self.values[self.reading] += data

    def handle_endtag(self, tag):
        if tag == "textarea":
            self.reading = ""
        if tag == "form":
            self.inside = False


def begin(db, rubric, items, *, settings=PLAIN, name="p"):
    create_project(db, name, rubric=rubric, settings=settings, actor="tests")
    add_items(db, name, items, actor="tests")


def form_of(client, path="/annotate/p"):
    page = client.get(path)
    assert page.status_code == 200, page.text
    return Fields(page.text)


@pytest.fixture
def ann(browser):
    return browser("the-annotator")


CASES = [  # rubric, item, fields of the form, what the judgements say
    ("pairwise", item_of(["a", "b"]), {"q.preference": "-2", "q.reason": "so"}, [("pair", (2, 0))]),
    ("pairwise", item_of(["a", "b"]), {"q.preference": "both_bad"}, [("pair", (0, 0))]),
    ("pairwise-4", item_of(["a", "b"]), {"q.preference": "1"}, [("pair", (0, 0.5))]),
    ("ranking", item_of(["a", "b", "c"]), {"q.ranking.0": "2", "q.ranking.1": "1", "q.ranking.2": "2"}, [("rank", (2, 1, 2))]),
    (
        "ratings",
        item_of(["a"]),
        {"q.helpful.0": "5", "q.harmless.0": "1", "q.honest.0": "3"},
        [("rating", (5,)), ("rating", (1,)), ("rating", (3,))],
    ),
    ("good-bad", item_of(["a", "b"]), {"q.verdict.0": "good", "q.verdict.1": "bad"}, [("label", (1, 0))]),
    ("safety", item_of(["a"]), {"q.safety.0": "unsafe", "q.safety.0.categories": ["hate", "privacy"]}, [("label", (1,))]),
    ("edit", item_of(["a", "b"]), {"q.edit.response": "1", "q.edit.text": "better\r\nlines"}, [("edit", ())]),
    ("spans", item_of(["abcdef"]), {"q.spans": '[{"response": 0, "start": 1, "end": 3, "label": "wrong"}]'}, [("spans", ())]),
]


@pytest.mark.parametrize("rubric, item, fields, said", CASES)
def test_every_kind_of_question_is_shown_and_stored(ann, db, rubric, item, fields, said):
    begin(db, rubric, [item])
    form = form_of(ann)
    assert "secret-model" not in ann.get("/annotate/p").text
    response = ann.post(form.action, data={**form.values, **fields, "seconds": "7.4"})
    assert response.status_code == 303, response.text
    rows = list(judgements(db, "p"))
    assert [(each.kind, each.values) for each in rows] == said
    assert rows[0].seconds == 7.4 and rows[0].judge == "human:the-annotator" and rows[0].rubric == f"{rubric}@1"
    assert rows[0].reason == fields.get("q.reason")
    if rubric == "edit":
        assert rows[0].edit == "better\nlines"
    if rubric == "safety":
        assert rows[0].categories == ("hate", "privacy")
    assert verify(db).ok


def test_prompts_and_demonstrations_are_written(ann, db):
    begin(db, "write", [Item(kind="prompt", id="w1"), Item(kind="demonstration", prompt=prompt_of("Say hi"))])
    for text in ({"q.prompt": "Why is the sky blue?"}, {"q.demonstration": "Hi!"}):
        form = form_of(ann)
        assert ann.post(form.action, data={**form.values, **text}).status_code == 303
    first, second = written(db, "p")
    assert (first.prompt.messages[-1].text, second.demonstration) == ("Why is the sky blue?", "Hi!")


def test_questions_combine_and_flags_and_own_scales_work(ann, db):
    rubric = save_rubric(
        db,
        Rubric(
            name="mine",
            questions=(
                Question(name="csrf", kind="rating", low=0, high=10),
                Question(name="key", kind="pair"),
                Question(name="seconds", kind="flags", labels=("needs-expert", "说明"), required=False),
            ),
        ),
        actor="tests",
    )
    begin(db, rubric.ref, [item_of(["a", "b"])])
    form = form_of(ann)
    assert (
        ann.post(
            form.action,
            data={**form.values, "q.csrf.0": "10", "q.csrf.1": "0", "q.key": "3", "q.seconds": ["说明", "needs-expert"]},
        ).status_code
        == 303
    )
    rows = list(judgements(db, "p"))
    assert [each.values for each in rows] == [(10, 0), (0, 3)] and rows[0].flags == ("说明", "needs-expert")


def test_what_is_missing_is_told_and_what_was_given_is_kept(ann, db):
    begin(db, "ratings", [item_of(["a", "b"])])
    form = form_of(ann)
    response = ann.post(form.action, data={**form.values, "q.helpful.0": "4", "q.helpful.1": "5", "q.reason": "half <done>"})
    assert response.status_code == 400 and "question harmless: an answer is needed" in response.text
    again = Fields(response.text)
    assert (again.values["q.helpful.0"], again.values["q.helpful.1"]) == ("4", "5") and "half &lt;done&gt;" in response.text
    assert not list(judgements(db, "p"))
    one = ann.post(form.action, data={**form.values, "q.helpful.0": "4"}, headers={"accept": "application/json"})
    assert one.status_code == 400 and "question helpful" in one.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"q.preference": "9"},
        {"q.preference": "x" * 5000},
        {"q.preference": "٣"},
        {"q.preference": "1e3"},
        {"key": ""},
        {"key": "k" * 200},
        {"q.preference": ""},
    ],
)
def test_nonsense_is_refused_and_nothing_stored(ann, db, fields):
    begin(db, "pairwise", [item_of(["a", "b"])])
    form = form_of(ann)
    response = ann.post(form.action, data={**form.values, "q.preference": "1", **fields})
    assert response.status_code in (400, 303)
    if response.status_code == 303:  # a digit of another script is a digit
        assert fields == {"q.preference": "٣"}
    else:
        assert not list(judgements(db, "p"))


def test_sending_a_form_twice_stores_it_once(ann, db):
    form = form_of(ann, "/annotate/demo")
    for _ in range(3):
        assert ann.post(form.action, data={**form.values, "q.preference": "1"}).status_code == 303
    assert len(list(judgements(db, "demo"))) == 1
    told = ann.post(form.action, data={**form.values, "q.preference": "1"}, headers={"accept": "application/json"}).json()
    assert told == {"status": "stored", "duplicate": True, "reveal": []}


def test_undo_brings_the_same_item_back_filled_in(ann, db):
    form = form_of(ann, "/annotate/demo")
    ann.post(form.action, data={**form.values, "q.preference": "-1", "q.reason": "hm"})
    response = ann.submit("/annotate/demo/undo")
    assert response.headers["location"] == form.action
    again = form_of(ann, form.action)
    assert again.values["q.preference"] == "-1" and again.values["q.reason"].strip() == "hm"
    assert again.values["key"] != form.values["key"], "judging it anew is another submission"
    ann.post(again.action, data={**again.values, "q.preference": "3"})
    assert [each.values for each in judgements(db, "demo")] == [(0, 3)]
    assert ann.submit("/annotate/demo/undo", {"lease": "f" * 32}).status_code == 404


def test_skip_keeps_the_reason_and_gives_the_next_item(ann, db):
    form = form_of(ann, "/annotate/demo")
    assert (
        ann.post(form.action + "/skip", data={**form.values, "skip_reason": "broken", "skip_note": "cut off"}).status_code
        == 303
    )
    assert form_of(ann, "/annotate/demo").action != form.action
    assert audit(db, kind="skipped")[0].content["reason"] == "broken: cut off"


def test_a_reload_shows_the_same_item_and_the_next_ones_are_ready(ann, db):
    first = form_of(ann, "/annotate/demo").action
    assert form_of(ann, "/annotate/demo").action == first
    offer = ann.get("/annotate/demo/next").json()
    assert len(offer["items"]) == 3 and f"/lease/{offer['items'][0]['lease']}" == first
    assert all("secret-model" not in each["html"] for each in offer["items"])


def test_a_late_judgement_is_told_and_not_stored(browser, db):
    begin(db, "pairwise", [item_of(["a", "b"])], settings=Settings(overlap=1, overlap_share=1, gold_share=0, lease_seconds=1))
    slow, quick = browser("the-annotator"), browser("ann-2")
    form = form_of(slow)
    handed = queue.next_item(db, "ann-2", "p", now=time.time() + 3600)
    queue.submit(db, handed.lease.id, "ann-2", key="k", answers=queue.Answers(values={"preference": 1}), now=time.time() + 3601)
    queue.release(db, form.action.split("/")[-1], "the-annotator", now=time.time() - 10)
    response = slow.post(form.action, data={**form.values, "q.preference": "1"})
    assert response.status_code == 200 and "others have judged it" in response.text
    assert len(list(judgements(db, "p"))) == 1 and quick.get("/annotate/p").status_code == 200


def test_a_form_whose_session_ended_is_kept_through_the_sign_in(browser, db):
    signin.set_password(db, "the-annotator", "four words and more", actor="tests")
    client = browser("the-annotator")
    form = form_of(client, "/annotate/demo")
    signin.close_sessions(db, "the-annotator")
    asked = client.post(form.action, data={**form.values, "q.preference": "2", "q.reason": 'a "quote" & <tag>\r\nnext'})
    assert asked.status_code == 401 and "is kept" in asked.text
    carried = Fields(asked.text)
    sent = client.post("/signin", data={**carried.values, "name": "the-annotator", "password": "four words and more"})
    assert sent.status_code == 200 and "Your answer was kept" in sent.text
    kept = Fields(sent.text)
    assert kept.action == form.action
    assert client.post(kept.action, data=kept.values).status_code == 303
    row = next(judgements(db, "demo"))
    assert row.values == (0, 2) and row.reason == 'a "quote" & <tag>\nnext'


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\n\n[x](javascript:alert(1)) ![p](http://evil.example/p.png) "
    '[t](http://a.b "\u202e onmouseover=alert(1)") \u202egnp.exe \0 </textarea></pre></script> {{ 7*7 }} &lt;b&gt;\r\nlast'
)


def test_hostile_text_is_shown_harmlessly_everywhere(ann, browser, db):
    item = item_of([HOSTILE, "fine"], text=HOSTILE)
    begin(db, "edit", [item])
    page = ann.get("/annotate/p").text
    assert not re.search(
        r"<script(?! type=\"module\" src=\"/static/)|<img|onerror=alert\(1\)>(?!&)|href=\"javascript|evil\.example/p\.png\"",
        page,
    )
    tags = re.findall(r"<[a-z][^>]*\son\w+=[^>]*>", page)
    assert (
        not tags and "\u202e" not in re.sub(r"<pre.*?</pre>|<textarea.*?</textarea>", "", page, flags=re.S) and "\0" not in page
    )
    assert "49" not in re.findall(r"\{\{ 7\*7 \}\}", page)[0]
    form = form_of(ann)
    assert (
        ann.post(
            form.action, data={**form.values, "q.edit.response": "0", "q.edit.text": HOSTILE + "!", "q.reason": HOSTILE}
        ).status_code
        == 303
    )
    admin = browser("the-admin")
    for path in ("/projects/p", "/projects/p/agreement", "/projects/p/adjudicate", "/audit"):
        text = admin.get(path).text
        assert "<script>alert" not in text and "<img src=x" not in text
    edit = next(each for each in judgements(db, "p") if each.kind == "edit").edit
    assert edit == HOSTILE.replace("\r\n", "\n") + "!", "what was typed is what is kept"


def test_a_megabyte_is_shown_and_an_answer_of_a_megabyte_is_taken(ann, db):
    begin(db, "edit", [item_of(["[" * 1_000_000, "*a_`" * 12_000])])
    form = form_of(ann)
    assert (
        ann.post(form.action, data={**form.values, "q.edit.response": "0", "q.edit.text": "x" * 1_000_000}).status_code == 303
    )


def test_the_models_are_told_after_the_vote_where_the_project_says_so(ann, db):
    begin(db, "pairwise", [item_of(["a", "bb"])], settings=Settings(overlap=1, gold_share=0, reveal=True))
    form = form_of(ann)
    told = ann.post(form.action, data={**form.values, "q.preference": "1"}, headers={"accept": "application/json"}).json()[
        "reveal"
    ]
    assert sorted(each.split(": ")[1] for each in told) == ["secret-model-0, 1 characters", "secret-model-1, 2 characters"]


def test_drafts_are_kept_on_the_server_too(ann, db):
    begin(db, "pairwise", [item_of(["a", "b"])])
    form = form_of(ann)
    assert ann.post(form.action + "/draft", data={**form.values, "q.preference": "2", "q.reason": "thinking"}).json() == {
        "kept": True
    }
    again = form_of(ann)
    assert again.values["q.preference"] == "2" and again.values["q.reason"].strip() == "thinking"


def test_the_daily_limit_and_the_end_are_told(browser, db):
    begin(db, "pairwise", pairs(3), settings=Settings(gold_share=0, daily_limit=1))
    client: Browser = browser("ann-2")
    form = form_of(client)
    client.post(form.action, data={**form.values, "q.preference": "1"})
    assert "reached today" in client.get("/annotate/p").text and "You have reached today" in client.get("/annotate/p").text


def test_a_conversation_shows_every_turn_and_marks_the_last_question(ann, db):
    turns = (
        Message(role="system", text="Be brief."),
        Message(role="user", text="Hello"),
        Message(role="assistant", text="**Hi**"),
    )
    prompt = prompt_of("Why?", *turns)
    item = item_of(["a", "b"])
    begin(db, "pairwise", [Item(kind="pair", prompt=prompt, responses=item.responses)])
    page = ann.get("/annotate/p").text
    assert [part for part in re.findall(r'class="turn (\w+(?: last)?)"', page)] == ["system", "user", "assistant", "user last"]
    assert "<strong>Hi</strong>" in page
