"""Fixtures for all tests."""

import os
from pathlib import Path

# Tests start other processes, and threads that spin for one another slow torch down many times: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public records: TUTELAGE_SHARED, or `shared/data` beside the repository.  Skips where there is none."""
    folder = Path(os.environ.get("TUTELAGE_SHARED", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "sft").is_dir():
        pytest.skip(f"the shared public records are not at {folder}; set TUTELAGE_SHARED to their folder to run this test")
    return folder


@pytest.fixture
def seed() -> int:
    """One seed for tests that only need some seed."""
    return 20260117
