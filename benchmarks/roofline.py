"""Where the time of a row of `make bench` goes at the least: its products and its memory traffic at the rates of this machine.

    python benchmarks/roofline.py [--folder .bench]

First the rates are measured, at the very shapes: bfloat16 products of the trunk forwards and backwards, float32 products of the
head, a decoding step's packed products, AdamW.  Then the amounts of each work are counted from the inputs that `make bench`
wrote, common beginnings once.  The floor is the sum; beside it stand the newest measured step and the peer's.  What is not a
product, a weight that is read or AdamW has no share in the floor: attention, norms, activations, softmaxes, draws, calls.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import page
import pieces
import torch
from bench import KEPT
from rows import PAIRS, RL, ROWS, SAMPLING, SFT

from tutelage.algos.cross_entropy import ROWS as POSITIONS
from tutelage.algos.cross_entropy import TILE
from tutelage.models.prefix import trie
from tutelage.rollout.llama import _packed_linear
from tutelage.training.networks import fast_matmuls

HIDDEN, WIDE, LAYERS, VOCABULARY, QKV = 576, 1536, 30, 49152, 960  # SmolLM2-135M
SHAPES = ((HIDDEN, QKV), (HIDDEN, HIDDEN), (HIDDEN, 2 * WIDE), (WIDE, HIDDEN))  # (in, out) of a layer's matrices, neighbours together
TRUNK = LAYERS * sum(a * b for a, b in SHAPES)
HEAD = HIDDEN * VOCABULARY


class Rates(NamedTuple):
    forward: float  # bfloat16 products of the trunk, FLOP/s
    backward: float
    logits: float  # float32 products of the head
    slopes: float  # bfloat16 products of the head's backward pass
    decode: dict[int, float]  # seconds of a decoding step's products, by rows
    adamw: float  # seconds of an update of all parameters


class Amounts(NamedTuple):
    """Of one step."""

    forward: float  # tokens through the trunk without a gradient
    trained: float  # tokens through the trunk forwards and backwards, summed over the passes
    logits: float  # positions that get logits, gradient or not
    slopes: float  # positions whose logits have a gradient
    decode: tuple[int, int] = (0, 0)  # rows, decoding steps
    updates: int = 1


def seconds(run: Callable[[], Any], times: int = 9) -> float:
    return pieces.seconds(run, times, time.perf_counter)


def rates(rows: Sequence[int] = (16, 64), tokens: int = 1200) -> Rates:
    flops = forward = backward = 0.0
    for a, b in SHAPES:
        x, w, g = (torch.randn(shape).bfloat16() for shape in ((tokens, a), (b, a), (tokens, b)))
        flops += 2 * tokens * a * b
        forward += seconds(lambda: x @ w.T)  # noqa: B023
        backward += seconds(lambda: (g @ w, g.T @ x))  # noqa: B023
    hidden, matrix, room = torch.randn(POSITIONS, HIDDEN), torch.randn(VOCABULARY, HIDDEN), torch.empty(POSITIONS, TILE)
    logits = seconds(lambda: [torch.mm(hidden, part.T, out=room) for part in matrix.split(TILE)], 3)
    slope, short, narrow = torch.randn(POSITIONS, VOCABULARY).bfloat16(), matrix.bfloat16(), hidden.bfloat16()
    slopes = seconds(lambda: (slope @ short, slope.T @ narrow), 3)
    decode = {count: decoding(count) for count in rows}
    weights = [torch.zeros(TRUNK + HEAD, requires_grad=True)]
    weights[0].grad = torch.zeros(TRUNK + HEAD)
    optimizer = torch.optim.AdamW(weights, fused=True)
    return Rates(flops / forward, 2 * flops / backward, 2 * POSITIONS * HEAD / logits, 4 * POSITIONS * HEAD / slopes, decode,
                 seconds(optimizer.step, 3))


def decoding(rows: int) -> float:
    """All packed products of a step, each with weights of its own, so that they are read from memory."""
    packed = []
    for a, b in SHAPES:
        for _ in range(LAYERS):
            packed.append((torch.randn(rows, a).bfloat16(), torch.ops.mkldnn._reorder_linear_weight(torch.randn(b, a).bfloat16(), None)))
    packed.append((torch.randn(rows, HIDDEN), torch.ops.mkldnn._reorder_linear_weight(torch.randn(VOCABULARY, HIDDEN), None)))
    return seconds(lambda: [_packed_linear(x, w, None) for x, w in packed])


def amounts(work: dict[str, Any]) -> dict[str, Amounts]:
    def tokens(rows: Sequence[Sequence[int]], of: int) -> float:
        """Mean over steps of `of` rows: common beginnings once."""
        steps = [rows[at:at + of] for at in range(0, len(rows), of)]
        return statistics.fmean(sum(each.last - each.first for each in trie(step)[0]) for step in steps)

    sft, steps = work["sft"], SFT["steps"]
    trained = sum(sum(row["completion_mask"]) for row in sft) / steps
    sides = [(pair["prompt_ids"] + pair[side], len(pair[side])) for pair in work["pairs"] for side in ("chosen_ids", "rejected_ids")]
    pairs, answers = tokens([row for row, _ in sides], 2 * PAIRS["per_step"]), 2 * PAIRS["per_step"] * statistics.fmean(n for _, n in sides)
    asked = [row["ids"] for row in work["prompts"]][:RL["prompts_per_step"] * RL["steps"]]
    rows = RL["prompts_per_step"] * RL["responses_per_prompt"]
    prompts, own = tokens(asked, RL["prompts_per_step"]), rows * RL["tokens"]
    tree, drawn, passes = prompts + own, (rows, RL["tokens"]), RL["ppo_epochs"]
    return {
        "sft": Amounts(0, tokens([row["input_ids"] for row in sft], SFT["rows_per_step"]), trained, trained),
        "reward": Amounts(0, pairs, 0, 0),
        "dpo": Amounts(pairs, pairs, 2 * answers, answers),
        "grpo": Amounts(prompts + tree, tree, 2 * own, own, drawn),  # prompts before sampling; the reference
        "rloo": Amounts(prompts + tree, tree, 2 * own, own, drawn),
        "ppo": Amounts(prompts + 2 * tree, passes * tree, (1 + passes) * own, passes * own, drawn, passes),  # the reward model, too
        "sample-16": Amounts(0, 0, 0, 0, (16, SAMPLING["tokens"]), 0),
        "sample-64": Amounts(0, 0, 0, 0, (64, SAMPLING["tokens"]), 0),
    }


def parts(of: Amounts, at: Rates) -> dict[str, float]:
    """Seconds of a step at the least."""
    rows, steps = of.decode
    return {
        "trunk": 2 * TRUNK * (of.forward + of.trained) / at.forward + 4 * TRUNK * of.trained / at.backward,
        "head": 2 * HEAD * of.logits / at.logits + 4 * HEAD * of.slopes / at.slopes,
        "decoding": steps * at.decode.get(rows, 0.0),
        "AdamW": of.updates * at.adamw,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    args = parser.parse_args()
    with fast_matmuls("cpu"), torch.no_grad():
        at = rates()
    print(f"bfloat16 products of the trunk: {at.forward / 1e9:.0f} GFLOP/s forwards, {at.backward / 1e9:.0f} backwards; the head's logits "
          f"in float32 {at.logits / 1e9:.0f}, its gradients {at.slopes / 1e9:.0f}; a decoding step's products "
          + ", ".join(f"{1e3 * value:.0f} ms at {rows} rows" for rows, value in at.decode.items())
          + f"; AdamW {at.adamw:.2f} s\n")
    print("| work | trunk | head | decoding | AdamW | floor, s a step | measured | floor of it | peer | peer / floor | wanted |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    newest = page.newest(KEPT)
    done = {"sft": None, "reward": PAIRS["per_step"], "dpo": PAIRS["per_step"]}
    work = json.loads((args.folder / "inputs" / "work.json").read_text(encoding="utf-8"))
    counted, tokens = amounts(work), sum(len(row["input_ids"]) for row in work["sft"])
    for row in ROWS:
        record = newest.get(page.key(row))
        if row.work not in counted or record is None or row.ours != "bf16":
            continue
        of = counted[row.work]
        amount = (tokens / SFT["steps"] if row.work == "sft" else of.decode[0] * SAMPLING["tokens"] if row.work.startswith("sample")
                  else done.get(row.work) or of.decode[0])
        found = parts(of, at)
        floor, ours, peer = sum(found.values()), amount / record["ours"]["median"], amount / record["peer"]["median"]
        print(f"| {row.work} against {row.peer} | " + " | ".join(f"{value:.2f}" for value in found.values())
              + f" | {floor:.2f} | {ours:.2f} | {100 * floor / ours:.0f} % | {peer:.2f} | {peer / floor:.1f} | {row.faster or ''} |")


if __name__ == "__main__":
    main()
