"""A PostgreSQL cluster in a temporary folder, for tests: it listens on a socket in that folder and nowhere else.

Nothing of the system is changed.  PostgreSQL refuses to run as root, so root runs it as an unprivileged user.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from tutelage.core.extras import require


class Missing(Exception):
    """There is no PostgreSQL to run, and the text says why."""


def programs() -> Path:
    """The folder with initdb and postgres."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise Missing("no PostgreSQL is installed (initdb was not found)")


def other_user() -> dict[str, str]:
    """Who runs it: nothing to change for an ordinary user, an unprivileged one for root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}
    raise Missing("PostgreSQL does not run as root, and there is no unprivileged user to run it as")


@contextlib.contextmanager
def cluster(*, fsync: bool = False) -> Iterator[str]:
    """The address of a fresh cluster, "postgresql+psycopg://...%s", to be completed with a database's name."""
    place, who = programs(), other_user()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    try:
        if who:
            shutil.chown(folder, who["user"], who["group"])
        made = subprocess.run(
            [place / "initdb", "-D", folder / "data", "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            cwd=folder, capture_output=True, text=True, timeout=120, **who)
        if made.returncode:
            raise Missing(f"initdb failed: {made.stderr.strip()[-300:]}")
        settings = ["listen_addresses=", f"unix_socket_directories={folder}", "max_connections=200", "shared_buffers=32MB"]
        settings += [] if fsync else ["fsync=off", "synchronous_commit=off"]
        with open(folder / "log", "wb") as log:  # our own child, not a daemon: stopping it is waiting for it
            server = subprocess.Popen([place / "postgres", "-D", folder / "data", *(f"-c{each}" for each in settings)],
                                      cwd=folder, stdout=log, stderr=log, **who)
        try:
            _wait_until_ready(server, folder)
            yield f"postgresql+psycopg://tests@/%s?host={folder}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(server: subprocess.Popen, folder: Path) -> None:
    psycopg, ends = require("psycopg"), time.monotonic() + 60
    while time.monotonic() < ends and server.poll() is None:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(host=folder, user="tests", dbname="postgres"):
            return
        time.sleep(0.05)
    raise Missing(f"PostgreSQL does not start: {(folder / 'log').read_text()[-300:]}")


def new_database(address: str) -> str:
    """Make an empty database in the cluster; its URL."""
    name = f"t{uuid.uuid4().hex[:12]}"
    folder = address.rsplit("host=", 1)[1]
    with require("psycopg").connect(host=folder, user="tests", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return address % name
