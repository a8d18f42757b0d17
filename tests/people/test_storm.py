"""Small storms: duplicates, killed workers, expired leases, through the web app and against the store.  Large: make test-people."""

import subprocess
import sys
from pathlib import Path

import pytest
from people.cluster import Missing, other_user, programs

STORM = Path(__file__).with_name("storm.py")


def run(*more: str) -> str:
    done = subprocess.run([sys.executable, str(STORM), "--annotators", "24", "--workers", "2", "--lease-seconds", "1.5", *more],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.startswith("storm passed") and done.stdout.count("\n") == 1, done.stdout
    return done.stdout


def needs_postgresql() -> None:
    try:
        programs(), other_user()
    except Missing as missing:
        pytest.skip(str(missing))


def test_the_web_app_in_a_storm_of_150_judgements_loses_none_and_doubles_none():
    assert "on sqlite through http" in run("--judgements", "150", "--kill-share", "0.01")


def test_the_web_app_in_the_same_storm_on_postgresql():
    needs_postgresql()
    assert "on postgresql through http" in run("--judgements", "150", "--kill-share", "0.01", "--database", "postgresql")


@pytest.mark.slow
def test_the_store_in_a_storm_of_500_judgements_loses_none_and_doubles_none():
    assert "on sqlite through store" in run("--through", "store", "--judgements", "500", "--kill-share", "0.004")


@pytest.mark.slow
def test_the_store_in_the_same_storm_on_postgresql():
    needs_postgresql()
    assert "on postgresql through store" in run("--through", "store", "--judgements", "500", "--kill-share", "0.004",
                                                "--database", "postgresql")
