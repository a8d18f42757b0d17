"""What share of a training step passes outside of tensor work?

    python benchmarks/overhead.py [--steps 6]

SFT of SmolLM2-135M under torch's profiler.  Tensor work is the union, over all threads, of the time in which some operator of torch or
some node of autograd runs; the rest of a step is Python between them, batches, metrics, files.  The profiler itself costs a few
percent, which fall on either side.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from inputs import examples
from torch.profiler import ProfilerActivity, profile

from tutelage.training import sft as task
from tutelage.training.loop import LoopConfig, fit
from tutelage.training.state import SaveConfig


def union(spans: list[tuple[float, float]]) -> float:
    """
    >>> union([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for low, high in sorted(spans):
        total += max(0.0, high - max(low, end))
        end = max(end, high)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    inside: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        config = task.SFTConfig(loop=LoopConfig(max_steps=args.steps, rows_per_step=17, token_budget=2048, keep_best=False),
                           save=SaveConfig(every_steps=0, every_seconds=0), device="cpu")

        def profiled(*given, **more):
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                begun = time.perf_counter()
                out = fit(*given, **more)
                inside["wall"] = time.perf_counter() - begun
            events = [each for each in seen.events() if each.device_type == torch.autograd.DeviceType.CPU]
            inside["tensor"] = union([(each.time_range.start, each.time_range.end) for each in events]) / 1e6
            inside["mm"] = union([(e.time_range.start, e.time_range.end) for e in events if e.name in ("aten::mm", "aten::bmm")]) / 1e6
            return out

        task.fit = profiled
        task.sft(config, train=examples(), folder=Path(scratch) / "run")
    wall, tensor = inside["wall"], inside["tensor"]
    print(f"{args.steps} steps in {wall:.1f} s: tensor work {tensor:.1f} s ({100 * tensor / wall:.1f} %), of it matrix products "
          f"{inside['mm']:.1f} s ({100 * inside['mm'] / wall:.1f} %); outside {wall - tensor:.2f} s ({100 * (1 - tensor / wall):.1f} %)")


if __name__ == "__main__":
    main()
