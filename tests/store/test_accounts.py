"""People, and the ways to sign in: nothing secret is stored, nothing works twice or too late."""

import pytest
from people.rooms import project
from sqlalchemy import select

from tutelage.core.errors import UserError
from tutelage.store import signin
from tutelage.store.accounts import change_person, create_person, list_people, load_person
from tutelage.store.ledger import audit
from tutelage.store.signin import (
    FAILURES,
    LOCKED,
    SignInError,
    allow,
    check_password,
    close_session,
    find_session,
    find_token,
    first_admin_link,
    list_tokens,
    make_link,
    make_token,
    open_session,
    revoke_token,
    set_password,
    use_link,
)
from tutelage.store.tables import contents, metadata

WORD = "correct horse battery"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A weak hash: these tests are about what is done with it."""
    monkeypatch.setattr(signin, "HASHER", signin.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    monkeypatch.setattr(signin, "NOBODY", signin.HASHER.hash("nobody"))


@pytest.fixture
def ann(db):
    create_person(db, "ann", "annotator", actor="boss", now=0)
    set_password(db, "ann", WORD, actor="ann", now=0)
    return "ann"


def test_people_are_kept_and_changed_and_the_log_knows(db):
    made = create_person(db, "ann", "annotator", title="安", skills=["law"], languages=["zh"], opt_outs=["hate"], daily_limit=9,
                         actor="boss", now=1)
    assert load_person(db, "ann") == made and list_people(db) == [made]
    changed = change_person(db, "ann", role="adjudicator", skills=[], actor="boss")
    assert (changed.role, changed.skills, changed.languages) == ("adjudicator", (), ("zh",))
    assert [each.content["role"] for each in audit(db, kind="person")] == ["annotator", "adjudicator"]
    with pytest.raises(UserError, match="is there already"):
        create_person(db, "ann", "annotator", actor="boss")


@pytest.mark.parametrize("values, told", [
    ({"name": "a b"}, "name of a person"), ({"role": "boss"}, "unknown role"), ({"title": "a\u202e"}, "can be seen"),
    ({"skills": ["\0"]}, "can be seen"), ({"daily_limit": -1}, "daily_limit"), ({"languages": ["x" * 99]}, "1 to 64")])
def test_an_account_that_does_not_do_is_refused(file_db, values, told):
    with pytest.raises(UserError, match=told):
        create_person(file_db, **{"name": "ann", "role": "annotator", "actor": "boss", **values})


@pytest.mark.parametrize("role, may", [("reader", {"read"}), ("annotator", {"annotate"}),
                                       ("adjudicator", {"read", "annotate", "adjudicate"}),
                                       ("admin", {"read", "annotate", "adjudicate", "administer"})])
def test_what_a_role_may_do(file_db, role, may):
    person = create_person(file_db, "x", role, actor="boss")
    assert {each for each in ("read", "annotate", "adjudicate", "administer") if person.can(each)} == may
    create_person(file_db, "second", "admin", actor="boss")
    assert not change_person(file_db, "x", active=False, actor="boss").can("read")


def test_the_last_admin_stays_one(db):
    create_person(db, "a", "admin", actor="boss")
    for change in ({"role": "reader"}, {"active": False}):
        with pytest.raises(UserError, match="only active admin"):
            change_person(db, "a", actor="a", **change)
    create_person(db, "b", "admin", actor="boss")
    assert change_person(db, "a", role="reader", actor="b").role == "reader"


def test_the_right_password_and_no_other(db, ann):
    assert check_password(db, ann, WORD, now=1).name == ann
    for name, word in ((ann, WORD + "!"), (ann, ""), ("nobody", WORD), ("a\0b", WORD), (ann, "x" * 10**6), (7, WORD), (ann, None)):
        with pytest.raises(SignInError, match="name or password is wrong"):
            check_password(db, name, word, now=1)
        check_password(db, ann, WORD, now=1)


def test_a_person_without_a_password_or_not_active_does_not_get_in(db, ann):
    create_person(db, "bob", "annotator", actor="boss")
    change_person(db, ann, active=False, actor="boss")
    for name in (ann, "bob"):
        with pytest.raises(SignInError, match="wrong"):
            check_password(db, name, WORD if name == ann else "", now=1)


def test_the_lock_holds_after_five_and_ends_by_itself_or_by_a_link(db, ann):
    for _ in range(FAILURES):
        with pytest.raises(SignInError, match="wrong"):
            check_password(db, ann, "wrong wrong", now=100)
    with pytest.raises(SignInError, match="too many"):
        check_password(db, ann, WORD, now=100 + LOCKED - 1)
    assert check_password(db, ann, WORD, now=100 + LOCKED).name == ann
    for _ in range(FAILURES):
        with pytest.raises(SignInError):
            check_password(db, ann, "wrong wrong", now=2000)
    use_link(db, make_link(db, ann, actor="boss", now=2001), now=2002)
    assert check_password(db, ann, WORD, now=2003).name == ann


@pytest.mark.parametrize("word", ["short", "a" * 20, "annannannann", "x" * 2000, None, "ann"])
def test_a_weak_password_is_refused(file_db, word):
    create_person(file_db, "annannannann", "annotator", actor="boss")
    with pytest.raises(UserError, match="password"):
        set_password(file_db, "annannannann", word, actor="boss")


def test_the_shipped_hash_is_argon2id_in_its_default_strength():
    assert signin.PasswordHasher().hash("x").startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_link_works_once_and_not_too_late(db, ann):
    link = make_link(db, ann, actor="boss", seconds=100, now=0)
    assert use_link(db, link, now=99).name == ann
    for secret, now in ((link, 99), (make_link(db, ann, actor="boss", seconds=100, now=0), 100), ("guess", 1), ("\ud800", 1)):
        with pytest.raises(SignInError, match="used before"):
            use_link(db, secret, now=now)


def test_the_first_start_gives_a_link_for_an_admin_until_there_is_one_with_a_password(db):
    assert use_link(db, first_admin_link(db, now=0), now=1).role == "admin"
    assert first_admin_link(db, now=2) is not None  # the first was used, and no password was set
    set_password(db, "admin", WORD, actor="admin", now=3)
    assert first_admin_link(db, now=4) is None
    assert [person.name for person in list_people(db)] == ["admin"]


def test_a_session_lasts_its_time_and_ends_with_the_password_or_the_account(db, ann):
    made = open_session(db, ann, seconds=100, now=0)
    assert find_session(db, made.secret, now=99).csrf == made.csrf
    assert find_session(db, made.secret, now=100) is None and find_session(db, "guess", now=1) is None
    close_session(db, made.secret)
    assert find_session(db, made.secret, now=1) is None
    for end in (lambda: set_password(db, ann, WORD + "2", actor=ann), lambda: change_person(db, ann, active=False, actor="boss")):
        made = open_session(db, ann, now=0)
        assert find_session(db, made.secret, now=1).person.name == ann
        end()
        assert find_session(db, made.secret, now=1) is None


def test_a_token_has_its_scopes_and_an_end(db, ann):
    token = make_token(db, ann, title="脚本", scopes=["read", "judge"], seconds=100, actor=ann, now=0)
    assert find_token(db, token.secret, scope="read", now=99).name == ann
    assert find_token(db, token.secret, scope="admin", now=99) is None
    assert find_token(db, token.secret, scope="read", now=100) is None
    [listed] = list_tokens(db, ann)
    assert (listed.secret, listed.scopes, listed.title) == ("", ("judge", "read"), "脚本")
    with pytest.raises(UserError, match="no such token"):
        revoke_token(db, token.id, name="somebody", actor="somebody")
    revoke_token(db, token.id, name=ann, actor=ann, now=5)
    assert find_token(db, token.secret, scope="read", now=6) is None
    with pytest.raises(UserError, match="unknown scope"):
        make_token(db, ann, title="", scopes=["reed"], actor=ann)


def test_no_secret_stands_in_the_database(db, ann):
    project(db, items=1, people=1)
    secrets = [WORD, make_link(db, ann, actor="boss"), open_session(db, ann).secret,
               make_token(db, ann, title="", scopes=["read"], actor=ann).secret]
    with db.read() as conn:
        kept = repr([conn.execute(select(table)).all() for table in metadata.tables.values()])
        assert "pairwise@1" in kept and conn.execute(select(contents)).first()
    assert not [secret for secret in secrets if secret in kept]


def test_tries_are_counted_in_windows(db):
    assert [allow(db, "signin:1.2.3.4", limit=2, seconds=60, now=at) for at in (0, 1, 2, 59, 60, 61, 62)] == [
        True, True, False, False, True, True, False]
    assert allow(db, "signin:5.6.7.8", limit=2, seconds=60, now=2)
    assert allow(db, "x" * 10**5 + "\0", limit=1, seconds=60, now=2) and not allow(db, "x" * 10**5 + "\0", limit=1, seconds=60, now=3)
