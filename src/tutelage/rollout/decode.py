"""The decoding loop: which rows run, what each of them drew, when it ends.

A `Net` holds the weights and the KV cache and knows tensors; this loop knows rows.  The prompt of n samples is run
through the network once and its cache copied to n rows; a finished row leaves at once and the rest close ranks
(compaction); where the net allows it, waiting prompts take the free places while the others go on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from tutelage.core.words import Prompt, Sampling
from tutelage.rollout.sampling import draw, uniforms

PREFILL_TOKENS = 4096  # padded prompt tokens that go through the network at once: bounds the activations' memory


class Net(Protocol):
    """A causal LM with a KV cache whose rows come and go.  R = rows now in the cache, V = vocabulary."""

    joins: bool  # whether `admit` may be called while rows are running

    def open(self, rows: int, length: int) -> None:
        """Make room for up to `rows` sequences of up to `length` tokens."""
        ...

    def admit(self, prompts: Sequence[list[int]], copies: Sequence[int]) -> Tensor:
        """Append `copies[i]` rows that begin with `prompts[i]`; logits of their next tokens [sum(copies), V], float32."""
        ...

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Append one token to every row; logits of the next [R, V], float32."""
        ...

    def keep(self, alive: Sequence[bool]) -> list[int]:
        """Drop rows; returns which old row stands in each new place."""
        ...

    def close(self) -> None:
        """Give the cache back."""
        ...


@dataclass(slots=True, kw_only=True)
class Row:
    """One response in the making."""

    prompt: Prompt
    sampling: Sampling
    index: int
    prompt_ids: list[int]
    budget: int  # tokens that it may have: max_tokens, or less where the context ends
    u: np.ndarray  # its random numbers, one a token
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = ""  # "" while it runs


@dataclass(slots=True, kw_only=True)
class Job:
    """A prompt with `count` responses still to begin, numbered from `first`."""

    prompt: Prompt
    sampling: Sampling
    prompt_ids: list[int]
    budget: int
    first: int = 0
    count: int = 1

    def begin(self, count: int) -> list[Row]:
        """Take `count` rows off this job."""
        rows = [
            Row(prompt=self.prompt, sampling=self.sampling, index=index, prompt_ids=self.prompt_ids, budget=self.budget,
                u=uniforms(self.budget, seed=self.sampling.seed, prompt_id=self.prompt.id, index=index,
                           step=self.sampling.step))
            for index in range(self.first, self.first + count)
        ]
        self.first += count
        self.count -= count
        return rows


def run(
    net: Net, jobs: Iterable[Job], *, rows: int, ends: frozenset[int], text_of: Callable[[Sequence[int]], str]
) -> Iterator[Row]:
    """Finished rows, as they finish.  At most `rows` run at a time; `ends` are the ids that end a response."""
    # like lengths together: less padding.  No response depends on the order.
    waiting = deque(sorted(jobs, key=lambda job: len(job.prompt_ids)))
    if not waiting:
        return
    longest = max(len(job.prompt_ids) + job.budget for job in waiting)
    rows = min(rows, sum(job.count for job in waiting))
    active: list[Row] = []
    net.open(rows, longest)
    try:
        while active or waiting:
            while waiting and _worth_joining(net, len(active), rows, waiting):
                group, copies = _next_group(waiting, rows - len(active))
                logits_RV = net.admit([row[0].prompt_ids for row in group], copies)
                newcomers = [row for family in group for row in family]
                _extend(newcomers, logits_RV, ends, text_of)
                active += newcomers
                yield from (row for row in newcomers if row.finish)
                active = _compact(net, active)
                if not net.joins:
                    break
            if active:
                _extend(active, net.step([row.token_ids[-1] for row in active]), ends, text_of)
                yield from (row for row in active if row.finish)
                active = _compact(net, active)
    finally:
        net.close()


def _worth_joining(net: Net, active: int, rows: int, waiting: deque[Job]) -> bool:
    """Prompts go through the network in groups: wait until a quarter of the places is free, or all that wait fit."""
    if not active:
        return True
    if not net.joins:
        return False
    free = rows - active
    return free > 0 and (free >= rows / 4 or free >= sum(job.count for job in waiting))


def _next_group(waiting: deque[Job], free: int) -> tuple[list[list[Row]], list[int]]:
    """Families of rows (one prompt each) that go through the network together, and their sizes."""
    group: list[list[Row]] = []
    width = 0
    while waiting and free > 0:
        width = max(width, len(waiting[0].prompt_ids))
        if group and width * (len(group) + 1) > PREFILL_TOKENS:
            break
        group.append(waiting[0].begin(min(free, waiting[0].count)))
        free -= len(group[-1])
        if not waiting[0].count:
            waiting.popleft()
    return group, [len(family) for family in group]


def _extend(rows: list[Row], logits_RV: Tensor, ends: frozenset[int], text_of: Callable[[Sequence[int]], str]) -> None:
    """Draw the next token of every row and mark those that it ends."""
    drawn = draw(logits_RV, [row.sampling for row in rows], [row.u[len(row.token_ids)] for row in rows])
    for row, token, logp in zip(rows, drawn.token_R.tolist(), drawn.logp_R.tolist(), strict=True):
        row.token_ids.append(token)
        row.logps.append(logp)
        if token in ends or (row.sampling.stop and _says_stop(row, text_of)):
            row.finish = "stop"
        elif len(row.token_ids) >= row.budget:
            row.finish = "length"


def _says_stop(row: Row, text_of: Callable[[Sequence[int]], str]) -> bool:
    # a token may be a single byte of a character, so a stop string of c characters lies within the last 4 c + a few tokens
    tail = text_of(row.token_ids[-(4 * max(map(len, row.sampling.stop)) + 8):])
    return any(stop in tail for stop in row.sampling.stop)


def _compact(net: Net, active: list[Row]) -> list[Row]:
    alive = [not row.finish for row in active]
    if all(alive):
        return active
    return [active[old] for old in net.keep(alive)]
