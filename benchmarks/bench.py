"""`make bench`: the same work by this project and by its peers, side by side, on this machine.

    python benchmarks/bench.py [--only sft,ppo] [--rounds 1] [--folder .bench]

Each peer has an environment of its own (made here the first time), reads the same inputs from disk, and takes turns with this
project: ours, peer, peer, ours, ...  A process's first step warms up and is not counted; the figure of a side is the median of
all other steps (at least five).  The work must be the same, or the run fails: tokens, trained positions, rows, pairs, responses
and their lengths.  Results are kept in benchmarks/results.jsonl with date and commit; docs/benchmarks.md and its picture are
written from the newest of each row.  The exit code is 1 where a ratio is missed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import inputs
import page
from rows import CURVE, ROWS, UNIT, WARM_UP, Row

HERE = Path(__file__).resolve().parent
BAND = 0.15  # of a ratio: two runs of one commit differ by up to this on a machine that has other things to do, too
KEPT = HERE / "results.jsonl"
ENVIRONMENTS = {"trl": "trl==1.16.0", "trl-1.11": "trl==1.11.0", "transformers": "trl==1.16.0"}


def environment(folder: Path, peer: str) -> Path:
    """The Python of the peer's environment, made where it is missing: the torch of this one, and the peer."""
    import torch  # its version is what the peer gets, too

    wanted = ENVIRONMENTS[peer]
    place = folder / "env" / wanted.replace("==", "-")
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        print(f"making an environment for {wanted} (minutes, once)")
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        version = torch.__version__.partition("+")[0]
        index = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
        extra = ["--extra-index-url", index] if index else []
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--retries", "1", f"torch=={version}", *extra], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", wanted], check=True)
        (place / "ready").write_text("")
    return python


def said(python: Path | str, script: str, folder: Path, work: str, setting: str, *more: str) -> dict[str, Any]:
    """Run one process to its end; what its last line says."""
    done = subprocess.run([str(python), str(HERE / script), str(folder), work, setting, *more], capture_output=True, text=True, check=False,
                          env={**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    if done.returncode:
        raise SystemExit(f"{' '.join((script, work, setting, *more))} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def one(python: Path | str, script: str, folder: Path, work: str, setting: str) -> dict[str, Any]:
    """The same, with a line about its speed."""
    begun = time.perf_counter()
    found = said(python, script, folder, work, setting)
    print(f"  {script} {work} {setting}: {speed(found, work):.3g} {amount(work)}/s, {found['peak_gb']:.2f} GB, "
          f"{time.perf_counter() - begun:.0f} s in all", flush=True)
    return found


def same_curve(folder: Path) -> str:
    """The losses of both sides on the same unpacked batches in float32; SystemExit where they part."""
    ours = one(sys.executable, "ours.py", folder / "inputs", "curve", "fp32")["loss"]
    peer = one(environment(folder, "trl"), "peer.py", folder / "inputs", "curve", "trl:fp32")["loss"]
    off = max(abs(a - b) / b for a, b in zip(ours, peer, strict=True))
    if off > CURVE["tolerance"]:
        raise SystemExit(f"the loss curves part by {off:.2g} of the loss: {ours} here, {peer} there; no figure is kept")
    return f"losses of {len(ours)} steps of {CURVE['rows_per_step']} unpacked rows in float32 agree with TRL's within {off:.1e} of the loss"


def amount(work: str) -> str:
    return UNIT.get(work, "tokens/s").partition("/")[0]


def speeds(found: dict[str, Any], work: str) -> list[float]:
    """Of each counted step."""
    return [step[amount(work)] / step["seconds"] for step in found["steps"][WARM_UP:]]


def speed(found: dict[str, Any], work: str) -> float:
    return statistics.median(speeds(found, work))


def same_work(row: Row, ours: list[dict[str, Any]], peers: list[dict[str, Any]]) -> str:
    """What was the same on both sides; SystemExit where something was not."""
    told = []
    for name, of in {
        "rows": lambda found: found.get("rows"),
        "trained positions": lambda found: found.get("trained"),
        "tokens": lambda found: found.get("tokens") or (sum(step["tokens"] for step in found["steps"]) if row.work == "sft" else None),
        "responses a step": lambda found: found["steps"][0].get("responses"),
        "tokens a response": lambda found: {step.get("length") for step in found["steps"]} - {None} or None,
        "steps": lambda found: len(found["steps"]) if row.work != "sft" else None,
    }.items():
        values = [of(found) for found in (*ours, *peers)]
        if any(value is None for value in values):
            continue
        if any(value != values[0] for value in values):
            raise SystemExit(f"{row.work}: not the same work: {name} were {values} (ours first); no figure is kept")
        told.append(f"{name} {values[0] if not isinstance(values[0], set) else min(values[0]):g}")
    return ", ".join(told)


def compare(row: Row, folder: Path, rounds: int) -> dict[str, Any]:
    """Both sides in turns; a record for results.jsonl."""
    peer, _, _ = row.peer.partition(":")
    python = environment(folder, peer)
    curve = f", {same_curve(folder)}" if row.work == "sft" and row.faster else ""
    ours, peers = [], []
    for number in range(rounds):
        for mine in ((True, False) if number % 2 == 0 else (False, True)):
            if mine:
                ours.append(one(sys.executable, "ours.py", folder / "inputs", row.work, row.ours))
            else:
                peers.append(one(python, "peer.py", folder / "inputs", row.work, row.peer))
    same = same_work(row, ours, peers)
    sides = {}
    for name, found in (("ours", ours), ("peer", peers)):
        all_speeds = [each for one_ in found for each in speeds(one_, row.work)]
        assert len(all_speeds) >= 5, f"{row.work}: only {len(all_speeds)} counted steps"
        sides[name] = {"median": statistics.median(all_speeds), "min": min(all_speeds), "max": max(all_speeds), "steps": len(all_speeds),
                       "peak_gb": max(one_["peak_gb"] for one_ in found), "versions": found[0]["versions"], "threads": found[0]["threads"]}
    return {"work": row.work, "setting": row.ours, "against": row.peer, "unit": UNIT[row.work], "same": same + curve, **sides,
            "faster": round(sides["ours"]["median"] / sides["peer"]["median"], 3),
            "memory": round(sides["ours"]["peak_gb"] / sides["peer"]["peak_gb"], 3),
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "machine": machine()}


def commit() -> str:
    found = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10"], capture_output=True, text=True,
                           check=False)
    return found.stdout.strip() or "unknown"


def machine() -> str:
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPUs"


def check(history: dict[tuple[str, str, str], list[dict[str, Any]]]) -> int:
    """1 where a row's newest ratio to the peer is below the one before by more than BAND.  The machine's speed of the day is in
    both sides of a ratio, and falls out."""
    slower, compared = [], 0
    for kept in history.values():
        if len(kept) < 2:
            continue
        compared += 1
        before, now = kept[-2], kept[-1]
        change = now["faster"] / before["faster"] - 1
        text = (f"{now['work']} against {now['against']}: {before['faster']:.2f}x at {before['commit']}, {now['faster']:.2f}x at "
                f"{now['commit']} ({100 * change:+.0f} %)")
        print(f"  {text}")
        if change < -BAND:
            slower.append(text)
    print(f"{compared} rows compared, {len(slower)} slower by more than {100 * BAND:.0f} %")
    return 1 if slower else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="works, comma-separated; all by default")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each side")
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("--write", action="store_true", help="write the page from what is kept, and run nothing")
    parser.add_argument("--check", action="store_true", help="compare the newest kept result of each row with the one before; run nothing")
    args = parser.parse_args()
    only = [name for name in args.only.split(",") if name]
    unknown = set(only) - set(UNIT)
    if unknown:
        raise SystemExit(f"unknown work {', '.join(sorted(unknown))}; known: {', '.join(UNIT)}")
    if args.check:
        return check(page.history(KEPT))
    if not args.write:
        inputs.write(args.folder / "inputs")
        for row in ROWS:
            if only and row.work not in only:
                continue
            print(f"{row.work}: {row.ours} against {row.peer}", flush=True)
            record = compare(row, args.folder, args.rounds)
            with KEPT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(f"  {page.line(row, record)}", flush=True)
    newest = page.newest(KEPT)
    page.write(newest)
    missed = [page.line(row, newest[page.key(row)]) for row in ROWS
              if page.key(row) in newest and (not only or row.work in only) and not page.reached(row, newest[page.key(row)])]
    measured = sum(page.key(row) in newest for row in ROWS)
    print(f"{measured} of {len(ROWS)} rows measured, {len(missed)} missed" + "".join(f"\n  {each}" for each in missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
