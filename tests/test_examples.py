"""The learn-from loops run on the model named `test`, say what they did, and stay short enough to be read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--model", "test", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_shorter_than_200_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("name", ["flat_sft.py", "flat_ppo.py"])
def test_the_learn_from_loops_use_no_trainer_of_ours(name):
    """They stand alone: only the data and the loading of a model come from the package."""
    ours = re.findall(r"^(?:from|import) (tutelage\S*)", (EXAMPLES / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert set(ours) <= {"tutelage.data", "tutelage.models.load"}


def test_flat_sft_lowers_the_held_out_loss_and_saves_a_plain_model(tmp_path):
    lines = run("flat_sft.py", "--steps", "4", "--rows", "2", "--learning-rate", "2e-3", "--out", str(tmp_path / "out"))
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines if "held-out loss" in line]
    assert len(losses) == 2 and losses[0] > 5.3 and losses[1] < losses[0] - 0.3  # ln 259 = 5.56 is guessing; 4 steps
    assert len([line for line in lines if re.match(r"step \d+/4: loss ", line)]) == 4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 259
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_flat_ppo_runs_and_its_policy_leaves_the_reference():
    lines = run("flat_ppo.py", "--steps", "2", "--prompts", "2", "--length", "6", "--learning-rate", "1e-3")
    kls = [float(re.search(r"KL (-?[\d.]+) nats", line)[1]) for line in lines if line.startswith("step ")]
    assert len(kls) == 2
    assert kls[0] == 0.0 and kls[1] != 0.0
