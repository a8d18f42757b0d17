"""How long until something happens: importing, asking for help, the first training step.

    python benchmarks/startup.py [--times 5]

The first step: `tutelage sft` with SmolLM2-135M on the starter instructions, from the call of the command to the end of the first
update, in a process that has imported torch and transformers before; model, check and the evaluation before the first step are
cached by a run before.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

STEP = """
import sys, time, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer  # parts that transformers imports when asked for them
import transformers.models.llama.modeling_llama
begun = time.perf_counter()
from tutelage.cli import main
from tutelage.training.optim import Optimizer
from tutelage.training.sft import SFTTask
evaluate, step, evaluated, ended = SFTTask.evaluate, Optimizer.step, [], []
def before(self):
    started = time.perf_counter()
    out = evaluate(self)
    evaluated.append(0 if ended else time.perf_counter() - started)
    return out
SFTTask.evaluate = before
def timed(self):
    out = step(self)
    ended.append(time.perf_counter())
    return out
Optimizer.step = timed
code = main(["sft", "sft_starter", "--workspace", sys.argv[1], "loop.max_steps=1", "save.every_steps=0"])
assert code == 0, code
print("first step after", ended[0] - begun, sum(evaluated))
"""


def seconds(*command: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    bare = statistics.median(seconds("-c", "pass") for _ in range(args.times))
    for name, command in (("import tutelage", ("-c", "import tutelage")), ("tutelage --help", ("-m", "tutelage", "--help"))):
        print(f"{name}: {statistics.median(seconds(*command) for _ in range(args.times)):.2f} s (Python itself {bare:.2f} s)")
    with tempfile.TemporaryDirectory() as workspace:
        found: list[tuple[float, ...]] = []  # seconds to the end of the first update, and of them for evaluation
        for _ in range(args.times + 1):  # the first fills the caches
            done = subprocess.run([sys.executable, "-c", STEP, workspace], check=True, capture_output=True, text=True)
            found.append(tuple(map(float, done.stdout.rpartition("first step after")[2].split())))
    done, held_out = (statistics.median(each[at] for each in found[1:]) for at in range(2))
    print(f"first training step: ends {done:.1f} s after the imports of torch and transformers ({held_out:.1f} s of them for evaluation); "
          f"{found[0][0]:.1f} s ({found[0][1]:.1f} s for evaluation) in a workspace where nothing was ever run")


if __name__ == "__main__":
    main()
