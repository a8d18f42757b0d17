"""Prompts and demonstrations, from the project's creation in the web app to the rows that SFT and RL learn from."""

import json
import re

import pytest
from web_world import PLAIN

from tutelage.commands.feedback_data import data_sets, folded
from tutelage.core.errors import UserError
from tutelage.store.collected import progress, written
from tutelage.store.feedback import Item, add_items, create_project, iter_items

FORM = {"name": "texts", "title": "", "rubric": "write@1", "overlap": "1", "overlap_share": "1", "gold_share": "0",
        "lease_seconds": "600", "daily_limit": "0", "open": "yes"}


def write(client, **fields):
    """Fill in the form that stands on the page; what the page asked."""
    page = client.get("/annotate/texts").text
    action, key = re.search(r'action="(/lease/\w+)"', page)[1], re.search(r'name="key" value="([\w.]+)"', page)[1]
    told = client.submit(action, {"key": key, "seconds": "9", **{f"q.{name}": text for name, text in fields.items()}})
    return page, told


def test_people_write_prompts_and_demonstrations_and_sft_and_rl_get_them(browser, db):
    admin, ann, other = browser("the-admin"), browser("the-annotator"), browser("ann-2")
    assert admin.submit("/projects", FORM).headers["location"] == "/projects/texts"
    assert admin.submit("/projects/texts/open", {"kind": "prompt", "count": "3"}).status_code == 303
    rows = [{"kind": "demonstration", "prompt": "Say hi", "language": "en"},
            {"kind": "demonstration", "prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                                                 {"role": "user", "content": "And now?"}]}]
    assert admin.submit("/projects/texts/items", {"rows": "\n".join(map(json.dumps, rows))}).status_code == 303
    assert [item.kind for item in iter_items(db, "texts")] == ["prompt"] * 3 + ["demonstration"] * 2

    page, told = write(ann, prompt="  ")
    assert told.status_code == 400 and "question prompt: an answer is needed" in told.text
    assert 'name="q.prompt"' in page and 'name="q.demonstration"' in page
    write(ann, prompt="Why is <b>snow</b> white?\r\n\r\n说说", demonstration="It scatters all light.")
    write(ann, prompt="Name a river")
    write(other, prompt="Name a lake")
    page, _ = write(other, demonstration="Hi there!")
    assert "Say hi" in page and 'name="q.prompt"' not in page, "the prompt is given"
    write(ann, demonstration="Later.\nMuch later.")
    assert "nothing left" in ann.get("/annotate/texts").text

    out = folded(db, "texts")
    assert [(each.author, each.messages[-1].text) for each in out.examples] == [
        ("human:the-annotator", "It scatters all light."), ("human:ann-2", "Hi there!"),
        ("human:the-annotator", "Later.\nMuch later.")]
    assert [[turn.weight for turn in each.messages if turn.role == "assistant"] for each in out.examples] == [[1], [1], [0, 1]], (
        "only what the person wrote is learned")
    assert {each.messages[-1].text for each in out.prompts} == {
        "Why is <b>snow</b> white?\n\n说说", "Name a river", "Name a lake", "Say hi", "And now?"}
    assert set(data_sets(out)) == {"examples", "prompts"}
    exported = [json.loads(line) for line in admin.get("/projects/texts/export/written.jsonl").text.splitlines()]
    assert [row["person"] for row in exported] == ["the-annotator", "the-annotator", "ann-2", "ann-2", "the-annotator"]
    assert progress(db, "texts").judged == 5


def test_what_is_written_can_be_taken_back_and_written_anew(browser, db):
    create_project(db, "texts", rubric="write", settings=PLAIN, actor="tests")
    add_items(db, "texts", [Item(kind="prompt", id="w1")], actor="tests")
    ann = browser("the-annotator")
    write(ann, prompt="first")
    assert ann.submit("/annotate/texts/undo").status_code == 303
    page, _ = write(ann, prompt="second")
    assert "first</textarea>" in page
    assert [each.prompt.messages[0].text for each in written(db, "texts")] == ["second"]


def test_a_rubric_in_which_nobody_could_write_is_refused(browser, db):
    with pytest.raises(UserError, match="pairwise@1 has no question of kind write that is named prompt"):
        add_items(db, "demo", [Item(kind="prompt")], actor="tests")
    found = browser("the-admin").submit("/projects/demo/open", {"kind": "prompt", "count": "1"})
    assert found.status_code == 400 and "take the rubric write" in found.text


@pytest.mark.parametrize("form", [
    {"kind": "pair", "count": "1"}, {"kind": "prompt", "count": "0"}, {"kind": "prompt", "count": "1001"}, {"kind": "chat"},
    {"kind": "prompt", "count": "9" * 5000}, {"kind": "prompt", "count": "1", "tasks": "x"}, {"kind": "chat", "count": "-1"}])
def test_a_wrong_number_of_empty_items_is_refused(browser, db, form):
    create_project(db, "texts", rubric="write", settings=PLAIN, actor="tests")
    assert browser("the-admin").submit("/projects/texts/open", form).status_code == 400
    assert not list(iter_items(db, "texts"))
