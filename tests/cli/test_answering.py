"""respond, chat, eval, compare, report and runs, with models that were trained for two steps."""

import io
import json
import shutil
import sys

import pytest
from calling import call

from tutelage.commands.chat import Streaming
from tutelage.commands.engines import open_engine, read_answers
from tutelage.commands.respond import prompt_from_text
from tutelage.core.words import Response, Sampling
from tutelage.evals.saved import load_input, save_input
from tutelage.store.runs import Run

SHORT = ["--max-tokens", "4", "--device", "cpu"]


def test_respond_writes_every_answer_with_its_prompt(trained, tmp_path):
    out = tmp_path / "answers.jsonl"
    done = call(
        "respond",
        "sft-0001",
        "--data",
        "chat",
        "-n",
        "2",
        "--temperature",
        "1",
        "--limit",
        "3",
        "--out",
        out,
        *SHORT,
        "--workspace",
        trained,
        "--json",
    )
    assert done.json == {"model": "sft-0001", "prompts": 3, "responses": 6, "path": str(out)}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.get("index", 0) for row in rows] == [0, 1] * 3
    for row in rows:
        prompt = row.pop("prompt")
        response = Response.from_dict(row)
        assert response.prompt_id == prompt["id"] and response.policy == "sft-0001"
        assert len(response.token_ids) == len(response.logps) <= 4
    assert len(read_answers(out)[0]) == 3


def test_respond_shows_answers_to_prompts_and_repeats_itself(trained):
    words = (
        "respond",
        "sft-0001",
        "--prompt",
        "Hello",
        "--prompt",
        "Bye",
        "--temperature",
        "1",
        *SHORT,
        "--workspace",
        trained,
    )
    one, two = call(*words), call(*words)
    assert one.code == 0 and "> Hello" in one.out and one.out == two.out
    assert len(call(*words, "--json").json["rows"]) == 2


def test_respond_wants_to_know_what_to_answer(trained):
    assert "--data NAME or FILE, or --prompt TEXT" in call("respond", "test").err
    assert "temperature must be >= 0" in call("respond", "test", "--prompt", "x", "--temperature", "-1").err
    assert 'did you mean "test"?' in call("respond", "tset", "--prompt", "x").err


def test_chat_reads_lines_and_remembers(trained, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\n/reset\nAgain\n/help\n/quit\nnever asked\n"))
    done = call("chat", "sft-0001", *SHORT, "--workspace", trained, "--json")
    assert [turn["user"] for turn in done.json["turns"]] == ["Hello", "Again"]


def test_chat_without_json_prints_the_answers(trained, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    done = call("chat", "sft-0001", *SHORT, "--workspace", trained)
    assert done.code == 0 and done.out.strip()


def test_what_is_streamed_is_the_answer(trained):
    engine = open_engine("sft-0001", trained, device="cpu", kind=Streaming)
    for seed in range(3):
        pieces = []
        response = engine.stream(
            prompt_from_text("Hello"), Sampling(max_tokens=24, temperature=1.0, seed=seed), pieces.append
        )
        plain = next(
            iter(engine.respond([(prompt_from_text("Hello"), Sampling(max_tokens=24, temperature=1.0, seed=seed))]))
        )
        assert response.token_ids == plain.token_ids  # listening changes nothing
        assert "".join(pieces).endswith(response.text.lstrip())  # all of it was shown
        assert len(pieces) > 1


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    done = call(
        "eval",
        "test",
        "sft-0001",
        "--judge",
        "reward-0001",
        "--limit",
        "14",
        "--out",
        folder,
        *SHORT,
        "--workspace",
        trained,
        "--json",
    )
    assert done.code == 0, done.err
    return folder, done


def test_eval_gives_figures_with_intervals_and_a_report(evaluated):
    folder, done = evaluated
    facts = done.json
    assert list(facts["models"]) == ["test", "sft-0001"] and facts["prompts"] == 14
    for figures in facts["models"].values():
        assert {score["metric"] for score in figures["tasks"]} >= {"length", "truncated"}
        rate = figures["safety"]["harmful_answered"]
        assert rate["low"] <= rate["estimate"] <= rate["high"]
    (win,) = facts["win_rates"]
    assert (win["a"], win["b"]) == ("sft-0001", "test") and win["wins"] + win["ties"] + win["losses"] == 14
    assert "<html" in (folder / "report.html").read_text() and (folder / "answers-test.jsonl").exists()


def test_report_is_written_again_in_another_language_from_what_was_saved(evaluated, tmp_path):
    folder, _ = evaluated
    assert call("report", folder, "--lang", "zh").code == 0
    assert 'lang="zh' in (folder / "report.zh.html").read_text()
    assert call("report", folder, "--out", tmp_path / "again.html").code == 0
    assert (tmp_path / "again.html").read_text() == (folder / "report.html").read_text()


def test_saved_input_comes_back_as_it_was(evaluated, tmp_path):
    report = load_input(evaluated[0] / "report.json")
    save_input(report, tmp_path / "again.json")
    assert load_input(tmp_path / "again.json") == report
    assert (tmp_path / "again.json").read_bytes() == (evaluated[0] / "report.json").read_bytes()
    assert report.win_rates[0].per_prompt and report.safety["test"].judge


def test_a_damaged_input_is_named(tmp_path):
    (tmp_path / "report.json").write_text('{"type": "Interval", "estimate": 1}')
    assert "is not the input of a report" in call("report", tmp_path).err
    assert "holds no demo, no evaluation and no run" in call("report", tmp_path.parent).err


def test_report_of_a_run_shows_its_curves(trained, tmp_path):
    done = call("report", "sft-0001", "--workspace", trained, "--out", tmp_path / "run.html")
    assert done.code == 0, done.err
    assert "sft-0001" in (tmp_path / "run.html").read_text()


def test_compare_two_models_and_two_files_of_answers(trained, tmp_path):
    here = ["--workspace", trained, "--judge", "reward-0001"]
    models = call("compare", "sft-0001", "test", "--data", "chat", "--limit", "3", *SHORT, *here, "--json").json
    assert (models["a"], models["b"]) == ("sft-0001", "test") and models["wins"] + models["ties"] + models[
        "losses"
    ] == models["prompts"]
    for name in ("sft-0001", "test"):
        call("respond", name, "--data", "chat", "--out", tmp_path / f"{name}.jsonl", *SHORT, "--workspace", trained)
    done = call("compare", tmp_path / "sft-0001.jsonl", tmp_path / "test.jsonl", *here)
    assert done.code == 0 and "wins" in done.out, done.err
    alone = call("compare", tmp_path / "test.jsonl", tmp_path / "test.jsonl", *here, "--json").json
    assert alone["ties"] == alone["prompts"] == 40 and alone["rate"]["estimate"] == 0.5  # a model against itself


def test_compare_names_an_unknown_judge(trained):
    done = call("compare", "test", "sft-0001", "--judge", "rule:lenght", "--workspace", trained)
    assert done.code == 2 and 'did you mean "length"?' in done.err


def test_runs_lists_and_shows(trained):
    rows = call("runs", "--workspace", trained, "--json").json["runs"]
    # those begun within one second have no order
    assert {row["run"]: row["status"] for row in rows} == dict.fromkeys(
        ("sft-0001", "reward-0001", "rl-0001"), "finished"
    )
    shown = call("runs", "sft-0001", "--workspace", trained).out
    assert "sft, finished" in shown and "eval_loss" in shown and "data: chat" in shown
    assert 'did you mean "sft-0001"' in call("runs", "sft-001", "--workspace", trained).err


def test_runs_of_an_empty_workspace_says_what_to_do(workspace):
    assert "tutelage sft tiny_sft" in call("runs").out


def test_verify_finds_a_changed_byte(trained, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(trained, place)
    assert call("runs", "verify", "--workspace", place).code == 0
    weights = Run(place / "runs" / "sft-0001").final / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = call("runs", "verify", "--workspace", place, "--json")
    assert done.code == 1 and done.json["damaged"] == 1
    assert "model.safetensors does not match its SHA-256" in done.err
