"""Every route of the site, forms included, against what people and programs should not send; and who reaches whose work.

The forms are read from the pages themselves: a field that is new is tried without being named here.
"""

import html.parser
from functools import cached_property
from urllib.parse import quote

import pytest
from argon2 import PasswordHasher
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from web_world import Browser, item_of, routes

from tutelage.core.words import Response
from tutelage.store import signin
from tutelage.store.accounts import ROLES, change_person
from tutelage.store.answers import Answers
from tutelage.store.chat_settings import ChatSettings
from tutelage.store.feedback import Item, Settings, add_items, create_project, load_project
from tutelage.store.queue import next_item, save_draft, submit
from tutelage.store.tables import leases, submissions, tokens
from tutelage.web import speakers
from tutelage.web.auth import COOKIE

RUBRICS = ("pairwise", "ranking", "safety", "edit", "spans", "ratings", "write", "good-bad")
NASTY = (
    b"", b" ", b"\0", b"a\0b", b"9" * 5000, b"-1", b"1e999", b"nan", b"inf", b"0x10", b"1_0",
    "\u0663".encode(), "\u00b2".encode(), "\uff11".encode(), b"x" * 1_000_000, b"\xed\xa0\x80", b"\xff\xfe",
    "\u202egnp.exe".encode(), "\ufeff".encode(), b"[]", b"{}", b"null",
    b"true", b"[" * 100_000, b'{"a":' * 3000, b'["\\ud800"]', b'[{"response": 0, "start": -1, "end": 1e400, "label": "wrong"}]',
    b'{"name": "x", "questions": [{"name": "q", "kind": "pair", "levels": "7"}]}', b'{"prompt": 5, "responses": {}}',
    b'{"prompt": "a\\u0000", "responses": ["\\ud800", ""]}', b"<script>alert(1)</script>", b"../../etc/passwd", b"//evil.example",
    b"http://[", b"http://[::1", b"http://x:99999999999#m", b"'; drop table people; --", b"%s%n{0}", b"\r\nset-cookie: a=b",
    b"pairwise@99999999999999999999", b"pairwise", b"both-bad", b"unsafe", b"0", b"1", b"99999999999999999999", b"the-admin",
    b"ann-2", b"admin", b"yes")
IN_PATHS = ("demo", "none", "0" * 32, "x" * 5000, "\u202ex", "a b", "%00", "%ff%fe", "..%2f..", "%ed%a0%80", "'",
            "pairwise@1", "pairwise@" + "9" * 30, "{x}", "%3Cscript%3E", "-", "\U0001f600")
PROJECTS = ("demo", "p-chat", *(f"p-{name}" for name in RUBRICS[1:]))
QUIET = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck),
         "phases": [Phase.explicit, Phase.generate]}


class Forms(html.parser.HTMLParser):
    """The forms of a page: address -> fields with what they hold."""

    def __init__(self, text):
        super().__init__()
        self.found, self.fields, self.select = {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "form" and values.get("method") == "post":
            self.fields = self.found.setdefault(values.get("action") or "", [])
        elif tag == "select":
            self.select = values.get("name", "")
        elif tag == "option":
            self.fields.append((self.select, values.get("value") or ""))
        elif tag in ("input", "textarea", "button"):
            self.fields += [(values["name"], values.get("value") or "")] if values.get("name") else []
            if values.get("formaction"):
                self.found[values["formaction"]] = self.fields


@pytest.fixture
def site(app, db, monkeypatch):
    """A world with something of every kind in it; limits on tries are lifted, so that what lies behind them is reached."""
    monkeypatch.setattr(signin, "allow", lambda *args, **more: True)
    monkeypatch.setattr(signin, "HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))  # else a tenth of a second each
    for name in RUBRICS[1:]:
        create_project(db, f"p-{name}", rubric=name, actor="tests")
        texts = [] if name == "write" else ["one", "two"]
        kind = "" if texts else "demonstration"
        add_items(db, f"p-{name}", [item_of(texts, text=f"{name} {at}?", kind=kind) for at in range(6)], actor="tests")
    chat = ChatSettings(a="http://127.0.0.1:9/v1#one", b="http://127.0.0.1:9/v1#two")
    create_project(db, "p-chat", rubric="pairwise", settings=Settings(chat=chat), actor="tests")
    add_items(db, "p-chat", [Item(kind="chat", id=f"{at:032}") for at in range(6)], actor="tests")
    monkeypatch.setattr(speakers, "answers", lambda chat, prompt, seed: tuple(
        Response(prompt_id=prompt.id, text=prompt.messages[-1].text[::-1], index=at, policy=address)
        for at, (address, _) in enumerate(chat.engines)))
    signin.make_token(db, "the-admin", title="mine", scopes=["read"], actor="tests")
    for name, value in (("ann-2", -3), ("the-adjudicator", 3)):
        handed = next_item(db, name, "demo")
        shown = value if handed.lease.order[0] == 0 else -value
        submit(db, handed.lease.id, name, key="k", answers=Answers(values={"preference": shown}))
    return Site(app, db)


class Site:
    def __init__(self, app, db):
        self.app, self.db = app, db
        self.routes = routes(app)
        self.own, self.chats = ({role: next_item(db, f"the-{role}", project).lease.id for role in ROLES if role != "reader"}
                                for project in ("demo", "p-chat"))

    def client(self, role):
        client = Browser(self.app, base_url="http://testserver", follow_redirects=False)  # an exception in a route is raised here
        if role:
            change_person(self.db, f"the-{role}", actor="tests", active=True)  # a form before may have changed that
            client.sign_in(self.db, f"the-{role}")
        return client

    @cached_property
    def fields(self):
        """Route -> the fields that its forms have, from every page that an admin sees; signing in is not among them."""
        client, out = self.client("admin"), {"/signin": {"name", "password", "next", "kept"}}
        for method, path in self.routes:
            for project in PROJECTS if "{project}" in path else PROJECTS[:1]:
                if method == "GET" and "{digest}" not in path and not path.startswith("/api/"):
                    lease = self.chats["admin"] if path.startswith("/chat") else self.own["admin"]
                    answer = client.get(self.filled(path, {"project": project, "lease": lease}))
                    for action, fields in Forms(answer.text).found.items():
                        out.setdefault(self.route_of(action), set()).update(name for name, _ in fields)
        return {route: sorted(names) for route, names in out.items()}

    def filled(self, path, values):
        known = {"project": "demo", "lease": self.own["admin"], "name": "ann-2", "item": "x", "secret": "x", "ref": "pairwise",
                 "what": "items", "token": "x", "digest": "x"} | values
        for name, value in known.items():
            path = path.replace(f"{{{name}}}", value)
        return path

    def route_of(self, action):
        """The route behind a form's address."""
        for method, path in self.routes:
            parts, given = path.split("/"), action.partition("?")[0].split("/")
            if method == "POST" and len(parts) == len(given) and all(a == b or a[:1] == "{" for a, b in zip(parts, given, strict=True)):
                return path
        return action


def test_the_forms_were_found(site):
    assert {"role", "daily_limit"} <= set(site.fields["/people/{name}"]) and "q.preference" in site.fields["/lease/{lease}"]
    assert {"overlap", "gold_share"} <= set(site.fields["/projects"]) and "body" in site.fields["/rubrics"]
    posts = {path for method, path in site.routes if method == "POST" and not path.startswith("/api/")}
    assert posts - set(site.fields) <= {"/lease/{lease}/draft", "/chat/{lease}/end"}  # by scripts alone; after the first turn


def attack(site, *, examples):
    every = sorted({name for names in site.fields.values() for name in names})

    @settings(max_examples=examples, **QUIET)
    @given(data=st.data())
    def tried(data):
        draw = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
        method, path = draw(*((method, path) for method, path in site.routes if not path.startswith("/api/")))
        role = draw("", *ROLES, "annotator", "admin", "admin")
        client = site.client(role)
        held = site.chats if path.startswith("/chat") else site.own
        values = {"lease": held.get(role, held["admin"]), "project": draw(*PROJECTS),
                  "name": draw("ann-2", f"the-{role or 'reader'}")}
        if draw(False, False, True):
            name = draw("project", "lease", "name", "item", "secret", "ref", "what", "token", "digest")
            value = draw(*IN_PATHS)
            values[name] = value if "%" in value else quote(value)
        address = site.filled(path, values)
        if values["project"] != "demo" and "{lease}" in path and role in site.own and draw(True, False):
            handed = next_item(site.db, f"the-{role}", values["project"])
            address = site.filled(path, values | {"lease": handed.lease.id}) if handed else address
        names = data.draw(st.lists(st.sampled_from(site.fields.get(path) or every), max_size=12))
        fields = [("csrf", getattr(client, "csrf", "").encode())] * draw(1, 1, 1, 1, 1, 0, 2)
        fields += [(name, draw(*NASTY)) for name in names if name != "csrf"]
        body = "&".join(f"{quote(name)}={quote(value)}" for name, value in fields)
        kinds = ("application/json", "multipart/form-data", "\u00e9".encode(), *["application/x-www-form-urlencoded"] * 6)
        headers = {"content-type": draw(*kinds), "accept": draw("text/html", "application/json"),
                   "accept-language": draw("zh", "en;q=x,*;q=;;", "\u00ff".encode())}
        if draw(*[False] * 9, True):
            headers["origin"] = draw("http://[", "null", "http://testserver", "x" * 5000, b"\xff")
        if draw(*[False] * 9, True):
            client.cookies.set(COOKIE, draw("x", "%00", "a" * 4000))
        if method == "GET":
            del headers["content-type"]
            answer = client.get(f"{address}?{body[:60_000]}", headers=headers)
        else:
            answer = client.post(address, content=body.encode(), headers=headers)
        told = (method, address[:200], role, answer.status_code, [(name, value[:60]) for name, value in fields], answer.text[:300])
        assert answer.status_code < 500, told
        assert b"<script>alert(1)" not in answer.content or "html" not in answer.headers["content-type"], told

    tried()


def test_no_form_and_no_address_fails_whatever_is_sent(site):
    attack(site, examples=200)


@pytest.mark.slow
def test_no_form_and_no_address_fails_in_many_more_tries(site):
    attack(site, examples=1000)


def test_an_address_that_cannot_be_taken_apart_leads_to_the_first_page(site):
    assert site.client("annotator").get("/signin?next=http://[").headers["location"] == "/"
    assert site.client("").get("/signin?next=//[").status_code == 200
    client = site.client("annotator")
    assert client.submit("/look", {"lang": "en"}, headers={"origin": "http://["}).status_code == 403
    assert client.submit("/look", {"lang": "en"}, headers={"origin": "http://testserver"}).status_code == 303


# -- whose work is whose ----------------------------------------------------------------------------------------------


def test_anonymous_visitors_reach_the_sign_in_pages_static_files_and_health_alone(site):
    client = site.client("")
    answers = {(method, path): client.request(method, site.filled(path, {})) for method, path in site.routes}
    reached = {route for route, answer in answers.items() if answer.status_code not in (401, 303, 400, 422)}
    assert reached <= {("GET", "/signin"), ("GET", "/link/{secret}"), ("GET", "/health"), ("GET", "/favicon.ico"), ("POST", "/look"),
                       ("GET", "/static/{digest}/{name}")}, reached
    for (_, path), answer in answers.items():
        assert answer.status_code != 303 or path == "/look" or answer.headers["location"].startswith("/signin"), path


def test_an_annotator_reaches_nobody_elses_work_by_any_route(site, db):
    """the-annotator has judged one item with a secret in it, keeps a draft, and has a token; ann-2 tries every route with their ids."""
    add_items(db, "p-safety", [item_of(["only mine", "mine too"], text="hushed question")], actor="tests")
    judged, open_one = next_item(db, "the-annotator", "p-edit"), site.own["annotator"]
    submit(db, judged.lease.id, "the-annotator", key="mine", answers=Answers(values={
        "preference": -3, "edit": {"response": 0, "text": "hushed text"}}))
    save_draft(db, open_one, "the-annotator", {"reason": "hushed draft"})
    token = signin.make_token(db, "the-annotator", title="hushed title", scopes=["judge"], actor="tests")
    client = Browser(site.app, base_url="http://testserver", follow_redirects=False).sign_in(db, "ann-2")
    bearer = signin.make_token(db, "ann-2", title="mine", scopes=signin.SCOPES, actor="tests").secret

    def state():
        """All of the-annotator's rows."""
        with db.read() as conn:
            return [[tuple(row) for row in conn.execute(table.select().where(table.c.person == "the-annotator").order_by(table.c.id))]
                    for table in (leases, submissions, tokens)]

    before = state()
    form = {"csrf": client.csrf, "key": "theirs", "q.preference": "3", "skip_reason": "other", "turn": "hello", "number": "0"}
    for method, path in site.routes:
        for lease in (judged.lease.id, open_one):
            address = site.filled(path, {"lease": lease, "name": "the-annotator", "token": token.id, "item": judged.item.id,
                                         "project": "p-edit"})
            headers = {"authorization": f"Bearer {bearer}"} if path.startswith("/api/") else {}
            sent = ({"json": {"key": "theirs", "values": {"preference": 3}, "reason": "x"}} if headers
                    else {"data": form | {"lease": lease}})
            if path == "/signout":
                continue
            answer = client.request(method, address, headers=headers, **(sent if method == "POST" else {}))
            told = (method, address, answer.status_code, answer.text[:300])
            assert answer.status_code < 500 and "hushed" not in answer.text, told
            if "{lease}" in path and "{project}" not in path:
                assert answer.status_code == 404, told
    assert state() == before
    assert load_project(db, "p-edit").settings.open
