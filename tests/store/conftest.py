"""The same tests on SQLite and, where one is installed, on PostgreSQL in a temporary folder."""

import pytest
from people.cluster import Missing, cluster, new_database
from sqlalchemy import create_engine, text

from tutelage.store.db import open_database


@pytest.fixture(scope="session")
def postgres():
    """The address of a database in a cluster, or a reason to skip."""
    try:
        pytest.importorskip("psycopg")
        with cluster() as address:
            yield new_database(address)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, tmp_path) -> str:
    """Of a database that is not there yet (SQLite) or empty (PostgreSQL)."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'people.db'}"
    url = request.getfixturevalue("postgres")
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.execute(text("DROP SCHEMA public CASCADE"))
        conn.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture
def db(address):
    db = open_database(address)
    yield db
    db.close()


@pytest.fixture
def file_db(tmp_path):
    """SQLite alone: for what does not depend on the database, in many cases."""
    db = open_database(tmp_path / "people.db")
    yield db
    db.close()
