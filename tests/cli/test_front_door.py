"""The front door: quick help, errors that teach, exit codes that scripts can trust."""

import errno
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
from calling import call

from tutelage import cli
from tutelage.core.errors import UserError

COMMANDS = (
    "plan",
    "score",
    "demo",
    "init",
    "data",
    "sft",
    "classify",
    "respond",
    "chat",
    "reward",
    "cost",
    "span-reward",
    "prefer",
    "rl",
    "check",
    "eval",
    "compare",
    "blend",
    "report",
    "runs",
    "web",
    "feedback",
)


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_help_takes_under_half_a_second():
    def seconds() -> float:  # of processor time: the machine may be busy with other things
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "tutelage", "--help"], capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and "the whole loop" in done.stdout
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"], ["data", "import", "--help"]])
def test_help_loads_neither_torch_nor_rich(words):
    done = python(
        f"import sys; from tutelage.cli import main; code = main({words!r}); "
        "print(code, [name for name in ('torch', 'transformers', 'rich', 'numpy', 'yaml') if name in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_looking_at_data_and_runs_loads_no_torch(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a b c", "output": "d"}\n')
    done = python(
        "import sys, os; os.chdir(sys.argv[1]) if len(sys.argv) > 1 else None\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "from tutelage.cli import main\n"
        "code = [main(words) for words in (['data', 'import', 'a.jsonl'], ['data', 'inspect', 'a'], ['runs'])]\n"
        "print(code, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[0, 0, 0] []", done.stdout + done.stderr


def test_importing_the_package_loads_no_torch():
    assert (
        python(
            "import sys, tutelage; dir(tutelage); tutelage.import_data; print('torch' in sys.modules)"
        ).stdout.strip()
        == "False"
    )


def test_every_command_is_listed_and_helps():
    listed = call("--help").out
    for name in COMMANDS:
        assert f"\n  {name} " in listed
        done = call(name, "--help")
        assert done.code == 0 and f"usage: tutelage {name}" in done.out
    assert set(COMMANDS) == {name.split()[0] for name in cli.MODULES}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "data"])
def test_every_command_takes_json(name):
    words = ["feedback", "verify"] if name == "feedback" else [name]
    assert "--json" in call(*words, "--help").out


def test_no_command_shows_the_help():
    done = call()
    assert done.code == 0 and "tutelage COMMAND --help says more" in done.out


@pytest.mark.parametrize(
    "words, hint",
    [
        (["stf"], 'unknown command "stf"; did you mean "sft"?'),
        (["data", "imprt", "x"], 'unknown data command "imprt"; did you mean "import"?'),
        (["sft", "--dryrun"], 'do not know what to do with "--dryrun"; did you mean "--dry-run"?'),
        (["compare", "a"], "the following arguments are required: B, --judge"),
        (["respond", "--n", "many"], "do not know what to do with"),
        (["demo", "--lang", "fr"], "invalid choice: 'fr'"),
    ],
)
def test_mistyped_words_are_told_apart(words, hint):
    done = call(*words)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("error: ") and hint in done.err


def test_words_may_stand_behind_options():
    args = cli.parse(["sft", "first.yaml", "--run", "x", "optim.clip=2", "--dry-run", "seed=3"])
    assert args.words == ["first.yaml", "optim.clip=2", "seed=3"] and args.run == "x" and args.dry_run
    assert cli.parse(["eval", "a", "--limit", "3", "b"]).models == ["a", "b"]


def stand_in(monkeypatch, run):
    """Let `tutelage runs` do something else."""
    before = cli.import_module
    monkeypatch.setattr(
        cli,
        "import_module",
        lambda name: SimpleNamespace(run=run) if name == "tutelage.commands.runs" else before(name),
    )


def raising(error, resume=""):
    def run(args, terminal):
        terminal.resume = resume
        raise error

    return run


def test_user_errors_exit_with_2_and_no_traceback(monkeypatch):
    stand_in(monkeypatch, raising(UserError("the file is odd; mend it")))
    assert call("runs") == (2, "", "error: the file is odd; mend it\n")


def test_with_json_an_error_is_json_too(monkeypatch):
    stand_in(monkeypatch, raising(UserError("odd")))
    done = call("runs", "--json")
    assert done.code == 2 and done.json == {"error": "odd"}


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(monkeypatch):
    stand_in(
        monkeypatch,
        raising(KeyboardInterrupt("stopped after step 3; checkpoint written"), "tutelage sft --run x --resume"),
    )
    done = call("runs")
    assert done.code == 130
    assert done.err.strip() == "stopped after step 3; checkpoint written; go on with: tutelage sft --run x --resume"


def test_a_full_disk_is_no_traceback(monkeypatch):
    stand_in(
        monkeypatch,
        raising(
            OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl"), "tutelage sft --run x --resume"
        ),
    )
    done = call("runs")
    assert done.code == 2
    assert (
        "No space left on device (runs/x/metrics.jsonl)" in done.err
        and "go on with: tutelage sft --run x --resume" in done.err
    )


def test_our_own_faults_are_not_hidden(monkeypatch):
    stand_in(monkeypatch, raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        call("runs")


def test_out_of_memory_says_what_to_lower(monkeypatch):
    stand_in(monkeypatch, raising(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried 2 GiB")))
    done = call("runs")
    assert done.code == 2 and "loop.token_budget" in done.err
