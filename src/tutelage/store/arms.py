"""Which items are asked about first, and how they were chosen: drawn at random, or picked (Item.arm)."""

from collections.abc import Mapping

from sqlalchemy import select, update

from tutelage.core.errors import UserError
from tutelage.store import ledger, tables
from tutelage.store.db import Database, clock
from tutelage.store.feedback import find_project

items = tables.items
ARMS = ("random", "active")


def waiting(db: Database, project: str) -> list[str]:
    """Ids of the ordinary items that nobody has judged yet, in the order in which they are handed out."""
    with db.read() as conn:
        find_project(conn, project)
        return list(conn.execute(select(items.c.id).where(*_untouched(project)).order_by(items.c.batch, items.c.place)).scalars())


def _untouched(project: str) -> tuple:
    return items.c.project == project, ~items.c.special, ~items.c.full, items.c.done == 0


def put_first(db: Database, project: str, arms: Mapping[str, str], *, actor: str, now: float | None = None) -> None:
    """Hand these items out before the others that nobody has judged, and keep how each was chosen: item -> arm.

    The others go one batch back.  What an earlier choice put first and nobody has judged since is one of the others again.
    """
    if unknown := set(arms.values()) - set(ARMS):
        raise UserError(f"an arm is {' or '.join(ARMS)}; got {', '.join(sorted(unknown))}")
    with db.write() as conn:
        conn.execute(select(tables.head).with_for_update())
        find_project(conn, project)
        there = dict(conn.execute(select(items.c.id, items.c.batch).where(*_untouched(project))).tuples().all())
        if gone := [key for key in arms if key not in there]:
            raise UserError(f"{len(gone)} of the items are not waiting in {project} any more, {gone[0]} for one; choose again")
        first = min(there.values(), default=0)
        conn.execute(update(items).where(*_untouched(project)).values(batch=items.c.batch + 1, arm="random"))
        for arm in ARMS:
            keys = [key for key, each in arms.items() if each == arm]
            for start in range(0, len(keys), 500):  # databases limit how many values a statement may have
                conn.execute(update(items).where(items.c.id.in_(keys[start:start + 500])).values(batch=first, arm=arm))
        ledger.append(conn, kind="plan", actor=actor, subject=project, now=clock(now), content={
            arm: sorted(key for key, each in arms.items() if each == arm) for arm in ARMS})
