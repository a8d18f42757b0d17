"""A small world: a project, a person of each role, and a client that is signed in without the cost of a password."""

import pytest
from web_world import PLAIN, Browser, pairs

from tutelage.store.accounts import ROLES, create_person
from tutelage.store.db import open_database
from tutelage.store.feedback import add_items, create_project
from tutelage.web.app import create_app


@pytest.fixture
def db(tmp_path):
    db = open_database(tmp_path / "people.db")
    for role in ROLES:
        create_person(db, f"the-{role}", role, actor="tests")
    create_person(db, "ann-2", "annotator", actor="tests")
    create_project(db, "demo", rubric="pairwise", title="Kites", settings=PLAIN, actor="tests")
    add_items(db, "demo", pairs(5), actor="tests")
    yield db
    db.close()


@pytest.fixture
def app(db):
    return create_app(db)


@pytest.fixture
def browser(app, db):
    def open_one(name=None):
        client = Browser(app, base_url="http://testserver", follow_redirects=False, raise_server_exceptions=True)
        return client.sign_in(db, name) if name else client

    return open_one
