"""People and processes at their worst: does every judgement that was acknowledged stand exactly once?

    python tests/people/storm.py --annotators 200 --workers 4 --judgements 20000 [--through http|store] [--database URL|postgresql]

Simulated annotators ask for items and send judgements: through the REST API of `tutelage web --workers 4`, each with a token
of their own, or (--through store) to processes that serve the store alone.  A tenth of what they send they send twice, half
of that at the same time.  Workers are killed (SIGKILL) while they answer, and the client, who does not know what became of
the request, sends it again with the same key.  Some annotators let their leases expire and send their judgement later, some
skip, some undo and judge again.  Meanwhile and at the end the database is examined: one judgement for every one
acknowledged, with the content that was sent, and none besides; no item over or under its overlap; the chain verifies.
One closing line; the exit code is 1 at the first fault.

The seed fixes what annotators do and when workers are killed in their counting; which process comes first is the machine's.
"""

import argparse
import contextlib
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import Missing, cluster, new_database
from doors import DOORS, PROJECT, Door, Fault
from sqlalchemy import func, select

from tutelage.core.words import Message, Prompt, Response
from tutelage.store.accounts import create_person
from tutelage.store.collected import progress
from tutelage.store.db import Database, open_database
from tutelage.store.feedback import Item, Settings, add_items, create_project
from tutelage.store.ledger import verify
from tutelage.store.tables import contents, items, leases, submissions

OVERLAP, SHARE = 3, 0.25  # a quarter of the items is judged three times: 1.5 judgements an item
DUPLICATES, VANISHING, SKIPPED, UNDONE, PREFETCHING = 0.10, 0.03, 0.02, 0.03, 0.2


# -- annotators -----------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What the workers acknowledged, as the annotators saw it."""

    stored: dict[str, dict[str, Any]] = field(default_factory=dict)  # key -> person, item, lease, value, submission
    undone: set[str] = field(default_factory=set)  # keys
    seen: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Annotator:
    """One simulated person: what it does depends on its own random stream."""

    def __init__(self, name: str, door: Door, told: Told, pool: ThreadPoolExecutor, *, seed: int, lease_seconds: float):
        self.name, self.door, self.told, self.pool, self.lease_seconds = name, door, told, pool, lease_seconds
        self.random, self.keys = random.Random(f"{name} {seed}"), itertools.count()
        self.later: list[tuple[float, dict[str, str]]] = []  # judgements to be sent when their lease has expired

    def step(self) -> None:
        """Ask for an item and do something with it."""
        if self.later and self.later[0][0] < time.time():
            self.judge(self.later.pop(0)[1])
        handed = self.door.ask("next", person=self.name, count=3 if self.random.random() < PREFETCHING else 1)
        away = {each["lease"] for _, each in self.later}
        handed = [each for each in handed if each["lease"] not in away]
        if not handed:
            return
        what = self.random.random()
        if what < VANISHING:
            self.later.append((time.time() + self.lease_seconds * 1.2, handed[0]))
        elif what < VANISHING + SKIPPED:
            self.door.ask("skip", person=self.name, lease=handed[0]["lease"])
            self.count("skipped")
        else:
            key = self.judge(handed[0])
            if key and what > 1 - UNDONE:
                again = self.door.ask("undo", person=self.name, lease=handed[0]["lease"])
                with self.told.lock:
                    self.told.undone.add(key)
                self.judge(again)

    def judge(self, handed: dict[str, str]) -> str | None:
        """Submit, perhaps twice; the key when it was stored."""
        key = f"{self.name}:{next(self.keys)}"
        request = {"person": self.name, "lease": handed["lease"], "key": key, "value": self.random.randint(-3, 3)}
        twice, at_once = self.random.random() < DUPLICATES, self.random.random() < 0.5
        second = self.pool.submit(self.door.ask, "submit", **request) if twice and at_once else None
        answers = [self.door.ask("submit", **request)]
        answers += [second.result()] if second else [self.door.ask("submit", **request)] if twice else []
        self.count("sent twice", len(answers) - 1)
        stored = [each for each in answers if each["status"] == "stored"]
        # what came too late is not kept: sent again it is taken if there is room by then, because a lease on the item has expired
        # meanwhile; what was stored is kept, and no later answer may say anything else
        fickle = len(stored) not in (0, len(answers)) and {each["status"] for each in answers} != {"stored", "late"}
        forgotten = second is None and stored and answers[-1]["status"] != "stored"
        if fickle or forgotten or len({each["submission"] for each in stored}) > 1 or len({each["status"] for each in answers}) > 2:
            raise Fault(f"{key} was sent twice and told two things: {answers}")
        if not stored:
            self.count(answers[0]["status"])
            return None
        self.count("stored")
        if len(stored) > 1 and all(not each["duplicate"] for each in stored):
            raise Fault(f"{key} was sent twice and stored twice: {answers}")
        with self.told.lock:
            self.told.stored[key] = {**request, "item": handed["item"], "submission": stored[0]["submission"]}
        return key

    def count(self, what: str, times: int = 1) -> None:
        with self.told.lock:
            self.told.seen[what] += times


# -- the examination ------------------------------------------------------------------------------------------------


def examine_meanwhile(db: Database) -> None:
    """Standing judgements and live leases of no item exceed its overlap, at a moment in the middle."""
    with db.read() as conn:
        rows = conn.execute(select(items.c.id, items.c.overlap, items.c.done, leases.c.expires).join(
            leases, (leases.c.item == items.c.id) & (leases.c.state == "open"), isouter=True)).all()
    now = time.time()  # after the snapshot: a lease that ran out before it is not counted as live
    taken = Counter({row.id: row.done for row in rows})
    taken.update(row.id for row in rows if row.expires is not None and row.expires > now)
    for row in rows:
        if taken[row.id] > row.overlap:
            raise Fault(f"item {row.id}: {taken[row.id]} judgements and live leases, overlap {row.overlap}")


def examine(db: Database, told: Told) -> None:
    """Everything that was promised, by plain loops over the rows."""
    with db.read() as conn:
        rows = conn.execute(select(submissions, contents.c.content).join(contents, contents.c.seq == submissions.c.seq)).all()
        wanted = {row.id: row for row in conn.execute(select(items.c.id, items.c.overlap, items.c.done, items.c.special))}
    made = [row for row in rows if row.follows is None]
    withdrawn = Counter(row.follows for row in rows if row.follows is not None)
    by_key = Counter(row.key for row in made)
    for row in made:
        sent = told.stored.get(row.key)
        if sent is None or by_key[row.key] > 1:
            raise Fault(f"judgement {row.id} of key {row.key}: stored {by_key[row.key]} time(s), acknowledged {bool(sent)}")
        kept = json.loads(row.content)
        if (row.id, row.item, row.person, kept["answers"]) != (
                sent["submission"], sent["item"], sent["person"], {"preference": sent["value"], "reason": row.key}):
            raise Fault(f"judgement {row.id} is not what was sent: {kept}, {sent}")
        if withdrawn[row.id] != (row.key in told.undone):
            raise Fault(f"judgement {row.id} was withdrawn {withdrawn[row.id]} time(s), undone {row.key in told.undone}")
    if lost := set(told.stored) - set(by_key):
        raise Fault(f"{len(lost)} acknowledged judgement(s) are not there, for instance {min(lost)}")
    standing = [row for row in made if not withdrawn[row.id]]
    people_of: dict[str, list[str]] = {}
    for row in standing:
        people_of.setdefault(row.item, []).append(row.person)
    for item, row in wanted.items():
        people = people_of.get(item, [])
        if len(set(people)) != len(people) or len(people) != row.done or (not row.special and len(people) != row.overlap):
            raise Fault(f"item {item}: judged by {sorted(people)}, counted {row.done}, overlap {row.overlap}")
    verdict = verify(db)
    if not verdict.ok:
        raise Fault(verdict.wrong)


# -- the storm ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def place(database: str) -> Iterator[str]:
    """The address of an empty database."""
    if database == "postgresql":
        with cluster(fsync=True) as address:
            yield new_database(address)
    elif database:
        yield database
    else:
        with tempfile.TemporaryDirectory(prefix="storm-") as folder:
            yield f"sqlite:///{Path(folder) / 'people.db'}"


def fill(db: Database, *, annotators: int, judgements: int, lease_seconds: float) -> None:
    create_project(db, PROJECT, rubric="pairwise", actor="storm", settings=Settings(
        overlap=OVERLAP, overlap_share=SHARE, gold_share=0.05, lease_seconds=lease_seconds))
    for number in range(annotators):
        create_person(db, f"ann-{number}", "annotator", actor="storm")
    count = max(1, round(judgements / (1 + (OVERLAP - 1) * SHARE)))
    prompts = [Prompt(messages=(Message(role="user", text=f"question {number}"),)) for number in range(count + 20)]
    add_items(db, PROJECT, (
        Item(kind="pair", prompt=prompt, gold={"preference": 1} if number >= count else None, batch=number // 1000,
             responses=tuple(Response(prompt_id=prompt.id, text=text, policy=text) for text in ("m1", "m2")))
        for number, prompt in enumerate(prompts)), actor="storm")


def crowd(people: list[Annotator], over: threading.Event, faults: list[BaseException], *, seed: int) -> None:
    """One client's share of the annotators, in a random order, until it is over."""
    stream = random.Random(f"crowd {people[0].name} {seed}")
    try:
        while not over.is_set():
            stream.choice(people).step()
        for person in people:  # what they still had in their hands, too late by now
            for _, handed in person.later:
                person.judge(handed)
    except BaseException as error:
        faults.append(error)
        over.set()


def storm(address: str, *, through: str, annotators: int, workers: int, judgements: int, seed: int, kill_share: float,
          lease_seconds: float) -> str:
    """Run it, examine it; the closing line."""
    db, told = open_database(address), Told()
    fill(db, annotators=annotators, judgements=judgements, lease_seconds=lease_seconds)
    names = [f"ann-{number}" for number in range(annotators)]
    over, faults, clients = threading.Event(), [], min(2 * workers, annotators)
    with (contextlib.closing(DOORS[through](address, workers, names, seed=seed, kill_share=kill_share)) as door,
          ThreadPoolExecutor(clients) as pool):
        people = [Annotator(name, door, told, pool, seed=seed, lease_seconds=lease_seconds) for name in names]
        threads = [threading.Thread(target=crowd, args=(people[at::clients], over, faults), kwargs={"seed": seed})
                   for at in range(clients)]
        start, looks = time.perf_counter(), 0
        for thread in threads:
            thread.start()
        try:
            while not over.wait(min(2.0, lease_seconds)):
                examine_meanwhile(db)
                looks += 1
                far = progress(db, PROJECT)
                if far.judged >= far.wanted:
                    seconds = time.perf_counter() - start
                    over.set()
        finally:
            over.set()
            for thread in threads:
                thread.join()
    if faults:
        raise faults[0]
    examine(db, told)
    with db.read() as conn:
        stands = conn.execute(select(func.sum(items.c.done))).scalar_one()
    db.close()
    return (f"storm passed on {db.kind} through {through}: {annotators} annotators, {workers} workers, {len(told.stored)} judgements "
            f"acknowledged and stored once, {stands} stand, {len(told.undone)} undone, {told.seen['sent twice']} sent twice, "
            f"{told.seen['late']} too late, {told.seen['skipped']} skipped, {door.kills} kills that cut {door.cut} requests off, "
            f"{looks} looks in between, chain verified; {len(told.stored) / seconds:.0f} judgements/s, seed {seed}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--through", choices=tuple(DOORS), default="http", help="the web app, or the store alone")
    parser.add_argument("--annotators", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--judgements", type=int, default=20_000)
    parser.add_argument("--database", default="", help="an empty database, or 'postgresql' for a temporary one; default: SQLite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill-share", type=float, default=0.002, help="share of the requests whose worker is killed")
    parser.add_argument("--lease-seconds", type=float, default=4.0)
    args = parser.parse_args()
    try:
        with place(args.database) as address:
            print(storm(address, through=args.through, annotators=args.annotators, workers=args.workers, judgements=args.judgements,
                        seed=args.seed, kill_share=args.kill_share, lease_seconds=args.lease_seconds))
    except Missing as missing:
        print(f"storm skipped: {missing}")
    except Fault as fault:
        print(f"storm FAILED: {fault}; seed {args.seed}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
