"""Work on many items at once: bounded, as it finishes, and left alone once the caller has gone."""

import threading

import pytest

from tutelage.remote.pool import as_finished


def test_as_many_at_once_as_threads_and_never_one_more():
    def meet(parties, timeout):
        barrier = threading.Barrier(parties, timeout=timeout)
        return sorted(as_finished(lambda item: barrier.wait() * 0 + item, range(12), threads=3))

    assert meet(3, 5.0) == list(range(12))
    with pytest.raises(threading.BrokenBarrierError):
        meet(4, 0.3)
    assert list(as_finished(abs, [], threads=3)) == []


def test_what_is_queued_is_not_begun_once_the_caller_has_gone():
    before, begun, three, go = set(threading.enumerate()), [], threading.Semaphore(0), threading.Event()

    def work(item):
        begun.append(item)
        three.release()
        if item:
            go.wait(5)
        return item

    answers = as_finished(work, range(9), threads=2)  # 4 are handed out: 0 ends, two are held, and one lies ready
    assert next(answers) == 0
    assert all(three.acquire(timeout=5) for _ in range(3))
    answers.close()
    go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
    assert len(begun) == 3


def test_an_error_of_the_work_or_of_the_items_reaches_the_caller():
    def items():
        yield 1
        raise KeyError("item")

    with pytest.raises(ZeroDivisionError):
        list(as_finished(lambda item: 1 / item, [0], threads=2))
    with pytest.raises(KeyError):
        list(as_finished(lambda item: item, items(), threads=2))
