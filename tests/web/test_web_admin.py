"""The pages of those who run it, and the REST API."""

import json

import pytest
from web_world import PLAIN, item_of

from tutelage.core.errors import UserError
from tutelage.stats.agreement import krippendorff_alpha
from tutelage.store import signin
from tutelage.store.accounts import load_person
from tutelage.store.answers import Answers
from tutelage.store.collected import collected, judgements
from tutelage.store.feedback import Item, add_items, create_project, iter_items, load_project
from tutelage.store.ledger import audit
from tutelage.store.queue import next_item, submit
from tutelage.web.pages.agreement import by_question
from tutelage.web.pages.projects import as_item


@pytest.fixture
def admin(browser):
    return browser("the-admin")


def judge(db, name, value, project="demo"):
    """`value` in the item's own order: above 0 its second answer is better."""
    handed = next_item(db, name, project)
    shown = value if handed.lease.order[0] == 0 else -value
    return submit(
        db, handed.lease.id, name, key=f"{name}-{handed.lease.id}", answers=Answers(values={"preference": shown}, seconds=2.0)
    )


def test_a_project_is_made_changed_and_filled(admin, db):
    made = admin.submit(
        "/projects",
        {
            "name": "new",
            "title": "New kites",
            "rubric": "ranking@1",
            "overlap": "4",
            "overlap_share": "0.5",
            "gold_share": "0.1",
            "lease_seconds": "600",
            "daily_limit": "0",
            "shuffle": "yes",
            "open": "yes",
        },
    )
    assert made.headers["location"] == "/projects/new"
    settings = load_project(db, "new").settings
    assert (settings.overlap, settings.overlap_share, settings.reveal, settings.open) == (4, 0.5, False, True)
    rows = "\n\n".join([
        '{"prompt": "Why?", "responses": ["a", {"text": "b", "policy": "m"}, "c"]}',
        '{"prompt": [{"role": "user", "content": "x"}], "responses": ["1", "2"]}',
    ])
    assert admin.submit("/projects/new/items", {"rows": rows}).status_code == 303
    assert [(item.kind, len(item.responses)) for item in iter_items(db, "new")] == [("set", 3), ("pair", 2)]
    assert admin.submit("/projects/new", {"title": "Old", "rubric": "ranking@1", "overlap": "x"}).status_code == 400
    assert admin.submit("/projects/new", {"title": "Old", "rubric": "pairwise@1", "overlap": "2"}).status_code == 303
    project = load_project(db, "new")
    assert (project.title, project.rubric, project.settings.open) == ("Old", "pairwise@1", False)
    assert admin.submit("/projects/new/items", {"rows": "nonsense"}).status_code == 400
    assert admin.submit("/projects", {"name": "../etc", "rubric": "ranking"}).status_code == 400


@pytest.mark.parametrize(
    "row",
    [
        "[1]",
        "{",
        '{"prompt": 5}',
        '{"responses": [1]}',
        '{"prompt": "x", "responses": "ab"}',
        '{"kind": "odd"}',
        '{"prompt": {"messages": 3}}',
        '{"prompt": [{"role": "x", "text": "y"}]}',
        "null",
        "[" * 100_000,
    ],
)
def test_a_row_that_is_no_item_says_which(row):
    with pytest.raises(UserError, match="^item 3: "):
        as_item(row, 3)


def test_an_invited_person_comes_in_by_the_link(admin, browser, db):
    page = admin.submit(
        "/people",
        {"name": "ann-9", "role": "annotator", "title": "安", "skills": "law, code", "languages": "zh", "daily_limit": "50"},
    )
    link = page.text.split("/link/")[1].split("<")[0]
    person = load_person(db, "ann-9")
    assert (person.skills, person.languages, person.daily_limit, person.title) == (("law", "code"), ("zh",), 50, "安")
    new = browser()
    assert new.post(f"/link/{link}").status_code == 303 and new.get("/").status_code == 200
    admin.submit("/people/ann-9", {"role": "reader", "active": "yes", "daily_limit": "0"})
    assert load_person(db, "ann-9").role == "reader" and new.get("/annotate/demo").status_code == 403
    admin.submit("/people/ann-9", {"role": "reader", "daily_limit": "0"})
    assert new.get("/").status_code == 303, "who is no longer active is signed out"
    assert admin.submit("/people/the-admin", {"role": "reader", "active": "yes"}).status_code == 400, "the last admin stays one"


def test_opt_outs_keep_items_away(browser, db):
    create_project(db, "hard", rubric="pairwise", settings=PLAIN, actor="tests")
    add_items(db, "hard", [item_of(["a", "b"], harms=("violence",))], actor="tests")
    client = browser("the-annotator")
    client.submit("/account/opt-outs", {"category": ["violence"]})
    assert "nothing left" in client.get("/annotate/hard").text and load_person(db, "the-annotator").opt_outs == ("violence",)


def test_a_rubric_is_saved_as_its_next_version(admin):
    body = {
        "name": "mine",
        "questions": [{"name": "q", "kind": "pair", "text": {"zh": "哪个好"}}],
        "guidelines": {"en": "# Be fair\n<script>"},
    }
    assert admin.submit("/rubrics", {"body": json.dumps(body)}).headers["location"] == "/rubrics/mine@1"
    body["questions"][0]["levels"] = 4
    assert admin.submit("/rubrics", {"body": json.dumps(body)}).headers["location"] == "/rubrics/mine@2"
    page = admin.get("/rubrics/mine@1").text
    assert "Be fair" in page and "<script>" not in page.replace("&lt;script&gt;", "")
    for wrong in (
        "{",
        "[]",
        '{"name": "x", "questions": []}',
        '{"name": "mine", "questions": [{"name": "q", "kind": "odd"}]}',
        "[" * 100_000,
    ):
        assert admin.submit("/rubrics", {"body": wrong}).status_code == 400


def test_agreement_is_shown_with_intervals_and_undefined_is_said(admin, db):
    page = admin.get("/projects/demo/agreement").text
    assert page.count("none yet") >= 2
    for name in ("the-annotator", "ann-2"):
        for _ in range(5):
            judge(db, name, 2)
    page = admin.get("/projects/demo/agreement").text
    assert "undefined" in page and "1.000" in page, "all said the same: nothing to correct for chance"
    assert "took less than 3 s" in page


def test_alpha_on_the_page_is_that_of_the_statistics(db):
    values = {"the-annotator": [3, 2, -1, 0, 1], "ann-2": [2, 2, -2, 1, -1]}
    for name, each in values.items():
        for value in each:
            judge(db, name, value)
    found = by_question(list(collected(db, "demo")))
    assert len(found) == 1 and found[0].question == "preference"
    wanted = krippendorff_alpha(list(values.values()), scale="ordinal").value
    assert found[0].alpha.value == pytest.approx(wanted, abs=1e-12)


def test_disagreements_are_listed_and_settled(browser, admin, db):
    judge(db, "the-annotator", 2)
    judge(db, "ann-2", -2)
    page = admin.get("/projects/demo/adjudicate").text
    assert "1 of 1 disagreements" in page
    item = next(collected(db, "demo")).item
    opened = admin.submit(f"/items/{item}/adjudicate")
    assert (
        opened.headers["location"].startswith("/lease/")
        and "You settle a disagreement" in admin.get(opened.headers["location"]).text
    )
    assert browser("the-reader").submit(f"/items/{item}/adjudicate").status_code == 403


def test_exports_are_json_lines_and_the_log_keeps_who_took_them(browser, db):
    judge(db, "the-annotator", 2)
    rows = [json.loads(line) for line in browser("the-reader").get("/projects/demo/export/judgements.jsonl").text.splitlines()]
    assert rows == [each.to_dict() for each in judgements(db, "demo")]
    items = browser("the-reader").get("/projects/demo/export/items.jsonl").text.splitlines()
    assert [Item.from_dict(json.loads(line)).id for line in items] == [item.id for item in iter_items(db, "demo")]
    assert {each.actor for each in audit(db, kind="export")} == {"the-reader"}
    assert browser("the-reader").get("/projects/demo/export/passwords.jsonl").status_code == 400


def test_the_log_is_shown_filtered_and_verified(admin, db):
    assert "the-annotator" in admin.get("/audit?kind=person").text
    assert admin.get("/audit?before=99999999999999999999999").status_code == 422
    assert admin.get("/audit?kind=%00").status_code == 200
    assert "The chain is whole" in admin.submit("/audit/verify").text
    with db.write() as conn:
        conn.exec_driver_sql("update log set actor = 'eve' where seq = 2")
    assert "The chain is broken" in admin.submit("/audit/verify").text


@pytest.fixture
def api(browser, db):
    def for_token(name, *scopes):
        secret = signin.make_token(db, name, title="t", scopes=scopes, actor="tests").secret
        client = browser()
        client.headers["authorization"] = f"Bearer {secret}"
        return client

    return for_token


def test_the_api_fills_judges_and_reads(api, db):
    boss = api("the-admin", "admin", "ask", "read")
    assert (
        boss.post(
            "/api/v1/projects", json={"name": "api", "rubric": "pairwise", "settings": {"overlap": 1, "gold_share": 0}}
        ).status_code
        == 201
    )
    items = {"items": [{"prompt": "Why?", "responses": [{"text": "a", "policy": "m1"}, {"text": "b", "policy": "m2"}]}]}
    assert boss.post("/api/v1/projects/api/items", json=items).json() == {"new": 1, "known": 0}
    assert boss.post("/api/v1/projects/api/items", json=items).json() == {"new": 0, "known": 1}
    ann = api("the-annotator", "judge")
    handed = ann.get("/api/v1/projects/api/next").json()["items"][0]
    assert sorted(handed["responses"]) == ["a", "b"] and "m1" not in json.dumps(handed)
    body = {"key": "k1", "values": {"preference": 3}, "seconds": 4.5}
    assert ann.post(f"/api/v1/leases/{handed['lease']}", json=body).json()["status"] == "stored"
    assert ann.post(f"/api/v1/leases/{handed['lease']}", json=body).json()["duplicate"] is True
    lines = boss.get("/api/v1/projects/api/export/judgements")
    assert json.loads(lines.text)["values"] == [0, 3] and int(lines.headers["x-upto"]) > 0
    assert boss.get("/api/v1/projects/api/progress").json()["judged"] == 1
    assert ann.post(f"/api/v1/leases/{handed['lease']}/undo").json()["draft"] == {"preference": 3}
    assert json.loads(boss.get("/api/v1/projects/api/export/judgements", params={"upto": lines.headers["x-upto"]}).text)[
        "values"
    ] == [0, 3]
    assert not boss.get("/api/v1/projects/api/export/judgements").text
    assert ann.post(f"/api/v1/leases/{handed['lease']}/skip", json={"reason": "later"}).json() == {"skipped": True}
    assert ann.get("/api/v1/projects").status_code == 401, "no such scope"
    invited = boss.post("/api/v1/people", json={"name": "new-one", "role": "annotator"})
    assert invited.status_code == 201 and "/link/" in invited.json()["link"]
    assert boss.post("/api/v1/people", json={"name": "new-one", "role": "king"}).status_code == 422
    assert (
        boss.post("/api/v1/rubrics", json={"name": "mine", "questions": [{"name": "q", "kind": "pair"}]}).json()["version"] == 1
    )
    assert boss.get("/api/v1/audit", params={"limit": 1}).json()[0]["seq"] == 1


def test_the_api_is_described_and_takes_no_cookie(browser, admin):
    described = admin.get("/api/v1/openapi.json").json()
    assert len(described["paths"]) >= 12 and all(path.startswith("/api/v1/") for path in described["paths"])
    assert all("security" in method for path in described["paths"].values() for method in path.values())
    assert admin.get("/api/v1/projects").status_code == 401, "a cookie is no key: no page of another site can use the API"


def test_a_revoked_token_opens_nothing(browser, db, api):
    client = browser("the-reader")
    page = client.submit("/account/tokens", {"title": "mine", "scope": ["read"]}).text
    secret = page.split("shown once: <code>")[1].split("<")[0]
    bearer = {"authorization": f"Bearer {secret}"}
    assert browser().get("/api/v1/projects", headers=bearer).status_code == 200
    token = signin.list_tokens(db, "the-reader")[0].id
    assert browser("ann-2").submit(f"/account/tokens/{token}/revoke").status_code == 400, "not somebody else's"
    client.submit(f"/account/tokens/{token}/revoke")
    assert browser().get("/api/v1/projects", headers=bearer).status_code == 401


def test_one_sees_ones_own_figures(browser, db):
    judge(db, "the-annotator", 1)
    page = browser("the-annotator").get("/mine/demo").text
    assert "<dd>1</dd>" in page and "2 s" in page
