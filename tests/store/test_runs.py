"""A run's folder survives kills, damage and full disks."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tutelage.core.errors import DamagedError, UserError
from tutelage.store import runs
from tutelage.store.runs import DIGESTS, Run, begin, begin_or_reopen, commit_folder, list_runs, reopen, verify_folder

CONFIG = {"model": "test", "ppo": {"clip": 0.2, "steps": 10}, "rate": 1e-5, "tags": ["a", "写"], "none": None}


@pytest.fixture
def run(tmp_path) -> Run:
    return begin(tmp_path / "runs" / "sft-1", kind="sft", config=CONFIG, seed=3, parents=("base",), note="hello")


def files(**contents: str):
    """A writer of a checkpoint with these files."""

    def write(folder: Path) -> None:
        for name, text in contents.items():
            (folder / f"{name}.txt").write_text(text)

    return write


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


# -- beginning and resuming ----------------------------------------------------------------------------------------


def test_begin_writes_config_and_manifest(run):
    assert yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8")) == CONFIG
    manifest = run.manifest
    assert (manifest["id"], manifest["kind"], manifest["status"], manifest["seed"]) == ("sft-1", "sft", "running", 3)
    assert manifest["parents"] == ["base"] and manifest["note"] == "hello" and "torch" in manifest["versions"]
    assert not run.finished()


def test_begin_twice_is_refused(run):
    with pytest.raises(UserError, match=r"a run already stands in .*sft-1; resume it with --resume, or choose another name"):
        begin(run.folder, kind="sft", config=CONFIG, seed=3)
    assert run.manifest["note"] == "hello"


def test_reopen_with_the_same_configuration(run):
    assert reopen(run.folder, kind="sft", config=CONFIG).manifest == run.manifest


@pytest.mark.parametrize("changed, said", [
    ({**CONFIG, "ppo": {"clip": 0.1, "steps": 10}}, r"ppo\.clip: 0\.2 then, 0\.1 now"),
    ({**CONFIG, "model": "other"}, "model: 'test' then, 'other' now"),
    ({**CONFIG, "new": 1}, "new: None then, 1 now"),
    ({key: value for key, value in CONFIG.items() if key != "rate"}, "rate: 1e-05 then, None now"),
    ({**CONFIG, "tags": ["a"]}, "tags: "),
])
def test_reopen_with_another_configuration_names_the_key(run, changed, said):
    with pytest.raises(UserError, match=said):
        reopen(run.folder, kind="sft", config=changed)


def test_reopen_names_every_changed_key(run):
    with pytest.raises(UserError, match=r"model: .*; ppo\.clip: .*; ppo\.steps: "):
        reopen(run.folder, kind="sft", config={**CONFIG, "model": "x", "ppo": {"clip": 1, "steps": 2}})


def test_reopen_refuses_another_kind_and_an_empty_place(run, tmp_path):
    with pytest.raises(UserError, match="is of kind sft, not ppo"):
        reopen(run.folder, kind="ppo", config=CONFIG)
    with pytest.raises(UserError, match="no run to resume"):
        reopen(tmp_path / "nowhere", kind="sft", config=CONFIG)


def test_begin_or_reopen(tmp_path):
    folder = tmp_path / "r"
    first = begin_or_reopen(folder, kind="sft", config=CONFIG, seed=0, resume=True)  # nothing there yet: begun
    assert begin_or_reopen(folder, kind="sft", config=CONFIG, seed=0, resume=True).manifest == first.manifest
    with pytest.raises(UserError, match="already stands"):
        begin_or_reopen(folder, kind="sft", config=CONFIG, seed=0, resume=False)


def test_a_kill_before_the_manifest_leaves_a_place_to_begin(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("{}")
    assert begin(tmp_path / "r", kind="sft", config=CONFIG, seed=0).manifest["status"] == "running"


def test_mark_and_finish(run):
    run.save("000001", files(a="1"))
    run.mark("running", best=0.5)
    run.finish(files(w="weights"), steps=7)
    assert run.finished() and run.manifest["best"] == 0.5 and run.manifest["steps"] == 7
    assert names(run.final) == [DIGESTS, "w.txt"] and not run.checkpoints.exists()
    verify_folder(run.final)
    run.finish(files(w="again"))  # killed between the rename and the mark: done once more
    assert (run.final / "w.txt").read_text() == "again"


def test_list_runs_oldest_first(tmp_path):
    assert list_runs(tmp_path) == []
    for name, at in (("b", "2026-01-02"), ("a", "2026-01-03"), ("c", "2026-01-01")):
        begin(tmp_path / "runs" / name, kind="sft", config={}, seed=0).mark("running", started=at)
    assert [each.id for each in list_runs(tmp_path)] == ["c", "b", "a"]


# -- metrics -------------------------------------------------------------------------------------------------------


def test_metrics_are_appended_with_a_clock(run):
    assert run.metrics() == [] and run.metrics_bytes() == 0
    run.log({"step": 1, "loss": 0.5})
    run.log({"step": 2, "text": "写"})
    rows = run.metrics()
    assert [row["step"] for row in rows] == [1, 2] and rows[1]["text"] == "写" and all("time" in row for row in rows)


def test_metrics_are_cut_back_to_the_checkpoint(run):
    run.log({"step": 1})
    length = run.metrics_bytes()
    run.log({"step": 2})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 3, "lo')  # a kill in the middle of a line
    again = reopen(run.folder, kind="sft", config=CONFIG)
    again.cut_metrics(length)
    assert again.metrics_bytes() == length
    again.log({"step": 2})
    assert [row["step"] for row in again.metrics()] == [1, 2]
    again.cut_metrics(0)
    assert again.metrics() == []


def test_cutting_metrics_that_never_were_is_nothing(run):
    run.cut_metrics(0)
    assert run.metrics() == []


# -- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_its_files_and_their_digests(run):
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "w.bin").write_bytes(b"\x00" * 10)
        (folder / "state.json").write_text("{}")

    path = run.save("000010", write)
    assert path == run.checkpoints / "000010" and names(run.checkpoints) == ["000010"]
    assert set(verify_folder(path)) == {"state.json", os.path.join("model", "w.bin")}


@pytest.mark.parametrize("keep, left", [(1, ["000003"]), (2, ["000002", "000003"]), (5, ["000001", "000002", "000003"])])
def test_all_but_the_newest_are_pruned(run, keep, left):
    for step in (1, 2, 3):
        run.save(f"{step:06d}", files(a=str(step)), keep=keep)
    assert names(run.checkpoints) == left
    assert run.newest() == run.checkpoints / "000003"


def damage_changed(folder: Path) -> None:
    (folder / "b.txt").write_text("2 ")  # one character more


def damage_missing(folder: Path) -> None:
    (folder / "b.txt").unlink()


def damage_cut(folder: Path) -> None:
    (folder / "b.txt").write_bytes(b"")


def damage_no_digests(folder: Path) -> None:
    (folder / DIGESTS).unlink()


def damage_bad_digests(folder: Path) -> None:
    (folder / DIGESTS).write_text('{"b.txt": ')


@pytest.mark.parametrize("damage, named", [
    (damage_changed, "b.txt does not match its SHA-256"), (damage_missing, "b.txt is missing"),
    (damage_cut, "b.txt does not match its SHA-256"), (damage_no_digests, f"{DIGESTS} is missing"),
    (damage_bad_digests, f"{DIGESTS} cannot be read"),
])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run, damage, named):
    run.save("000001", files(a="1", b="1"))
    run.save("000002", files(a="2", b="2"))
    damage(run.checkpoints / "000002")
    with pytest.raises(DamagedError, match=named):
        verify_folder(run.checkpoints / "000002")
    said: list[str] = []
    assert run.newest(warn=said.append) == run.checkpoints / "000001"
    [line] = said
    assert "000002" in line and named in line and line.endswith("the checkpoint before it is used")


def test_nothing_whole_is_nothing(run):
    assert run.newest() is None
    run.save("000001", files(b="1"))
    damage_changed(run.checkpoints / "000001")
    assert run.newest() is None


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_does_not_crowd_out_whole_ones(run, keep):
    """The run went back to 1 because 9 is damaged; what it writes next must not be pruned in favour of 9."""
    run.save("000001", files(b="1"), keep=2)
    run.save("000009", files(b="9"), keep=2)
    damage_changed(run.checkpoints / "000009")
    for step in (2, 3):
        run.save(f"{step:06d}", files(b=str(step)), keep=keep)
        assert run.newest() == run.checkpoints / f"{step:06d}"
    assert names(run.checkpoints) == ["000002", "000003"][-keep:]


def test_the_same_name_is_written_anew(run):
    run.save("000001", files(a="1", b="1"))
    run.save("000001", files(a="2"))
    assert names(run.checkpoints / "000001") == [DIGESTS, "a.txt"]
    verify_folder(run.checkpoints / "000001")


# -- what can go wrong while writing -------------------------------------------------------------------------------


def full_while_writing(folder: Path) -> None:
    (folder / "a.txt").write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refused_while_writing(folder: Path) -> None:
    (folder / "a.txt").write_text("half")
    raise UserError("cannot write state.json: No space left on device")


def broken_while_writing(folder: Path) -> None:
    (folder / "a.txt").write_text("half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("write, error, said", [
    (full_while_writing, UserError,
     r"cannot write .*000002: No space left on device; earlier checkpoints are intact\. Free some space"),
    (refused_while_writing, UserError, "No space left on device"),
    (broken_while_writing, KeyboardInterrupt, "^$"),
])
def test_a_write_that_fails_leaves_the_checkpoint_before_it_and_nothing_else(run, write, error, said):
    run.save("000001", files(a="1"), keep=1)
    with pytest.raises(error, match=said):
        run.save("000002", write, keep=1)
    assert names(run.checkpoints) == ["000001"] and run.newest() == run.checkpoints / "000001"
    run.save("000002", files(a="2"), keep=1)  # space was made
    assert run.newest() == run.checkpoints / "000002"


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_disk_that_is_full_at_any_flush_leaves_the_checkpoint_before_it(run, monkeypatch, nth):
    """Flushes of a save, in order: its file, its digests, ... ; whichever fails, the one before stays whole."""
    run.save("000001", files(a="1"))
    count = 0
    flush = os.fsync

    def fail(handle: int) -> None:
        nonlocal count
        count += 1
        if count == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(runs.os, "fsync", fail)
    with pytest.raises(UserError, match="No space left on device"):
        run.save("000002", files(a="2"))
    monkeypatch.undo()
    assert names(run.checkpoints) == ["000001"] and run.newest() == run.checkpoints / "000001"


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        commit_folder(tmp_path / "file" / "x", files(a="1"))


KILLED = """
import os, signal, sys
from pathlib import Path
from tutelage.store.runs import Run
run = Run(Path(sys.argv[1]))
def write(folder):
    (folder / "a.txt").write_text("half")
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "renaming":
    os.rename = lambda a, b: os.kill(os.getpid(), signal.SIGKILL)
run.save("000002", write)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_sigkill_in_the_middle_leaves_the_checkpoint_before_it(run, moment):
    run.save("000001", files(a="1"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(run.folder), moment], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(names(run.checkpoints)) == 2  # what was being written is still there, hidden
    assert run.newest() == run.checkpoints / "000001"
    run.save("000003", files(a="3"))
    assert names(run.checkpoints) == ["000001", "000003"]  # and goes with the next save
