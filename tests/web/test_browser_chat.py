"""In a real browser: a live chat by keyboard and without JavaScript, the two answers as tabs, and both for everybody's eyes."""

import pytest
from openai_stub import answer, error, serving
from test_browser import (  # the same Chromium, server and reasons to be skipped
    COOKIE,
    MUST,
    Axe,
    chromium,
    current,
    expect,
    item_of,
    open_page,
    project,
    site,
    stored,
    world,
)

from tutelage.store.chat_settings import ChatSettings
from tutelage.store.collected import judgements
from tutelage.store.feedback import Item, Settings, add_items, create_project, iter_items

pytestmark = pytest.mark.web
_fixtures = (chromium, open_page, site, world)
SCRIPTED = "html.js .card"  # before its scripts run, a page hears no keys
WHY = "Rayleigh scattering: short waves are scattered **more**.\n\n- blue: 450 nm\n- red: 700 nm\n\n`1/wave**4`"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def named(body, number):
    return answer({"secret-alpha": "It is the ozone.", "secret-beta": WHY}[body["model"]])


def chats(db, stub, *, two=True, rubric="pairwise", name="talk", **chat):
    engines = ChatSettings(a=f"{stub.address}#secret-alpha", b=f"{stub.address}#secret-beta" if two else "", **chat)
    create_project(db, name, rubric=rubric, title="Two kites", settings=Settings(gold_share=0.0, chat=engines), actor="boss")
    add_items(db, name, [Item(kind="chat", id=f"{name}-{at}") for at in range(2)], actor="boss")


def say(page, text):
    page.wait_for_selector("html.js textarea[name=turn]")
    page.fill("textarea[name=turn]", text)
    page.keyboard.press("Control+Enter")


def test_a_person_chats_and_judges_by_keyboard_alone(world, site, open_page):
    with serving(named) as stub:
        chats(world, stub)
        page = open_page()
        page.goto(f"{site}/annotate/talk")
        page.keyboard.type("Why is the sky blue?")  # the field has the focus
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(SCRIPTED)
        assert page.locator(".answer .shown").count() == 2 and "secret" not in page.content()
        page.keyboard.press("7")
        page.wait_for_selector("html.js textarea[name=turn]")
        expect(page.locator(".talk .turn")).to_have_count(2)
        page.keyboard.type("And at night?")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(SCRIPTED)
        page.keyboard.press("1")
        page.wait_for_selector("text=End the conversation")
        page.click("text=End the conversation")
        page.wait_for_selector("textarea[name=turn]")  # the next conversation
        assert not page.asked.faults
    assert [said.values for said in judgements(world, "talk")] == [(0, 3), (3, 0)]


def test_without_javascript_a_conversation_is_had_by_plain_forms(world, site, open_page):
    with serving(named) as stub:
        chats(world, stub, two=False, rubric="good-bad")
        page = open_page(java_script_enabled=False)
        page.goto(f"{site}/annotate/talk")
        page.fill("textarea[name=turn]", "Hello")
        page.click("button:has-text('Send')")
        page.check("input[value=bad]")
        page.click("button:has-text('Send')")
        page.fill("textarea[name=turn]", "Again")
        page.click("button:has-text('Send')")
        page.check("input[value=good]")
        page.click("button:has-text('Send')")
        page.click("text=End the conversation")
        assert page.locator("textarea[name=turn]").input_value() == ""
    assert [said.values for said in judgements(world, "talk")] == [(0,), (1,)]


def test_what_was_typed_outlives_a_failure_a_reload_and_a_lost_connection(world, site, open_page):
    broken = [True]
    with serving(lambda body, number: error(401, "no") if broken else answer("fine")) as stub:
        chats(world, stub)
        page = open_page()
        page.goto(f"{site}/annotate/talk")
        page.fill("textarea[name=turn]", "half a sen")
        page.reload()
        assert page.locator("textarea[name=turn]").input_value() == "half a sen", "never sent: kept in the browser"
        say(page, "a whole sentence")
        page.wait_for_selector("[role=alert]")
        assert page.locator("textarea[name=turn]").input_value() == "a whole sentence"
        address = page.url
        page.context.set_offline(True)
        page.fill("textarea[name=turn]", "another sentence")
        page.click("button:has-text('Send')")
        page.wait_for_timeout(300)
        page.context.set_offline(False)
        page.goto(address)
        assert page.locator("textarea[name=turn]").input_value() in ("another sentence", "a whole sentence")
        broken.clear()
        say(page, "another sentence")
        page.wait_for_selector(SCRIPTED)
    assert [item.prompt.messages[-1].text for item in iter_items(world, "talk") if item.kind == "pair"] == ["another sentence"]


def test_below_900_pixels_two_answers_are_tabs_and_without_javascript_both_are_shown(world, site, open_page):
    project(world, items=[item_of(["the left one " * 200, "the right one " * 200]), item_of(["c", "d"], text="Next?")])
    page = open_page(width=360, height=740)
    page.goto(f"{site}/annotate/demo")
    first, second = page.locator("#answer-0"), page.locator("#answer-1")
    expect(first).to_be_visible()
    expect(second).to_be_hidden()
    assert page.locator(".tabs button[aria-pressed=true]").text_content().startswith("Answer A")
    page.keyboard.press("]")
    expect(second).to_be_visible()
    expect(first).to_be_hidden()
    page.click(".tabs button >> nth=0")
    expect(first).to_be_visible()
    page.evaluate("scrollTo(0, 2000)")
    page.keyboard.press("]")
    assert page.locator("#answer-1").bounding_box()["y"] > 0, "the other answer from its beginning"
    page.keyboard.press("1")
    page.wait_for_function("() => document.querySelector('.card')?.textContent.includes('Next?')")
    expect(page.locator("#answer-0")).to_be_visible()
    page.set_viewport_size({"width": 1000, "height": 740})
    for at in (0, 1):
        expect(page.locator(f"#answer-{at}")).to_be_visible()
    expect(page.locator(".tabs")).to_be_hidden()
    stored(page)
    plain = open_page(width=360, height=740, java_script_enabled=False)
    plain.goto(f"{site}/annotate/demo")
    for at in (0, 1):
        expect(plain.locator(f"#answer-{at}")).to_be_visible()
    expect(plain.locator(".tabs")).to_be_hidden()


def test_the_count_of_the_batch_goes_down_as_one_judges(world, site, open_page):
    project(world, items=[item_of(["a", "b"], text=f"{at}?") for at in range(3)])
    page = open_page()
    page.goto(f"{site}/annotate/demo")
    for left in (2, 1):
        expect(page.locator("#batch")).to_have_text(f"{left + 1} left in batch")
        before = current(page)
        page.keyboard.press("1")
        page.wait_for_function("before => document.querySelector('.card')?.dataset.lease !== before", arg=before)
        expect(page.locator("#batch")).to_have_text(f"{left} left in batch")


def test_the_count_of_the_batch_is_right_though_one_judges_while_the_next_items_are_on_their_way(world, site, open_page):
    project(world, items=[item_of(["a", "b"], text=f"{at}?") for at in range(3)])
    page = open_page()
    held = []
    page.route("**/annotate/demo/next", lambda route: route.continue_() if held else held.append(route))
    page.goto(f"{site}/annotate/demo")
    page.wait_for_function("() => document.documentElement.classList.contains('js')")
    before = current(page)
    while not held:
        page.wait_for_timeout(20)
    old = held[0].fetch()  # as it was before the judgement
    page.keyboard.press("1")
    page.wait_for_function("() => document.querySelector('#toast').textContent")
    page.wait_for_timeout(300)  # the judgement is stored
    held[0].fulfill(response=old)
    page.wait_for_function("before => document.querySelector('.card')?.dataset.lease !== before", arg=before)
    expect(page.locator("#batch")).to_have_text("2 left in batch")


def test_in_a_mixed_project_a_conversation_opens_from_its_card(world, site, open_page):
    with serving(named) as stub:
        chats(world, stub)
        add_items(world, "talk", [item_of(["a", "b"], batch=0)], actor="boss")
        page = open_page()
        for _ in range(2):
            page.goto(f"{site}/annotate/talk")
            page.click("summary:has-text('Skip')")
            with page.expect_navigation():  # to go on before it is done would take the skip back
                page.click("text=The task is unclear")
        page.wait_for_selector("#answer-0")
        page.wait_for_load_state("networkidle")  # until the scripts stand, the button is a plain form's, which leads straight into the chat
        page.click("button:has-text('Undo')")
        page.wait_for_selector(".card:has-text('This item is a live conversation')")
        page.keyboard.press("Enter")
        page.wait_for_selector("textarea[name=turn]")


@pytest.mark.slow
@pytest.mark.skipif(Axe is None and not MUST, reason="axe-playwright-python is not installed")
@pytest.mark.parametrize("lang, theme, width", [("en", "light", 1280), ("zh", "dark", 360), ("en", "contrast", 360), ("zh", "light", 1280)])
def test_axe_finds_nothing_on_the_pages_of_a_chat(world, site, open_page, lang, theme, width):
    ways = [True]
    with serving(lambda body, number: named(body, number) if ways else error(401, "no")) as stub:
        chats(world, stub, turns=2)
        page = open_page("boss", width=width, height=740)
        page.context.add_cookies([{"name": "lang", "value": lang, "url": site}, {"name": "theme", "value": theme, "url": site}])
        faults = []

        def look(where):
            for found in Axe().run(page).response["violations"]:
                faults.append((where, found["id"], [node["html"][:150] for node in found["nodes"]][:3]))
            if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
                faults.append((where, "wider than the screen", wide))
            small = page.evaluate("""() => [...document.querySelectorAll("button, .button, .choice, select, summary")]
              .map((each) => [each, each.getBoundingClientRect()]).filter(([, box]) => box.width && (box.height < 43.5 || box.width < 43.5))
              .map(([each]) => each.textContent.trim().slice(0, 30))""")
            faults.extend((where, "too small for a finger", each) for each in small)

        page.goto(f"{site}/projects/talk")
        look("the project's page")
        page.goto(f"{site}/annotate/talk")
        look("nothing said")
        ways.clear()
        say(page, "Why is the sky blue?")
        page.wait_for_selector("[role=alert]")
        look("it failed")
        ways.append(True)
        for turn in range(2):
            say(page, "Why is the sky blue?")
            page.wait_for_selector(SCRIPTED)
            look(f"to be judged {turn}")
            page.keyboard.press("1")
            page.wait_for_selector("form[action$='/end']")
            look(f"judged {turn}")
        address = page.url
        page.click("form[action$='/end'] button")
        page.goto(address)
        look("ended")
    assert not faults, "\n".join(map(str, faults))
    assert COOKIE  # the session came from the same place as in the other browser tests
