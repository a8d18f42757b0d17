"""Signing in and out, and what nobody gets without it."""

import re

import pytest
from fastapi.routing import APIRoute
from web_world import PLAIN, item_of

from tutelage.store import signin
from tutelage.store.feedback import add_items, create_project
from tutelage.store.queue import next_item
from tutelage.web.app import HEADERS
from tutelage.web.auth import COOKIE, inside

PASSWORD = "four words and more"


def routes(app):
    """(method, path) of every route, with names filled in."""

    def walk(parts, prefix=""):
        for route in parts:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            if isinstance(route, APIRoute):
                yield from ((method, route.path) for method in route.methods)
            elif inner is not None:
                yield from walk(inner.routes)
            elif hasattr(route, "methods"):
                yield from ((method, route.path) for method in route.methods)

    fill = {
        "project": "demo",
        "lease": "0" * 32,
        "name": "ann-2",
        "item": "x",
        "secret": "x",
        "ref": "pairwise",
        "what": "items",
        "token": "x",
        "digest": "x",
    }
    return sorted(
        {
            (method, re.sub(r"\{(\w+)\}", lambda found: fill[found[1]], path))
            for method, path in walk(app.routes)
            if method in ("GET", "POST")
        }
    )


OPEN = {
    ("GET", "/signin"),
    ("POST", "/signin"),
    ("GET", "/link/x"),
    ("POST", "/link/x"),
    ("POST", "/look"),
    ("GET", "/health"),
    ("GET", "/static/x/ann-2"),
    ("GET", "/favicon.ico"),
}


def test_an_anonymous_visitor_reaches_sign_in_and_static_files_alone(app, browser):
    anybody, found = browser(), routes(app)
    assert len(found) > 45 and OPEN <= set(found)
    for method, path in found:
        if (method, path) in OPEN:
            continue
        for headers in ({}, {"accept": "application/json"}):
            response = anybody.request(
                method, path, headers=headers, **({"data": {}} if method == "POST" and "/api/" not in path else {})
            )
            redirected = response.status_code == 303 and response.headers["location"].startswith("/signin?next=")
            assert response.status_code == 401 or redirected, (method, path, response.status_code)
            assert "Kites" not in response.text and "answer 0" not in response.text


@pytest.mark.parametrize(
    "role, may",
    [
        ("reader", {"read"}),
        ("annotator", {"annotate"}),
        ("adjudicator", {"annotate", "read", "adjudicate"}),
        ("admin", {"annotate", "read", "adjudicate", "administer"}),
    ],
)
def test_each_role_reaches_its_own_pages_and_no_others(app, browser, db, role, may):
    client = browser(f"the-{role}")
    needs = {
        "/annotate/demo": "annotate",
        "/annotate/demo/next": "annotate",
        "/mine/demo": "annotate",
        "/projects": "read",
        "/projects/demo": "read",
        "/projects/demo/agreement": "read",
        "/projects/demo/adjudicate": "read",
        "/projects/demo/export/judgements.jsonl": "read",
        "/rubrics": "read",
        "/rubrics/pairwise": "read",
        "/people": "administer",
        "/people/ann-2": "administer",
        "/audit": "administer",
        "/": None,
        "/account": None,
    }
    for path, action in needs.items():
        assert client.get(path).status_code == (200 if action is None or action in may else 403), path
    for path, action in {
        "/projects": "administer",
        "/projects/demo": "administer",
        "/projects/demo/items": "administer",
        "/people": "administer",
        "/people/ann-2": "administer",
        "/people/ann-2/link": "administer",
        "/rubrics": "administer",
        "/audit/verify": "administer",
        "/items/x/adjudicate": "adjudicate",
        "/annotate/demo/undo": "annotate",
        f"/lease/{'0' * 32}": "annotate",
    }.items():
        status = client.submit(path).status_code
        assert (status == 403) == (action not in may), (path, status)


def test_a_password_signs_in_and_five_wrong_ones_lock_the_account(browser, db):
    signin.set_password(db, "the-annotator", PASSWORD, actor="tests")
    client = browser()
    response = client.post("/signin", data={"name": "the-annotator", "password": PASSWORD, "next": "/account"})
    assert (response.status_code, response.headers["location"]) == (303, "/account")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and PASSWORD not in cookie
    assert client.get("/account").status_code == 200
    other = browser()
    for _ in range(5):
        assert other.post("/signin", data={"name": "the-annotator", "password": "wrong"}).status_code == 401
    locked = other.post("/signin", data={"name": "the-annotator", "password": PASSWORD})
    assert locked.status_code == 401 and "too many wrong passwords" in locked.text


def test_one_address_may_not_try_for_ever(browser, monkeypatch):
    monkeypatch.setattr(signin, "check_password", lambda *args: (_ for _ in ()).throw(signin.SignInError("no")))
    client = browser()
    assert [client.post("/signin", data={"name": "x", "password": "y"}).status_code for _ in range(31)].count(429) >= 1


def test_a_link_is_not_used_up_by_looking_at_it_and_works_once(browser, db):
    secret = signin.make_link(db, "the-annotator", actor="tests")
    client = browser()
    assert client.get(f"/link/{secret}").status_code == 200
    response = client.post(f"/link/{secret}")
    assert response.headers["location"] == "/account#password"
    assert browser().post(f"/link/{secret}").status_code == 401
    client.csrf = signin.find_session(db, client.cookies[COOKIE]).csrf
    assert client.submit("/account/password", {"password": PASSWORD}).status_code == 303
    assert client.get("/account").status_code == 200, "a new password keeps this browser signed in"


def test_signing_out_ends_the_session_on_the_server(browser, db):
    client = browser("the-annotator")
    secret = client.cookies[COOKIE]
    assert client.submit("/signout").status_code == 303
    assert signin.find_session(db, secret) is None


def test_forms_from_elsewhere_are_refused(browser):
    client = browser("the-admin")
    assert client.post("/people", data={"name": "eve", "role": "admin"}).status_code == 403
    assert client.post("/people", data={"csrf": "x" * 43, "name": "eve", "role": "admin"}).status_code == 403
    for header in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}, {"sec-fetch-site": "same-site"}):
        assert client.submit("/people", {"name": "eve", "role": "admin"}, headers=header).status_code == 403
        assert browser().post("/signin", data={"name": "a", "password": "b"}, headers=header).status_code == 403
    assert (
        client.submit("/people", {"name": "eve", "role": "reader"}, headers={"sec-fetch-site": "same-origin"}).status_code
        == 200
    )
    assert client.post("/people", content=b'{"name": "x"}', headers={"content-type": "application/json"}).status_code == 415


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "/a\nb", ""]
)
def test_nobody_is_sent_to_another_site(path):
    assert inside(path) == "/"


def test_every_answer_carries_the_headers_and_no_page_is_kept(browser):
    client = browser("the-admin")
    for path in ("/", "/signin", "/nope", "/annotate/demo", "/api/v1/projects", "/people"):
        response = client.get(path)
        for name, value in HEADERS.items():
            assert response.headers[name] == value, (path, name)
        assert response.headers["cache-control"] == "no-store", path
    assert "unsafe-inline" not in HEADERS["content-security-policy"] and "http" not in HEADERS["content-security-policy"]


def test_no_page_has_anything_inline_or_from_elsewhere(browser, db):
    client = browser("the-admin")
    for path in (
        "/",
        "/annotate/demo",
        "/people",
        "/projects",
        "/projects/demo",
        "/audit",
        "/account",
        "/rubrics/pairwise",
        "/projects/demo/agreement",
        "/projects/demo/adjudicate",
    ):
        text = client.get(path).text
        assert not re.search(
            r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\bsrc=\"/static/)|(?:src|href)=\"(?:https?:)?//", text
        ), path


def test_an_annotator_reaches_nobody_elses_work(browser, db):
    mine, other = next_item(db, "the-annotator", "demo"), browser("ann-2")
    path = f"/lease/{mine.lease.id}"
    assert other.get(path).status_code == 404
    for inner in ("", "/skip", "/draft"):
        response = other.submit(path + inner, {"q.preference": "1", "key": "k"})
        assert response.status_code == 404 and "answer 0" not in response.text
    assert other.submit("/annotate/demo/undo", {"lease": mine.lease.id}).status_code == 404
    token = signin.make_token(db, "ann-2", title="t", scopes=["judge", "read", "admin", "ask"], actor="tests").secret
    bearer = {"authorization": f"Bearer {token}"}
    for inner, body in (("", {"key": "k", "values": {"preference": 1}}), ("/skip", {"reason": "x"}), ("/undo", {})):
        assert other.post(f"/api/v1/leases/{mine.lease.id}{inner}", json=body, headers=bearer).status_code == 404
    for path in ("/api/v1/projects", "/api/v1/projects/demo/export/judgements", "/api/v1/audit"):
        assert other.get(path, headers=bearer).status_code == 403, "a token is never more than the role"


def test_a_closed_project_is_not_shown_to_annotators(browser, db):
    create_project(db, "old", rubric="pairwise", title="Closed kites", actor="tests", settings=PLAIN.__class__(open=False))
    add_items(db, "old", [item_of(["a", "b"])], actor="tests")
    assert "Closed kites" not in browser("the-annotator").get("/").text
    assert "Closed kites" in browser("the-reader").get("/").text


def test_language_and_theme_are_chosen_without_signing_in(browser):
    client = browser()
    assert "登录" in client.get("/signin", headers={"accept-language": "zh-TW,zh;q=0.9"}).text
    client.post("/look", data={"lang": "zh", "theme": "dark", "next": "/signin"})
    page = client.get("/signin").text
    assert '<html lang="zh" data-theme="dark">' in page
    assert client.post("/look", data={"lang": "xx"}).status_code == 400


def test_a_null_byte_in_an_address_finds_nothing(browser, db):
    client = browser("the-annotator")
    for path in ("/lease/a%00b", "/annotate/%00", "/%00"):
        answer = client.get(path)
        assert answer.status_code == 404 and "nothing here" in answer.text, path
