"""Two pieces that training on a CPU spends its time in, each against what it replaced: processor time, one thread.

    OMP_NUM_THREADS=1 python benchmarks/pieces.py
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tutelage.algos import cross_entropy
from tutelage.algos.cross_entropy import token_logps
from tutelage.models.attention import attend
from tutelage.models.heads import Head
from tutelage.training.networks import fast_matmuls

HEADS, KV_HEADS, SIZE = 9, 3, 64  # SmolLM2-135M
POSITIONS, HIDDEN, VOCABULARY = 840, 576, 49152


def seconds(run: Callable[[], Any], times: int, clock: Callable[[], float] = time.process_time) -> float:
    """Median time, by default the processor's; the first run warms up."""
    run()
    found = []
    for _ in range(times):
        begun = clock()
        run()
        found.append(clock() - begun)
    return statistics.median(found)


def attention(rows: int, length: int) -> tuple[float, float]:
    query, key, value = (torch.randn(rows, heads, length, SIZE, dtype=torch.bfloat16).requires_grad_()
                         for heads in (HEADS, KV_HEADS, KV_HEADS))
    grad = torch.randn(rows, length, HEADS, SIZE, dtype=torch.bfloat16)

    def before() -> None:
        keys, values = (each.repeat_interleave(HEADS // KV_HEADS, 1) for each in (key, value))
        F.scaled_dot_product_attention(query, keys, values, is_causal=True).transpose(1, 2).backward(grad)

    def after() -> None:
        attend(torch.nn.Module(), query, key, value, None)[0].backward(grad)

    return seconds(before, 5), seconds(after, 5)


def head() -> tuple[float, float]:
    hidden = (torch.randn(POSITIONS, HIDDEN) * 2).bfloat16().requires_grad_()
    linear = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).bfloat16()
    target = torch.randint(0, VOCABULARY, (POSITIONS,))

    def run() -> None:
        token_logps(hidden, target, Head(linear, None), chunk=512, entropy=False).logp_N.sum().backward()

    kept, cross_entropy.KEPT_BYTES = cross_entropy.KEPT_BYTES, 0
    before = seconds(run, 3)
    cross_entropy.KEPT_BYTES = kept
    return before, seconds(run, 3)


def main() -> None:
    torch.manual_seed(0)
    print(f"{'':<36}{'before':>10}{'after':>10}{'ratio':>8}")
    with fast_matmuls("cpu"):
        for rows, length in ((24, 85), (14, 146), (8, 256), (4, 512)):
            before, after = attention(rows, length)
            print(f"{f'attention, {rows} x {length}, ms':<36}{1e3 * before:>10.0f}{1e3 * after:>10.0f}{before / after:>8.2f}")
        before, after = head()
        print(f"{f'trained head, {POSITIONS} positions, s':<36}{before:>10.2f}{after:>10.2f}{before / after:>8.2f}")


if __name__ == "__main__":
    main()
