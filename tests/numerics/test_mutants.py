"""Every fault that is planted on purpose is seen by the tests of its module."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutants.py")
MUST_HAVE = {"text/mask.py", "training/batch.py", "algos/ppo.py", "algos/gae.py", "algos/kl.py", "algos/masked.py",
             "algos/cross_entropy.py", "algos/preference.py"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: mutants run in forked children")
def test_every_planted_fault_is_caught():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=1200)
    lines = done.stdout.strip().split("\n")
    assert done.returncode == 0, "\n".join(lines) + done.stderr[-2000:]
    counts = json.loads(lines[-2])
    assert counts["planted"] == counts["caught"] >= 20
    assert MUST_HAVE <= set(counts["files"])
    print(lines[-1])
