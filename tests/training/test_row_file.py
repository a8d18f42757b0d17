"""Rows on disk are the rows that were put there."""

import random
import tracemalloc

import pytest

from tutelage.text.mask import Row
from tutelage.training.row_file import RowFile


def rows(count, seed=0):
    rng = random.Random(seed)
    return [Row([rng.randrange(2**31) for _ in range(length)], [rng.choice([0.0, 1.0, 0.1, 1 / 3]) for _ in range(length)])
            for length in (rng.randrange(1, 40) for _ in range(count))]


def test_rows_come_back_as_they_were_in_any_order_and_while_more_are_added(tmp_path):
    wanted = rows(50)
    kept = RowFile(tmp_path)
    kept.extend(wanted[:20])
    assert kept[3] == wanted[3] and isinstance(kept[3].token_ids, list) and isinstance(kept[3].weights[0], float)
    kept.extend(iter(wanted[20:]))
    kept.extend([])
    assert len(kept) == 50 and list(kept) == wanted and list(reversed(kept)) == wanted[::-1]
    assert kept[-1] == wanted[-1] and kept[5:45:7] == wanted[5:45:7] and kept[40:99] == wanted[40:]
    for at in (50, -51):
        with pytest.raises(IndexError, match=f"row {at} of 50"):
            kept[at]


def test_nothing_is_left_behind(tmp_path):
    kept = RowFile(tmp_path)
    kept.extend(rows(5))
    del kept
    assert not list(tmp_path.iterdir())


def test_a_row_with_too_few_weights_is_refused(tmp_path):
    kept = RowFile(tmp_path)
    with pytest.raises(ValueError, match="3 tokens and 2 weights"):
        kept.extend([Row([1, 2, 3], [1.0, 1.0])])
    assert len(kept) == 0


def test_memory_does_not_grow_with_the_tokens(tmp_path):
    """10,000 rows of 100 tokens: as lists 8 MB of pointers and more of numbers; here where each ends."""
    tracemalloc.start()
    kept = RowFile(tmp_path)
    kept.extend(Row(list(range(1000, 1100)), [0.5] * 100) for _ in range(10_000))
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 10_000 and now < 500_000
