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


def micro_batches(lengths: Sequence[int], *, token_budget: int, padded: bool = True) -> list[list[int]]:
    """Positions into `lengths`, longest first, such that rows x longest <= token_budget (a single row may exceed it).

    padded: whether rows are padded to the longest; where they are not (models/prefix.py), the sum of the lengths counts.

    >>> micro_batches([5, 1, 4, 2], token_budget=10)
    [[0, 2], [3, 1]]
    >>> micro_batches([5, 1, 4, 2], token_budget=12, padded=False)
    [[0, 2, 3, 1]]
    """
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    out: list[list[int]] = []
    sizes: list[int] = []
    for at in order:
        grown = 0
        if out:
            grown = (len(out[-1]) + 1) * lengths[out[-1][0]] if padded else sizes[-1] + lengths[at]
        if out and grown <= token_budget:
            out[-1].append(at)
            sizes[-1] += lengths[at]
        else:
            out.append([at])
            sizes.append(lengths[at])
    return out


def begins_of(rows: Sequence[Sequence[int]], family: Sequence[int]) -> list[int]:
    """How many tokens each row begins with as all of its family do; a row alone in its family: all of its own.

    >>> begins_of([[1, 2, 3], [1, 2, 4, 5], [7]], [0, 0, 1])
    [2, 2, 1]
    """
    common: dict[int, Sequence[int]] = {}
    for row, name in zip(rows, family, strict=True):
        before = common.get(name, row)
        alike = next((at for at, (a, b) in enumerate(zip(before, row, strict=False)) if a != b), min(len(before), len(row)))
        common[name] = before[:alike]
    return [len(common[name]) for name in family]


def family_batches(
    lengths: Sequence[int], common: Sequence[int], family: Sequence[int], *, token_budget: int, shared: bool = True
) -> list[list[int]]:
    """Micro-batches in which the rows of a family stand side by side, so that what they have in common is run once.

    family[i] is the number of row i's family, common[i] how many tokens it begins with as the others of it do.  A family
    takes common + the rows' own tokens (models/prefix.py), and is parted where that exceeds the budget.  `shared` False
    is plain `micro_batches`, for networks that cannot share.

    >>> family_batches([5, 4, 5, 4], [3, 3, 3, 3], [0, 1, 0, 1], token_budget=14)
    [[0, 2, 1, 3]]
    """
    if not shared:
        return micro_batches(lengths, token_budget=token_budget)
    members: dict[int, list[int]] = {}
    for at, name in enumerate(family):
        members.setdefault(name, []).append(at)
    trees: list[list[int]] = []
    sizes: list[int] = []
    for rows in members.values():
        for at in rows:
            own = lengths[at] - common[at]
            if at != rows[0] and sizes[-1] + own <= token_budget:
                trees[-1].append(at)
                sizes[-1] += own
            else:
                trees.append([at])
                sizes.append(lengths[at])
    return [[at for tree in batch for at in trees[tree]] for batch in micro_batches(sizes, token_budget=token_budget)]
