"""What glibc is told about free pages."""

import ctypes
import subprocess
import sys

import pytest

from tutelage.training import memory

ASKED = """
import resource, sys
import torch
from tutelage.training.memory import keep_pages, trim
if sys.argv[1] == "keep":
    keep_pages()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def one():
    tensors = [torch.ones(2**20) for _ in range(50)]  # 200 MB, 51,200 pages
    del tensors
one()
before = faults()
one()
again = faults() - before
trim()
before = faults()
one()
print(again, faults() - before)
"""


@pytest.mark.skipif(memory._glibc("mallopt") is None, reason="not glibc")
def test_pages_are_kept_until_they_are_handed_back():
    def asked(how):
        out = subprocess.run([sys.executable, "-c", ASKED, how], capture_output=True, text=True, check=True).stdout
        return tuple(map(int, out.split()))

    kept, after_trim = asked("keep")
    given_back, _ = asked("plain")
    assert kept < 15_000 < 30_000 < after_trim and given_back > 30_000


def test_another_allocator_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError(name)

    memory._glibc.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory.keep_pages()
    memory.trim()
    memory._glibc.cache_clear()
