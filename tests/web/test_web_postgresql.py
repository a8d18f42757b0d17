"""The web app on PostgreSQL: the same command, the same pages."""

import itertools
import json
import re
import subprocess
import sys

import httpx
import pytest
from people.cluster import Missing, cluster, new_database
from web_world import PLAIN, pairs

from tutelage.store.accounts import create_person
from tutelage.store.collected import judgements
from tutelage.store.db import open_database
from tutelage.store.feedback import add_items, create_project
from tutelage.store.ledger import verify


@pytest.fixture
def address(tmp_path):
    """`tutelage web` on an empty database of a cluster in a temporary folder: (its address, the admin's link, the database)."""
    try:
        with cluster() as place:
            url = new_database(place)
            with open(tmp_path / "log", "w") as log, subprocess.Popen(
                    [sys.executable, "-m", "tutelage", "web", "--database", url, "--port", "0", "--json"], cwd=tmp_path,
                    stdout=subprocess.PIPE, stderr=log, text=True) as process:
                lines = list(itertools.takewhile(lambda line: line.rstrip() != "}", process.stdout))
                assert lines, (tmp_path / "log").read_text()
                told = json.loads("".join(lines) + "}")
                yield told["address"], told["admin_link"], url
                process.terminate()
                process.wait(30)
            assert "Traceback" not in (tmp_path / "log").read_text()
    except Missing as missing:
        pytest.skip(str(missing))


def field(page, name):
    return re.search(rf'name="{name}" value="([^"]*)"', page)[1]


def test_signing_in_annotating_and_undoing_work_on_postgresql(address):
    place, admin_link, url = address
    db = open_database(url)
    create_person(db, "ann-07", "annotator", actor="tests")
    create_project(db, "demo", rubric="pairwise", title="Kites", settings=PLAIN, actor="tests")
    add_items(db, "demo", pairs(3), actor="tests")
    with httpx.Client(base_url=place, timeout=60) as admin, httpx.Client(base_url=place, timeout=60, follow_redirects=True) as ann:
        assert admin.post(admin_link).status_code == 303 and "ann-07" in (people := admin.get("/people").text)
        invited = admin.post("/people/ann-07/link", data={"csrf": field(people, "csrf")}).text
        link = re.search(rf"{place}/link/[\w-]+", invited)[0]
        assert ann.post(link).url.path == "/account"
        card = ann.get("/annotate/demo").text
        lease, sent = re.search(r'data-lease="(\w+)"', card)[1], {name: field(card, name) for name in ("csrf", "key")}
        said = {"q.preference": "-3", "q.reason": "a \u98ce\u7b5d \U0001fa81", "seconds": "4.2"}
        following = ann.post(f"/lease/{lease}", data={**sent, **said})
        assert following.status_code == 200 and lease not in following.text
        assert "-3" in (back := ann.post("/annotate/demo/undo", data={"csrf": sent["csrf"]}).text) and lease in back
        again = ann.post(f"/lease/{lease}", data={**sent, "key": field(back, "key"), "q.preference": "2"})
        assert again.status_code == 200
        assert ann.get("/projects/demo").status_code == 403
        for page in ("/projects/demo", "/projects/demo/agreement", "/projects/demo/adjudicate", "/audit",
                     "/projects/demo/export/judgements.jsonl"):
            assert admin.get(page).status_code == 200, page
        # PostgreSQL keeps no null bytes in names and no half characters: refused, not failed
        for nasty in ("%00", "a%00b", "%ed%a0%80", "%ff"):
            assert ann.get(f"/lease/{nasty}").status_code < 500 and admin.get(f"/people/{nasty}").status_code < 500
            assert admin.get(f"/audit?actor={nasty}").status_code < 500
        assert ann.post("/annotate/demo/undo", data={"csrf": sent["csrf"], "lease": "a\0b"}).status_code < 500
    said = list(judgements(db, "demo", withdrawn=True))
    assert [max(each.values, default=None) for each in said] == [3, None, 2] and said[0].reason.endswith("\U0001fa81")
    assert verify(db).ok
    db.close()
