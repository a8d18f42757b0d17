"""The same work on many items, a bounded number at a time, results as they finish."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_finished(work: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """`work(item)` of each item, at most `threads` at once, in the order in which they finish; the first error is raised.

    `items` is read as room comes free, in the caller's thread.  The threads are daemons, where those of
    `concurrent.futures` are waited for when Python ends: Ctrl-C must not wait for a slow server.
    """
    tasks: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
    left = threading.Event()  # the caller has gone, or has an error

    def serve() -> None:
        while (task := tasks.get()) is not None and not left.is_set():
            try:
                done.put((work(*task), None))
            except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread, not swallowed
                done.put((None, error))

    started = waiting = 0
    try:
        for item in items:
            if started < threads:
                threading.Thread(target=serve, daemon=True, name=f"request-{started}").start()
                started += 1
            tasks.put((item,))
            waiting += 1
            if waiting >= 2 * threads:  # as many again lie ready, so that no thread waits for a slow caller
                yield _result(done.get())
                waiting -= 1
        for _ in range(waiting):
            yield _result(done.get())
    finally:
        left.set()
        for _ in range(started):
            tasks.put(None)


def _result(found: tuple[Result | None, BaseException | None]) -> Result:
    result, error = found
    if error is not None:
        raise error
    return result
