"""In a real browser (Chromium by Playwright): one person at work by keyboard alone, and what the page sends and weighs.

`make test-web` sets TUTELAGE_TEST_WEB=1: without a browser these tests then fail.  Elsewhere they are skipped, and say why.
TUTELAGE_WEB_COMMAND names the `tutelage` whose server is tested, as a process of its own; without it the server is a thread
here.  TUTELAGE_TEST_QUIET=1 says that nothing else runs on the machine: then the time from key to next pair is held to 50 ms.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from itertools import takewhile

import pytest
import uvicorn
from sqlalchemy import update
from web_world import PLAIN, item_of, pairs

from tutelage.core.words import Message
from tutelage.store import signin
from tutelage.store.accounts import create_person
from tutelage.store.answers import Answers
from tutelage.store.collected import collected, judgements
from tutelage.store.db import open_database
from tutelage.store.feedback import Settings, add_items, create_project
from tutelage.store.queue import next_item, submit
from tutelage.store.rubrics import Question, Rubric, load_rubric, save_rubric
from tutelage.store.tables import leases
from tutelage.web.app import create_app
from tutelage.web.auth import COOKIE

pytestmark = pytest.mark.web
MUST = os.environ.get("TUTELAGE_TEST_WEB") == "1"
QUIET = os.environ.get("TUTELAGE_TEST_QUIET") == "1"
COMMAND = os.environ.get("TUTELAGE_WEB_COMMAND")
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None
try:
    from axe_playwright_python.sync_playwright import Axe
except ImportError:
    Axe = None
MISSING = (
    "playwright is not installed (pip install playwright)"
    if sync_playwright is None
    else ""
    if CHROMIUM
    else "no chromium was found (set CHROMIUM to its path)"
)
if MISSING and not MUST:
    pytest.skip(f"no browser tests: {MISSING}", allow_module_level=True)

# From the key to the frame after the next pair stands in the page, in milliseconds.
WATCH = """() => { window.took = []; let pressed = 0;
  document.addEventListener("keydown", (event) => { pressed = event.timeStamp; }, true);
  new MutationObserver(() => { if (!pressed) return; const start = pressed; pressed = 0;
    requestAnimationFrame(() => { const c = new MessageChannel(); c.port1.onmessage = () => window.took.push(performance.now() - start);
      c.port2.postMessage(0); }); }).observe(document.querySelector("#slot"), { childList: true }); }"""


@pytest.fixture(scope="module")
def chromium():
    assert not MISSING, MISSING
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def world(tmp_path):
    db = open_database(tmp_path / "people.db")
    create_person(db, "boss", "admin", actor="tests")
    create_person(db, "ann-07", "annotator", actor="tests")
    yield db
    db.close()


@pytest.fixture
def site(world, tmp_path):
    with served(COMMAND, tmp_path) if COMMAND else in_a_thread(world) as address:
        yield address


@contextlib.contextmanager
def served(command, folder):
    """`tutelage web` as it is installed, on the database of the test."""
    arguments = [command, "web", "--port", "0", "--database", str(folder / "people.db"), "--json"]
    with open(folder / "server.log", "w") as log, subprocess.Popen(
            arguments, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        lines = list(takewhile(lambda line: line.rstrip() != "}", process.stdout))
        assert lines, (folder / "server.log").read_text()
        yield json.loads("".join(lines) + "}")["address"]
        process.terminate()
        process.wait(30)
    assert "Traceback" not in (said := (folder / "server.log").read_text()), said[-3000:]


@contextlib.contextmanager
def in_a_thread(db):
    door = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(db), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{door.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


class Asked:
    """What a page asked for, and what went wrong in it."""

    def __init__(self, page):
        self.urls, self.faults, self.sizes = [], [], {}
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda line: line.type == "error" and self.faults.append(line.text))
        page.on("response", lambda response: self.sizes.__setitem__(response.url, response))


@pytest.fixture
def open_page(chromium, site, world):
    contexts = []

    def opened(name="ann-07", *, width=1280, height=900, **more):
        context = chromium.new_context(viewport={"width": width, "height": height}, **more)
        context.set_default_timeout(30_000)
        contexts.append(context)
        if name:
            context.add_cookies(
                [{"name": COOKIE, "value": signin.open_session(world, name).secret, "url": site, "httpOnly": True}]
            )
        page = context.new_page()
        page.asked = Asked(page)
        return page

    yield opened
    for context in contexts:
        context.close()


def project(db, rubric="pairwise", items=(), name="demo", settings=PLAIN):
    create_project(db, name, rubric=rubric, title="Kites and more", settings=settings, actor="boss")
    add_items(db, name, items, actor="boss")


def stored(page):
    """Wait until everything was sent."""
    page.wait_for_function(
        "() => !JSON.parse(localStorage.getItem(`outbox:${document.querySelector('#work')?.dataset.person}`) ?? '[]').length"
    )


def current(page):
    return page.locator(".card").get_attribute("data-lease")


def press(page, key):
    """A key, and the next item."""
    before = current(page)
    page.keyboard.press(key)
    page.wait_for_function("before => ![before, undefined].includes(document.querySelector('.card')?.dataset.lease)", arg=before)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_person_judges_many_pairs_by_keyboard_and_nothing_leaves_the_machine(world, site, open_page, capsys, count):
    project(world, items=pairs(count + 1))
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    page.wait_for_load_state("networkidle")
    weight = sum(len(response.body()) for response in page.asked.sizes.values() if "/next" not in response.url)
    assert weight < 120_000, weight
    page.evaluate(WATCH)
    for at in range(count):
        press(page, "12345670"[at % 8])
        page.wait_for_timeout(100)  # somebody who reads at all needs more
    stored(page)
    took = sorted(page.evaluate("() => window.took"))
    assert len(took) == count
    p95 = took[round(count * 0.95) - 1]
    with capsys.disabled():
        print(f"\nkey to next pair painted, {count} keys: median {took[count // 2]:.1f} ms, p95 {p95:.1f} ms; page {weight / 1000:.1f} kB")
    said = list(judgements(world, "demo"))
    assert len(said) == count and len({each.responses for each in said}) == count
    assert [max(each.values) for each in said[:8]] == [3, 2, 1, 0, 1, 2, 3, 0] and "both-bad" in said[7].flags
    assert all(each.seconds > 0 for each in said)
    assert all(url.startswith(site) for url in page.asked.urls) and not page.asked.faults, page.asked.faults
    assert not QUIET or p95 < 50
    assert not MUST or p95 < 250  # in other runs the machine may be busy with other tests


@pytest.mark.slow
def test_a_day_by_keyboard_alone_judges_a_hundred_pairs_flags_undoes_ranks_and_edits(world, site, open_page):
    """What was pressed is what stands in the database."""
    flags = Question(name="safe", kind="safe_unsafe", required=False)
    save_rubric(world, Rubric(name="day", version=1, categories=("violence", "privacy"),
                              questions=(load_rubric(world, "pairwise").questions[0], flags)), actor="boss")
    project(world, "day", pairs(101), name="day")
    project(world, "ranking", [item_of(["one", "two", "three"], text=f"rank {at}") for at in range(6)], name="rank")
    project(world, "edit", [item_of(["The sky is green.", "Grass."], text=f"edit {at}") for at in range(4)], name="edit")
    page, strengths = open_page(), []
    page.goto(f"{site}/annotate/day")
    for at in range(100):
        level = at % 7
        page.keyboard.press("1234567"[level])
        if at % 10 == 3:  # the first answer is unsafe, for violence; the second is safe
            for key in ("f", "2", "1", "Enter"):
                page.keyboard.press(key)
            press(page, "1")
        else:
            press(page, "Control+Enter")
        if at % 25 == 5:  # a slip: back to it, and the other way round
            stored(page)
            press(page, "u")
            level = 6 - level if level != 3 else 6
            page.keyboard.press("1234567"[level])
            press(page, "Control+Enter")
        strengths.append(abs(level - 3))
    stored(page)
    said = [each for each in judgements(world, "day") if each.kind == "pair"]
    assert sorted(max(each.values) for each in said) == sorted(strengths) and len({each.responses for each in said}) == 100
    unsafe = [each for each in judgements(world, "day") if each.categories]
    assert [each.categories for each in unsafe] == [("violence",)] * 10
    every = list(judgements(world, "day", withdrawn=True))
    assert sum("withdrawn" in each.flags for each in every) == 4
    page.goto(f"{site}/annotate/rank")
    for _ in range(5):
        page.keyboard.press("2")
        page.keyboard.press("1")
        press(page, "3")
    stored(page)
    assert sorted(sum(([*each.values] for each in judgements(world, "rank")), [])) == [1] * 5 + [2] * 5 + [3] * 5
    page.goto(f"{site}/annotate/edit")
    for at in range(3):
        page.keyboard.press("1")  # the left answer is better, and its text is taken
        page.keyboard.press("Control+End")
        page.keyboard.type(f" And {at} kites.")
        press(page, "Control+Enter")
    stored(page)
    edits = [each.edit for each in judgements(world, "edit") if each.kind == "edit"]
    assert len(edits) == 3 and all(edit.endswith(f" And {at} kites.") for at, edit in enumerate(edits))
    assert not page.asked.faults, page.asked.faults


@pytest.mark.parametrize("first", ["the one who had it first", "the other"])
def test_two_people_race_for_one_item_and_exactly_one_is_taken(world, site, open_page, first):
    """Both see the same item, as the first one's time ran out; whoever holds it now is taken, the other is told and goes on."""
    create_person(world, "ann-08", "annotator", actor="boss")
    project(world, items=pairs(8), settings=Settings(overlap=1, overlap_share=0.0, gold_share=0.0))
    slow, quick = open_page("ann-07"), open_page("ann-08")
    slow.goto(f"{site}/annotate/demo")
    slow.wait_for_load_state("networkidle")
    with world.write() as conn:
        conn.execute(update(leases).values(expires=1.0))
    quick.goto(f"{site}/annotate/demo")
    quick.wait_for_load_state("networkidle")
    contested = slow.locator(".card .turn.last").text_content()
    assert quick.locator(".card .turn.last").text_content() == contested
    for page in (slow, quick) if first == "the one who had it first" else (quick, slow):
        press(page, "1")
    expect(slow.locator("#toast")).to_contain_text("Not stored: your time for it had run out")
    stored(slow), stored(quick)
    assert slow.locator(".card .turn.last").text_content() != contested, "the next one is there already"
    said = list(judgements(world, "demo"))
    assert [(each.judge, each.values) for each in said] == [("human:ann-08", said[0].values)]
    for _ in range(4):  # the other two in their hands had run out too
        press(slow, "7")
    stored(slow)
    per_item = [tuple(sorted(each.responses)) for each in judgements(world, "demo")]
    assert len(per_item) == len(set(per_item)) and {each.judge for each in judgements(world, "demo")} == {"human:ann-07", "human:ann-08"}


def test_undo_skip_reason_and_draft_by_keyboard(world, site, open_page):
    project(world, items=pairs(4))
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    first = current(page)
    page.keyboard.press("r")
    page.keyboard.type("the left one, 7 times")
    assert current(page) == first, "numbers in a text are text"
    page.keyboard.press("Escape")
    page.wait_for_timeout(400)
    page.reload()  # the draft is there again
    expect(page.locator("textarea[name='q.reason']")).to_have_value("the left one, 7 times")
    press(page, "1")
    second = current(page)
    page.keyboard.press("u")
    page.wait_for_function("first => document.querySelector('.card')?.dataset.lease === first", arg=first)
    expect(page.locator(".card input:checked")).to_have_value("-3")
    expect(page.locator("textarea[name='q.reason']")).to_have_value("the left one, 7 times")
    press(page, "7")
    assert current(page) == second, "what was on the screen comes back"
    page.keyboard.press("s")
    press(page, "4")
    stored(page)
    said = list(judgements(world, "demo", withdrawn=True))
    assert [each.kind for each in said] == ["pair", "label", "pair"] and said[1].follows == said[0].id
    assert said[2].values == (0, 3) and said[2].reason == "the left one, 7 times"
    assert not page.asked.faults, page.asked.faults


def test_the_last_item_leads_to_the_end_and_back_by_undo(world, site, open_page):
    project(world, items=pairs(1))
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    page.keyboard.press("4")
    page.wait_for_selector("text=There is nothing left for you")
    page.click("text=Undo the last one")
    page.wait_for_selector(".card")
    page.keyboard.press("5")
    page.wait_for_selector("text=There is nothing left for you")
    assert [each.values for each in judgements(world, "demo")] == [(0, 1)]


def test_four_answers_are_ranked_by_number_keys_with_ties(world, site, open_page):
    project(world, "ranking", [item_of([f"answer {at} {name}" for name in "abcd"], text=f"q{at}") for at in range(2)])
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    for key in "234":
        page.keyboard.press(key)
    page.keyboard.press("3")
    expect(page.locator("#toast")).to_contain_text("must have rank 1")  # and nothing was sent
    assert not list(judgements(world, "demo"))
    for _ in range(4):
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("Backspace")
    for key in "213":
        page.keyboard.press(key)
    press(page, "2")
    stored(page)
    assert [each.values for each in judgements(world, "demo")] == [(2, 1, 3, 2)]


def test_the_better_answer_is_edited_with_a_word_diff(world, site, open_page):
    project(world, "edit", [item_of(["The sky is green today.", "Grass."], text=f"q{at}") for at in range(2)])
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    left = page.locator("#answer-0 .raw pre").text_content()
    better = "1" if "sky" in left else "7"
    page.keyboard.press(better)  # the better answer's text is taken, and the cursor stands in it
    text = page.locator("textarea[name='q.edit.text']")
    expect(text).to_have_value("The sky is green today.")
    text.fill("The sky is blue today.")
    expect(page.locator(".field.edit del")).to_have_text("green")
    expect(page.locator(".field.edit ins")).to_have_text("blue")
    expect(page.locator(".distance")).to_contain_text("2 words")
    press(page, "Control+Enter")
    stored(page)
    edit = next(each for each in judgements(world, "demo") if each.kind == "edit")
    assert edit.edit == "The sky is blue today." and len(edit.responses) == 1


def test_spans_are_marked_by_keyboard_and_count_code_points(world, site, open_page):
    text = "a\r\n\U0001f600 wrong\r\nend"
    project(world, "spans", [item_of([text])])
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    source = page.locator("textarea.source")
    source.focus()
    page.keyboard.press("Control+Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("2")  # the second label: wrong
    expect(page.locator(".marked mark")).to_have_text("wrong")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=There is nothing left for you")
    span = next(judgements(world, "demo")).spans[0]
    assert (text[span.start : span.end], span.label) == ("wrong", "wrong")


def test_unsafe_asks_for_categories_and_ratings_go_cell_by_cell(world, site, open_page):
    project(world, "safety", [item_of(["a", "b"])], name="safe")
    page = open_page()
    page.goto(f"{site}/annotate/safe")
    for key in ("2", "2", "5", "Enter", "1"):  # A unsafe: violence and illegal; B safe
        page.keyboard.press(key)
    page.wait_for_selector("text=There is nothing left for you")
    said = list(judgements(world, "safe"))
    assert [each.values for each in said] == [(1,), (0,)] and said[0].categories == ("violence", "illegal")
    project(world, "ratings", [item_of(["a", "b"], text="rate")], name="rate")
    page.goto(f"{site}/annotate/rate")
    for key in "543215":
        page.keyboard.press(key)
    page.wait_for_selector("text=There is nothing left for you")
    assert [each.values for each in judgements(world, "rate")] == [(5, 4), (3, 2), (1, 5)]


def test_a_session_that_ends_in_mid_judgement_loses_nothing(world, site, open_page):
    signin.set_password(world, "ann-07", "four words and more", actor="boss")
    project(world, items=pairs(3))
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    page.keyboard.press("r")
    page.keyboard.type("kept")
    page.keyboard.press("Escape")
    signin.close_sessions(world, "ann-07")
    page.keyboard.press("2")
    page.wait_for_url("**/signin**")
    assert not list(judgements(world, "demo"))
    page.fill("[name=name]", "ann-07")
    page.fill("[name=password]", "four words and more")
    page.click("button.main")
    page.wait_for_url("**/annotate/demo")
    stored(page)
    assert [(each.values, each.reason) for each in judgements(world, "demo")] == [((2, 0), "kept")]


def test_a_lost_connection_loses_nothing(world, site, open_page):
    project(world, items=pairs(4))
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    page.wait_for_load_state("networkidle")
    page.context.set_offline(True)
    press(page, "1")
    press(page, "2")
    expect(page.locator("#toast")).to_contain_text("not sent yet")
    assert not list(judgements(world, "demo"))
    page.context.set_offline(False)
    stored(page)
    assert [each.values for each in judgements(world, "demo")] == [(3, 0), (2, 0)]


def test_without_javascript_a_person_votes_by_plain_forms(world, site, open_page):
    project(world, items=pairs(2))
    page = open_page(java_script_enabled=False)
    page.goto(f"{site}/annotate/demo")
    first = current(page)
    page.check("input[value='-3']")
    page.click("text=Send")
    assert current(page) != first
    page.click("text=Undo")
    assert current(page) == first and page.locator(".card input:checked").get_attribute("value") == "-3"
    page.check("input[value='3']")
    page.click("text=Send")
    page.click("summary:has-text('Skip')")
    page.click("text=The task is unclear")
    page.wait_for_selector("text=There is nothing left for you")
    assert [each.values for each in judgements(world, "demo")] == [(0, 3)]


def test_hostile_text_runs_nothing_and_asks_for_nothing(world, site, open_page):
    hostile = (
        "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'> ![x](https://evil.example/a.png) "
        "[y](javascript:window.owned=1) \u202etxt.exe \0 </textarea></pre><svg onload=window.owned=1>"
    )
    project(world, "spans", [item_of([hostile, "fine"], text=hostile)])
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    page.keyboard.press("m")
    page.keyboard.press("d")
    page.wait_for_timeout(300)
    assert page.evaluate("window.owned") is None
    assert all(url.startswith(site) for url in page.asked.urls) and not page.asked.faults
    raws = page.locator(".raw pre").all_text_contents()
    assert hostile.replace("\0", "\ufffd") in raws


def test_an_adjudicator_settles_from_the_list(world, site, open_page):
    project(world, items=pairs(1))
    create_person(world, "ann-08", "annotator", actor="boss")
    for name, value in (("ann-07", -3), ("ann-08", 3)):
        handed = next_item(world, name, "demo")
        flip = 1 if handed.lease.order[0] == 0 else -1
        submit(world, handed.lease.id, name, key="k", answers=Answers(values={"preference": value * flip}))
    page = open_page("boss")
    page.goto(f"{site}/projects/demo/adjudicate")
    page.click("button:has-text('Settle')")
    page.wait_for_selector("text=You settle a disagreement")
    page.wait_for_load_state()
    page.keyboard.press("1")
    page.wait_for_selector("td:has-text('settled')")
    assert [each.purpose for each in collected(world, "demo")] == ["judge", "judge", "adjudicate"]


PAGES = (
    "/annotate/demo",
    "/annotate/rank",
    "/annotate/safe",
    "/annotate/edit",
    "/annotate/spans",
    "/annotate/write",
    "/annotate/rate",
    "/",
    "/projects",
    "/projects/demo",
    "/projects/demo/agreement",
    "/projects/demo/adjudicate",
    "/people",
    "/people/ann-07",
    "/rubrics",
    "/rubrics/safety",
    "/audit",
    "/account",
    "/mine/demo",
    "/nope",
)


def every_kind(db):
    said = (Message(role="user", text="Hello"), Message(role="assistant", text="Hi! *What* do you want to know?"))
    project(
        db,
        items=[
            item_of(
                ["A kite is a **toy**.\n\n- wind\n- string\n\n```python\nfly(kite)\n```", "It flies."],
                text="What is a kite?",
                kind="pair",
            )
        ],
    )
    project(db, "ranking", [item_of(["one", "two", "three"])], name="rank")
    project(db, "safety", [item_of(["a", "b"])], name="safe")
    project(db, "edit", [item_of(["a", "b"])], name="edit")
    project(db, "spans", [item_of(["some text"])], name="spans")
    project(db, "write", [item_of([], kind="demonstration")], name="write")
    project(db, "ratings", [item_of(["a", "b"])], name="rate")
    return said


@pytest.mark.slow
@pytest.mark.skipif(Axe is None and not MUST, reason="axe-playwright-python is not installed")
@pytest.mark.parametrize(
    "lang, theme, width",
    [
        ("en", "light", 1280),
        ("zh", "dark", 360),
        ("en", "contrast", 360),
        ("zh", "light", 1280),
        ("en", "dark", 1280),
        ("en", "light", 360),
        ("zh", "dark", 1280),
        ("zh", "light", 360),
        ("en", "dark", 360),
    ],
)
def test_axe_finds_nothing_and_no_page_is_wider_than_the_screen(world, site, open_page, lang, theme, width):
    every_kind(world)
    page = open_page("boss", width=width, height=740)
    page.context.add_cookies([{"name": "lang", "value": lang, "url": site}, {"name": "theme", "value": theme, "url": site}])
    faults = []
    for path in (*PAGES, "/signin", "/link/x"):
        if path == "/signin":
            page.context.clear_cookies(name=COOKIE)
        page.goto(site + path)
        for found in Axe().run(page).response["violations"]:
            faults.append((path, found["id"], [node["html"][:150] for node in found["nodes"]][:3]))
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
            faults.append((path, "wider than the screen", wide))
    assert not faults, "\n".join(map(str, faults))


def test_buttons_are_large_enough_for_a_finger(world, site, open_page):
    every_kind(world)
    page = open_page("boss", width=360, height=740)
    for path in (
        "/annotate/demo",
        "/annotate/rank",
        "/annotate/safe",
        "/annotate/edit",
        "/projects/demo",
        "/people",
        "/account",
    ):
        page.goto(site + path)
        small = page.evaluate("""() => [...document.querySelectorAll("button, .button, .choice, select, summary")]
          .map((each) => [each, each.getBoundingClientRect()]).filter(([, box]) => box.width && (box.height < 43.5 || box.width < 43.5))
          .map(([each, box]) => `${each.textContent.trim().slice(0, 30)} ${Math.round(box.width)}x${Math.round(box.height)}`)""")
        assert not small, (path, small)
