"""A small storm: 500 judgements, duplicates, killed workers, expired leases.  The large one: make test-people."""

import subprocess
import sys
from pathlib import Path

import pytest
from people.cluster import Missing, other_user, programs

STORM = Path(__file__).with_name("storm.py")


def run(*more: str) -> str:
    done = subprocess.run([sys.executable, str(STORM), "--annotators", "24", "--workers", "2", "--lease-seconds", "1.5",
                           "--kill-share", "0.004", *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.startswith("storm passed") and done.stdout.count("\n") == 1, done.stdout
    return done.stdout


def test_a_storm_of_500_judgements_loses_none_and_doubles_none():
    assert "on sqlite" in run("--judgements", "500")


@pytest.mark.slow
def test_the_same_on_postgresql():
    try:
        programs(), other_user()
    except Missing as missing:
        pytest.skip(str(missing))
    assert "on postgresql" in run("--judgements", "500", "--database", "postgresql")
