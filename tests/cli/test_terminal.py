"""What is shown, where there is a terminal and where there is none."""

import io
import json
import sys

import pytest
import yaml

from tutelage.terminal import PlainProgress, Terminal, compact_yaml, fail


def test_plain_progress_is_a_line_now_and_then_with_the_time_left():
    now, lines = [0.0], []
    progress = PlainProgress(lines.append, lambda: {"loss": 2.5, "step": 9}, every=10, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] = step * 1.0
        progress("train", step, 100)
    assert lines[0] == "training 11/100  11 %  1:29 left  loss 2.5"  # 10 steps in 10 s, 89 to go
    assert lines[-1] == "training 100/100  100 %  took 1:39  loss 2.5"
    assert len(lines) == 10


def test_what_an_earlier_process_did_does_not_count_as_speed():
    now, lines = [0.0], []
    progress = PlainProgress(lines.append, every=10, clock=lambda: now[0])
    progress("train", 90, 100)  # resumed
    now[0] = 10.0
    progress("train", 95, 100)
    assert lines == ["training 95/100  95 %  0:10 left"]


def test_two_jobs_are_told_apart():
    lines = []
    progress = PlainProgress(lines.append, clock=lambda: 0.0)
    progress("download", 5, 5)
    progress("train", 1, 1)
    assert lines == ["download 5/5  100 %  took 0:00", "training 1/1  100 %  took 0:00"]


def test_with_json_standard_output_holds_the_result_alone(capsys):
    terminal = Terminal(json_only=True)
    terminal.head("title")
    terminal.warn("careful")
    terminal.table(["a"], [["b"]])
    with terminal.progress() as progress:
        progress("train", 1, 1)
    terminal.result({"text": "中文", "n": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"text": "中文", "n": 1}
    assert "careful" in err and "training 1/1" in err


def test_without_json_the_result_is_not_printed(capsys):
    Terminal().result({"n": 1})
    assert capsys.readouterr().out == ""


def test_text_of_users_is_shown_as_it_is(capsys):
    Terminal().say("[red]not markup[/red] :smile: [link=x]")
    assert capsys.readouterr().out == "[red]not markup[/red] :smile: [link=x]\n"


def test_long_lines_are_not_folded_in_files(capsys):
    path = "runs/" + "x" * 300
    Terminal().say(f"Made {path}")
    assert capsys.readouterr().out == f"Made {path}\n"


def test_compact_yaml_reads_back():

    values = {
        "model": "hf:a/b",
        "labels": ["a: b", "null", "中"],
        "optim": {"lr": 1e-5, "betas": [0.9, 0.95]},
        "limit": None,
    }
    assert yaml.safe_load(compact_yaml(values)) == {
        **values,
        "optim": {"lr": pytest.approx(1e-5), "betas": [0.9, 0.95]},
    }


def test_live_progress_in_a_terminal(monkeypatch):
    class Tty(io.StringIO):
        def isatty(self):
            return True

    screen = Tty()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    assert terminal.live
    with terminal.progress(facts=lambda: {"loss": 1.25}) as progress:
        progress("train", 1, 2)
        progress("train", 2, 2)
    assert "training" in screen.getvalue() and "2/2" in screen.getvalue() and "loss 1.25" in screen.getvalue()


def test_fail_goes_to_standard_error(capsys):
    fail("odd")
    assert capsys.readouterr() == ("", "error: odd\n")
