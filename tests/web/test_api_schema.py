"""The REST API as its own description (OpenAPI) tells it, tried by schemathesis in every role: refused at times, never a 5xx."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from web_world import Browser

from tutelage.store import signin
from tutelage.store.accounts import ROLES
from tutelage.store.queue import next_item
from tutelage.web import auth
from tutelage.web.app import create_app

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (pip install schemathesis)")

# Read without a database: the description needs none.
OPERATIONS = {each.label: each for each in (
    found.ok() for found in schemathesis.openapi.from_dict(create_app(None).openapi()).get_all_operations())}
NOBODY = ("no token", "a made-up token")
MAY = {"reader": {"read"}, "annotator": {"judge"}, "adjudicator": {"judge", "read"}, "admin": set(signin.SCOPES)}
NEEDS = {  # operation -> scope; a new one has to be entered here
    **dict.fromkeys(("GET /api/v1/projects", "GET /api/v1/projects/{project}/progress", "GET /api/v1/rubrics",
                     "GET /api/v1/projects/{project}/export/{what}", "GET /api/v1/rubrics/{ref}"), "read"),
    **dict.fromkeys(("GET /api/v1/projects/{project}/next", "POST /api/v1/leases/{lease}", "POST /api/v1/leases/{lease}/skip",
                     "POST /api/v1/leases/{lease}/undo"), "judge"),
    **dict.fromkeys(("POST /api/v1/projects", "POST /api/v1/rubrics", "POST /api/v1/people", "GET /api/v1/audit"), "admin"),
    "POST /api/v1/projects/{project}/items": "ask",
}


@pytest.fixture
def ask(app, db, monkeypatch):
    """One case as nobody and as each role; names and leases that exist take the place of made-up ones, every other time."""
    monkeypatch.setattr(auth, "API_CALLS", 10**9)
    # tokens of every scope: what they may do is then the role's affair
    tokens = {role: signin.make_token(db, f"the-{role}", title="tests", scopes=signin.SCOPES, actor="tests").secret for role in ROLES}
    lease = {role: next_item(db, f"the-{role}", "demo").lease.id for role in ROLES if "judge" in MAY[role]}
    client, count = Browser(app, base_url="http://testserver", follow_redirects=False), 0

    def asked(case):
        nonlocal count
        count += 1
        made_up = dict(case.path_parameters or {})
        for role in (*NOBODY, *ROLES):
            if count % 2:
                known = {"project": "demo", "ref": "pairwise", "lease": lease.get(role, lease["admin"])}
                case.path_parameters = {name: known.get(name, value) for name, value in made_up.items()}
            sent = case.as_transport_kwargs(base_url="http://testserver")
            headers = {name: value for name, value in dict(sent["headers"] or {}).items() if name.lower() != "authorization"}
            if role != "no token":
                headers["authorization"] = f"Bearer {tokens.get(role, 'made-up')}"
            yield role, client.request(**{**sent, "headers": headers})

    return asked


def try_it(ask, label, *, examples):
    """`examples` requests, each by everybody."""
    @settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
              phases=[Phase.explicit, Phase.generate])
    @given(case=OPERATIONS[label].as_strategy())
    def tried(case):
        for role, answer in ask(case):
            told = (role, case.as_curl_command(), answer.status_code, answer.text[:300])
            assert answer.status_code < 500, told
            if role in NOBODY or NEEDS[label] not in MAY[role]:  # a body that is none is refused before anything else
                assert answer.status_code in ((400, 401, 404, 422) if role in NOBODY else (400, 403, 404, 422)), told

    tried()


def test_every_operation_is_known_here():
    assert set(OPERATIONS) == set(NEEDS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_is_sent_by_whom_it_is_answered_and_the_role_decides(ask, label):
    try_it(ask, label, examples=8)


@pytest.mark.slow
@pytest.mark.parametrize("label", OPERATIONS)
def test_the_same_in_many_more_tries(ask, label):
    try_it(ask, label, examples=250)
