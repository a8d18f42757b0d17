"""Checkpoints: bitwise there and back, damaged ones refused, Ctrl-C between two steps."""

import os
import random
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.core.errors import DamagedError, UserError
from tutelage.store.runs import begin
from tutelage.training import state
from tutelage.training.state import SaveConfig, Saver, Stopped, read_state, write_state

TENSORS = {
    "float32": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "bfloat16": torch.randn(5, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "int64": torch.tensor([2**62, -1]),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    "turned": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
    "needs grad": torch.ones(2, requires_grad=True),
}
FACTS = {"step": 7, "beta": 0.1 + 0.2, "cursor": {"epoch": 1, "at": 3}, "text": "写", "none": None, "small": 5e-324}


@pytest.fixture
def run(tmp_path):
    return begin(tmp_path / "r", kind="sft", config={}, seed=0)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


def writer(value: float):
    return lambda folder: write_state(folder, tensors={"x": torch.full((3,), value)}, facts={"value": value})


def test_state_comes_back_bit_for_bit(tmp_path):
    write_state(tmp_path, tensors=TENSORS, facts=FACTS)
    tensors, facts = read_state(tmp_path)
    assert facts == FACTS and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
        assert bits(tensors[name]) == bits(tensor), name


def test_the_generators_of_python_and_numpy_come_back(tmp_path):
    """A reward of the user's own may draw from them."""
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second normal number for later
    write_state(tmp_path, tensors={}, facts={})
    draw = lambda: (random.gauss(0, 1), random.random(), *np.random.standard_normal(3))
    wanted = draw()
    assert draw() != wanted
    read_state(tmp_path)
    assert draw() == wanted


def test_torchs_generator_comes_back(tmp_path):
    with torch.random.fork_rng(devices=[]):
        write_state(tmp_path, tensors={}, facts={})
        wanted = torch.rand(5)
        torch.rand(100)
        tensors, _ = read_state(tmp_path)
        assert torch.equal(torch.rand(5), wanted) and tensors == {}


def test_nothing_is_pickled(tmp_path):
    write_state(tmp_path, tensors=TENSORS, facts=FACTS)
    assert names(tmp_path) == ["state.json", "state.safetensors"]
    assert int.from_bytes((tmp_path / "state.safetensors").read_bytes()[:8], "little") < 10_000  # a length, then JSON
    assert (tmp_path / "state.safetensors").read_bytes()[8:9] == b"{"


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["missing", "cut", "garbage"])
def test_a_file_that_cannot_be_read_is_damaged_and_named(tmp_path, name, fault):
    write_state(tmp_path, tensors=TENSORS, facts=FACTS)
    file = tmp_path / name
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:30] if fault == "cut" else b"\xff" * 100)
    with pytest.raises(DamagedError, match=f"checkpoint .*{tmp_path.name} cannot be read"):
        read_state(tmp_path)


def test_one_changed_bit_is_found_and_the_checkpoint_before_is_used(run):
    run.save("000001", writer(1.0))
    run.save("000002", writer(2.0))
    file = run.checkpoints / "000002" / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # safetensors itself would read it without a word
    file.write_bytes(bytes(data))
    read_state(file.parent)
    said: list[str] = []
    newest = run.newest(warn=said.append)
    assert newest == run.checkpoints / "000001" and "state.safetensors" in said[0]
    assert read_state(newest)[1] == {"value": 1.0}


@pytest.mark.skipif(os.name == "nt", reason="needs a file size limit")
def test_a_disk_that_takes_no_more_is_a_clear_error_and_the_checkpoint_before_stays(run):
    """A real refusal by the system, in the middle of the tensors: files may not grow over 20 kB."""
    resource = pytest.importorskip("resource")
    run.save("000001", writer(1.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*000002: .*earlier checkpoints are intact"):
            run.save("000002", lambda folder: write_state(folder, tensors={"x": torch.zeros(10_000)}, facts={}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(run.checkpoints) == ["000001"]
    assert read_state(run.newest())[1] == {"value": 1.0}


# -- when checkpoints are written ----------------------------------------------------------------------------------


def saved(run, config: SaveConfig, steps: int = 7) -> list[str]:
    with Saver(run, config, writer(0.0)) as saver:
        for step in range(1, steps + 1):
            saver.after_step(step)
    return names(run.checkpoints)


def test_every_so_many_steps(run):
    assert saved(run, SaveConfig(every_steps=3, every_seconds=0, keep=9)) == ["000003", "000006"]


def test_never_when_both_are_off(run):
    assert saved(run, SaveConfig(every_seconds=0)) == []


def test_keep(run):
    assert saved(run, SaveConfig(every_steps=1, every_seconds=0, keep=2)) == ["000006", "000007"]


def test_every_so_many_seconds(run, monkeypatch):
    clock = iter(range(0, 1000, 4))  # each look at the clock is 4 seconds later
    monkeypatch.setattr(state.time, "monotonic", lambda: next(clock))
    # began at 0; looks after steps 1, 2, 3 at 4, 8, 12 > 10: saved, clock at 16; then 20, 24, 28 > 26: saved after step 6
    assert saved(run, SaveConfig(every_seconds=10, keep=9)) == ["000003", "000006"]


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(run):
    before = signal.getsignal(signal.SIGINT)
    done = []
    with pytest.raises(Stopped, match="stopped after step 2; checkpoint written"):
        with Saver(run, SaveConfig(every_seconds=0), writer(5.0)) as saver:
            for step in (1, 2, 3):
                done.append(step)
                if step == 2:
                    os.kill(os.getpid(), signal.SIGINT)  # in the middle of the step: it is finished first
                    done.append("finished")
                saver.after_step(step)
    assert done == [1, 2, "finished"] and names(run.checkpoints) == ["000002"]
    assert read_state(run.newest())[1] == {"value": 5.0}
    assert signal.getsignal(signal.SIGINT) is before
    assert issubclass(Stopped, KeyboardInterrupt)  # no `except Exception` on the way swallows it


def test_a_second_ctrl_c_does_not_wait(run):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        with Saver(run, SaveConfig(every_seconds=0), writer(5.0)):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second one did not interrupt")
    assert not isinstance(caught.value, Stopped) and names(run.checkpoints) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_loop_gives_ctrl_c_back_and_closes_the_metrics(run):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        with Saver(run, SaveConfig(), writer(0.0)):
            run.log({"step": 1})
            raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before and run._metrics is None


def test_keeping_none_is_refused():
    with pytest.raises(ValueError, match="keep must be >= 1; got 0"):
        SaveConfig(keep=0)


# -- the promise of it all -----------------------------------------------------------------------------------------


def train(run, *, until: int) -> torch.Tensor:
    """A toy loop that draws from torch's generator and resumes from what it finds."""
    w, start = torch.zeros(4), 0
    found = run.newest()
    if found is not None:
        tensors, facts = read_state(found)
        w, start = tensors["w"], facts["step"]
        run.cut_metrics(facts["metrics"])
    for step in range(start, until):
        w = w + torch.randn(4) / (step + 1)
        run.log({"step": step + 1, "w": w.tolist()})
        length = run.metrics_bytes()
        if (step + 1) % 3 == 0:
            facts = {"step": step + 1, "metrics": length}
            run.save(f"{step + 1:06d}", partial(write_state, tensors={"w": w}, facts=facts))
    run.close()
    return w


def test_a_loop_stopped_anywhere_ends_with_the_same_bits_and_metrics(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = begin(tmp_path / "whole", kind="toy", config={}, seed=0)
        wanted = train(whole, until=12)
        stops = sorted(random.Random(0).sample(range(1, 12), 4))
        torch.manual_seed(0)
        broken = begin(tmp_path / "broken", kind="toy", config={}, seed=0)
        for stop in [*stops, 12]:
            if broken.newest() is None:  # before the first checkpoint a run begins anew
                torch.manual_seed(0)
                broken.cut_metrics(0)
            got = train(broken, until=stop)
            torch.manual_seed(999)  # a new process knows nothing of the old generator
    assert torch.equal(got, wanted)
    assert [{**row, "time": 0} for row in broken.metrics()] == [{**row, "time": 0} for row in whole.metrics()]
