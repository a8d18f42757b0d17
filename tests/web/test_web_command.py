"""`tutelage web` as it is typed: it opens without set-up, says where it is, and stops when it is told to."""

import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace

import httpx
import pytest

from tutelage.commands import web
from tutelage.core.errors import UserError
from tutelage.store.accounts import create_person
from tutelage.store.db import open_database
from tutelage.store.signin import find_session
from tutelage.terminal import Terminal
from tutelage.web.auth import COOKIE

START = """
import sys
from argparse import Namespace
from tutelage.commands.web import run
from tutelage.terminal import Terminal
if __name__ == "__main__":
    run(Namespace(host="127.0.0.1", port=0, database=sys.argv[1], workers=int(sys.argv[2]), link=None, workspace=None), Terminal())
    assert "torch" not in sys.modules
"""


@pytest.fixture
def start(tmp_path):
    running = []

    def started(workers=1):
        (tmp_path / "start.py").write_text(START)
        process = subprocess.Popen([sys.executable, "-u", "start.py", "new/people.db", str(workers)], cwd=tmp_path, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        running.append(process)
        return process

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()


def said(process):
    """(address, link) from its first lines."""
    lines = [process.stdout.readline() for _ in range(3)]
    found = re.search(r"Tutelage is at (http://127.0.0.1:\d+)[\s\S]*sign in +(http\S+)", "".join(lines))
    assert found, lines
    return found[1], found[2]


def test_it_opens_on_a_new_file_and_signs_the_first_admin_in(start, tmp_path):
    process = start()
    address, link = said(process)
    with httpx.Client(timeout=60) as client:
        assert client.get(address).headers["location"] == "/signin?next=/"
        assert "<h1>" in client.get(address + "/signin").text
        assert client.post(link).headers["location"] == "/account#password"
        session = find_session(open_database(tmp_path / "new" / "people.db"), client.cookies[COOKIE])
    assert session.person.role == "admin"
    os.kill(process.pid, signal.SIGINT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.stdout.read()
    # of a processor, not of the clock: other tests may be running beside this one
    assert used.ru_utime + used.ru_stime < 5


@pytest.mark.slow
def test_two_workers_serve_one_database(start):
    process = start(workers=2)
    address, link = said(process)
    with httpx.Client(timeout=120) as client:
        for _ in range(6):
            assert client.get(address + "/signin").status_code == 200
        assert client.post(link).status_code == 303 and client.get(address + "/").status_code == 200
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def test_a_port_that_is_taken_and_a_bad_number_of_workers_are_told(tmp_path):
    with web._bind("127.0.0.1", 0) as door:
        taken = door.getsockname()[1]
        for port, workers, wanted in ((taken, 1, "choose another one with --port"), (99999, 1, "--port"), (0, 0, "--workers")):
            args = Namespace(host="127.0.0.1", port=port, workers=workers, database=str(tmp_path / "x.db"), link=None, workspace=None)
            with pytest.raises(UserError, match=wanted):
                web.run(args, Terminal())


def test_a_link_for_somebody_is_printed_and_nothing_is_served(tmp_path, capsys):
    db = open_database(tmp_path / "x.db")
    create_person(db, "ann-07", "annotator", actor="tests")
    begun = time.monotonic()
    args = Namespace(host="0.0.0.0", port=8080, workers=1, database=str(tmp_path / "x.db"), link="ann-07", workspace=None)
    assert web.run(args, Terminal()) == 0 and time.monotonic() - begun < 30
    assert re.search(r"http://127.0.0.1:8080/link/\S{43}", capsys.readouterr().out)
