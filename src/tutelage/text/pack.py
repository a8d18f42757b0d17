"""Batches by token budget: rows of like length ride together, so little is padded and nothing is packed across documents.

An optimiser step is a fixed number of rows drawn by a seeded permutation; only *within* the step are rows sorted by
length and cut into micro-batches, so the step holds the same rows whatever the memory allows.
"""

import random
from collections.abc import Iterator, Sequence


def epochs_of_steps(count: int, *, rows_per_step: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Row numbers of each optimiser step; every epoch a fresh permutation, the last step of an epoch may be smaller.

    Depends on (seed, epoch) only, so a resumed run can skip ahead.
    """
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, count, rows_per_step):
            yield order[start:start + rows_per_step]


def micro_batches(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Positions into `lengths`, longest first, such that rows x longest <= token_budget (a single row may exceed it).

    >>> micro_batches([5, 1, 4, 2], token_budget=10)
    [[0, 2], [3, 1]]
    """
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    out: list[list[int]] = []
    for at in order:
        if out and (len(out[-1]) + 1) * lengths[out[-1][0]] <= token_budget:
            out[-1].append(at)
        else:
            out.append([at])
    return out
