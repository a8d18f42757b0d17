"""What simulated annotators knock at: store-level workers, or the product itself over HTTP.  Both kill their workers.

A door has one method that matters, `ask(verb, ...)` with next, submit, skip and undo.  When the worker behind it is killed
before it answered, nobody knows what became of the request, and the door sends the same request again.
"""

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select

from tutelage.store import queue
from tutelage.store.db import Database, open_database
from tutelage.store.feedback import Answers, find_item
from tutelage.store.signin import make_token
from tutelage.store.tables import items

PROJECT = "storm"
PATIENCE = 120  # seconds for an answer: a worker that is started anew takes some on a busy machine


class Fault(Exception):
    """A promise was broken."""


class Gone(Exception):
    """The worker died before it answered: nobody knows what became of the request."""


class Door:
    """Decides which requests are the last of their worker, and counts."""

    def __init__(self, *, seed: int, kill_share: float, longest: float):
        self.random, self.lock = random.Random(f"kills {seed}"), threading.Lock()
        self.kill_share, self.longest = kill_share, longest  # seconds from a request to the kill, at most
        self.asked = self.kills = self.cut = 0  # cut: requests that had no answer because of a kill

    def ask(self, verb: str, **request: Any) -> Any:
        """The answer.  When the worker dies, ask again, the same."""
        while True:
            with self.lock:
                self.asked += 1
                kill_after = self.random.uniform(0, self.longest) if self.random.random() < self.kill_share else None
            try:
                return self.once(verb, request, kill_after)
            except Gone:
                with self.lock:
                    self.cut += 1


# -- the store alone ------------------------------------------------------------------------------------------------


def serve(address: str) -> None:
    """A worker: requests come as lines of JSON, answers go as lines of JSON."""
    db = open_database(address)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(VERBS[request.pop("verb")](db, **request)), flush=True)


def _next(db: Database, *, person: str, count: int) -> list[dict[str, Any]]:
    return [{"lease": each.lease.id, "item": each.item.id} for each in queue.next_items(db, person, PROJECT, count=count).handed]


def _submit(db: Database, *, person: str, lease: str, key: str, value: int) -> dict[str, Any]:
    told = queue.submit(db, lease, person, key=key, answers=Answers(values={"preference": value, "reason": key}, seconds=1.0))
    return {"status": told.status, "submission": told.submission, "duplicate": told.duplicate}


def _skip(db: Database, *, person: str, lease: str) -> bool:
    return queue.skip(db, lease, person, reason="not for me")


def _undo(db: Database, *, person: str, lease: str) -> dict[str, Any]:
    handed = queue.undo(db, lease, person)
    return {"lease": handed.lease.id, "item": handed.item.id}


VERBS = {"next": _next, "submit": _submit, "skip": _skip, "undo": _undo}


class Worker:
    """A process that serves the store.  `ask` may kill it."""

    def __init__(self, address: str):
        self.address, self.lock, self.process = address, threading.Lock(), None
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, self.address], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if json.loads(self.process.stdout.readline() or "null") != "ready":
            raise Fault("a worker does not start")

    def ask(self, request: dict[str, Any], *, kill_after: float | None) -> Any:
        """The answer; Gone when the worker was killed before it came.  Killed, it starts anew."""
        with self.lock:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if kill_after is None:
                line = self.process.stdout.readline()
                if not line:
                    raise Fault(f"a worker died by itself of {request}")
                return json.loads(line)
            time.sleep(kill_after)
            self.process.send_signal(signal.SIGKILL)
            line = self.process.stdout.readline()
            self.process.wait()
            self._start()
            if not line.endswith("\n"):
                raise Gone
            return json.loads(line)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=30)


class Workers(Door):
    """Processes that serve the store."""

    def __init__(self, address: str, count: int, people: Iterable[str], *, seed: int, kill_share: float):
        super().__init__(seed=seed, kill_share=kill_share, longest=0.012)  # about twice what an answer takes
        self.all, self.turn = [Worker(address) for _ in range(count)], itertools.count()

    def once(self, verb: str, request: dict[str, Any], kill_after: float | None) -> Any:
        with self.lock:
            worker = self.all[next(self.turn) % len(self.all)]
            self.kills += kill_after is not None
        return worker.ask({"verb": verb, **request}, kill_after=kill_after)

    def close(self) -> None:
        for worker in self.all:
            worker.close()


# -- the product ----------------------------------------------------------------------------------------------------


class Site(Door):
    """`tutelage web --workers N`, spoken to over HTTP with a token for each person.

    A kill hits one of the workers, whichever; the command itself starts another in its place.  A worker that dies and was
    not killed, and every answer that is not 200, is a Fault; 429 is waited for as it says.
    """

    def __init__(self, address: str, count: int, people: Iterable[str], *, seed: int, kill_share: float):
        super().__init__(seed=seed, kill_share=kill_share, longest=0.05)
        self.here, self.seen, self.killed, self.killers = threading.local(), set(), set(), ThreadPoolExecutor(count)
        db = open_database(address)
        self.tokens = {name: make_token(db, name, title="storm", scopes=["judge"], actor="storm").secret for name in people}
        with db.read() as conn:  # an annotator is not told which item it is; the question tells us
            found = [find_item(conn, each) for each in conn.execute(select(items.c.id)).scalars()]
        self.items = {item.prompt.messages[-1].text: item.id for item in found}
        db.close()
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tutelage", "web", "--port", "0", "--workers", str(count), "--database", address, "--json"],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.place = urlsplit(self._address()).netloc
        until = time.monotonic() + PATIENCE
        while len(self._workers()) < count and time.monotonic() < until:  # before the first kill, all of them
            time.sleep(0.1)

    def _address(self) -> str:
        lines = list(itertools.takewhile(lambda line: line.rstrip() != "}", self.process.stdout))
        if not lines:
            self.log.seek(0)
            raise Fault(f"tutelage web does not start: {self.log.read()[-2000:]}")
        return json.loads("".join(lines) + "}")["address"]

    def _workers(self) -> list[int]:
        """The processes that the command runs now: its children that were made to serve."""
        out = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone in between
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                    out.append(int(folder.name))
        return out

    def _kill(self, after: float) -> None:
        time.sleep(after)
        with self.lock:
            running = self._examined()
            if running:
                victim = self.random.choice(sorted(running))
                os.kill(victim, signal.SIGKILL)
                self.killed.add(victim)
                self.kills += 1

    def _examined(self) -> set[int]:
        """Workers that run and were not killed; none may be gone that was not."""
        running = set(self._workers())
        if lost := self.seen - running - self.killed:
            self.log.seek(0)
            raise Fault(f"worker {min(lost)} died by itself: {self.log.read()[-2000:]}")
        self.seen |= running
        return running - self.killed

    def once(self, verb: str, request: dict[str, Any], kill_after: float | None) -> Any:
        if kill_after is None:
            return getattr(self, f"_{verb}")(**request)
        killer = self.killers.submit(self._kill, kill_after)
        try:
            return getattr(self, f"_{verb}")(**request)
        finally:
            killer.result()

    def _next(self, *, person: str, count: int) -> list[dict[str, str]]:
        found = self._http("GET", f"projects/{PROJECT}/next?count={count}", person)["items"]
        return [self._item(each) for each in found]

    def _submit(self, *, person: str, lease: str, key: str, value: int) -> dict[str, Any]:
        told = self._http("POST", f"leases/{lease}", person,
                          {"key": key, "values": {"preference": value, "reason": key}, "seconds": 1.0})
        return {name: told[name] for name in ("status", "submission", "duplicate")}

    def _skip(self, *, person: str, lease: str) -> bool:
        return self._http("POST", f"leases/{lease}/skip", person, {"reason": "not for me"})["skipped"]

    def _undo(self, *, person: str, lease: str) -> dict[str, str]:
        return self._item(self._http("POST", f"leases/{lease}/undo", person))

    def _item(self, handed: dict[str, Any]) -> dict[str, str]:
        return {"lease": handed["lease"], "item": self.items[handed["messages"][-1]["text"]]}

    def _http(self, method: str, path: str, person: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"authorization": f"Bearer {self.tokens[person]}", "content-type": "application/json"}
        sent = None if body is None else json.dumps(body)
        while True:
            connection = self._connection()
            try:
                connection.request(method, f"/api/v1/{path}", sent, headers)
                answer = connection.getresponse()
                text = answer.read()
            except (ConnectionError, http.client.HTTPException) as error:  # a timeout is neither
                connection.close()
                raise Gone from error
            if answer.status == 429:
                time.sleep(float(answer.headers["retry-after"]))
            elif answer.status != 200:
                raise Fault(f"{method} {path}: {answer.status} {text.decode()[:500]}")
            else:
                return json.loads(text)

    def _connection(self) -> http.client.HTTPConnection:
        """One for each thread, kept open; not where the server is about to close it for being idle."""
        if not hasattr(self.here, "connection"):
            self.here.connection = http.client.HTTPConnection(self.place, timeout=PATIENCE)
        elif time.monotonic() - self.here.used > 2:
            self.here.connection.close()
        self.here.used = time.monotonic()
        return self.here.connection

    def close(self) -> None:
        """Stop the command as a person does."""
        left = self._workers()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise Fault("tutelage web does not stop when it is told to") from None
        finally:
            self.process.stdout.close()
            self.log.close()


DOORS = {"store": Workers, "http": Site}

if __name__ == "__main__":
    serve(sys.argv[1])
