"""The supervisor of several workers, with real processes behind one port: it replaces the dead and the hung, and never waits for them."""

import os
import signal
import time
import urllib.error
import urllib.request

import pytest
import uvicorn

from tutelage.commands.web import _bind
from tutelage.web.workers import PATIENCE, Workers

APP = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})
"""
BROKEN = "raise RuntimeError('this app does not start')"
SOON = 30  # seconds; the fault that is looked for took 60


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """workers(source): two of them for an app of that source, behind a port of their own."""
    (tmp_path / "apps").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "apps")
    before, made = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}, []

    def started(source):
        name = f"app_of_{tmp_path.name}".replace("-", "_")
        (tmp_path / "apps" / f"{name}.py").write_text(source)
        workers = Workers(uvicorn.Config(f"{name}:app", workers=2, lifespan="off", log_level="critical"), [_bind("127.0.0.1", 0)])
        for number, handler in before.items():
            signal.signal(number, handler)  # these tests make the rounds themselves
        made.append(workers)
        workers.init_processes()
        return workers

    yield started
    for workers in made:
        for process in workers.processes:
            process.kill()
            process.join()
        for door in workers.sockets:
            door.close()


def address(workers) -> str:
    return f"http://127.0.0.1:{workers.sockets[0].getsockname()[1]}"


def serves(workers) -> bool:
    try:
        with urllib.request.urlopen(address(workers), timeout=SOON) as answer:
            return answer.read() == b"here"
    except urllib.error.URLError:
        return False


def pids(workers) -> list[int]:
    return [process.pid for process in workers.processes]


def rounds(workers, until) -> None:
    end = time.monotonic() + SOON
    while not until():
        assert time.monotonic() < end, "not in time"
        workers.keep_subprocess_alive()
        time.sleep(0.05)


def test_a_worker_that_dies_before_it_answers_is_replaced_at_once(supervise):
    workers = supervise(APP)
    first, other = pids(workers)
    os.kill(first, signal.SIGSTOP)  # it is asked, and cannot answer
    workers.keep_subprocess_alive()
    assert pids(workers) == [first, other] and workers.processes[0] in workers.asked
    os.kill(first, signal.SIGKILL)
    rounds(workers, lambda: first not in pids(workers))
    assert pids(workers)[1] == other and workers.processes[0].process.is_alive() and len(workers.asked) <= 2
    assert serves(workers) and not workers.should_exit.is_set()


def test_a_round_waits_for_nobody_and_one_that_owes_an_answer_for_too_long_is_killed(supervise):
    workers = supervise(APP)
    assert serves(workers)
    rounds(workers, lambda: all(process.process.is_alive() for process in workers.processes))
    first, other = pids(workers)
    os.kill(first, signal.SIGSTOP)
    begun = time.monotonic()
    for _ in range(20):  # an answer from before it was stopped may still lie in the pipe
        workers.keep_subprocess_alive()
    assert time.monotonic() - begun < 5 and pids(workers) == [first, other]
    workers.asked[workers.processes[0]] -= PATIENCE
    workers.keep_subprocess_alive()
    assert first not in pids(workers) and pids(workers)[1] == other and serves(workers)


def test_an_answer_pays_what_is_owed(supervise):
    workers = supervise(APP)
    assert serves(workers)
    workers.keep_subprocess_alive()
    asked = dict(workers.asked)
    rounds(workers, lambda: all(workers.asked[each] > since for each, since in asked.items()))
    rounds(workers, lambda: workers.served == set(asked))
    assert pids(workers) == [each.pid for each in asked]


def test_an_app_that_does_not_start_ends_the_server_instead_of_being_tried_for_ever(supervise):
    workers = supervise(BROKEN)
    rounds(workers, workers.should_exit.is_set)


def test_a_worker_that_served_and_ended_by_itself_is_replaced(supervise):
    workers = supervise(APP.replace("    await", "    if scope['path'] == '/end':\n        os._exit(7)\n    await", 1).replace(
        "async", "import os\nasync", 1))
    rounds(workers, lambda: len(workers.served) == 2)
    before = pids(workers)
    with pytest.raises(OSError), urllib.request.urlopen(address(workers) + "/end", timeout=SOON):
        pass
    rounds(workers, lambda: pids(workers) != before)
    assert len(set(pids(workers)) & set(before)) == 1 and not workers.should_exit.is_set() and serves(workers)
