"""The product in one story: the whole loop with the model named `test`, stopped twice on the way, and what it leaves."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tutelage.core.files import read_json, read_jsonl
from tutelage.core.words import Judgement, Prompt, Response
from tutelage.evals.words import words
from tutelage.pipeline.demo import DemoConfig, DemoResult, clean_and_split, demo, tiny
from tutelage.store.runs import Run, verify_folder

RUNS = ("sft", "reward", "judge", "ppo")


class PowerCut(Exception):
    """Somebody pulled the plug."""


def cut_at(stage: str, done: int):
    def progress(what: str, at: int, total: int) -> None:
        if (what, at) == (stage, done):
            raise PowerCut(stage)

    return progress


def files(folder: Path) -> dict[str, int]:
    """Modification time of everything that takes work to make."""
    made = [
        *folder.glob("runs/*/final/*"),
        *folder.glob("runs/*/metrics.jsonl"),
        *folder.glob("answers/*"),
        folder / "to_judge.jsonl",
    ]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in made}


class Story:
    folder: Path
    config: DemoConfig
    result: DemoResult
    said: list[str]
    before_the_last: dict[str, int]
    cpu_seconds: float


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    """A demo that is interrupted in the middle of SFT and of PPO and then runs to its end; under 60 s on a quiet core."""
    told = Story()
    told.folder, told.config, told.said = tmp_path_factory.mktemp("demo"), tiny(), []
    begun = time.process_time()
    for stage, done in (("SFT", 2), ("PPO", 1)):
        with pytest.raises(PowerCut):
            demo(told.folder, config=told.config, progress=cut_at(stage, done))
    told.before_the_last = files(told.folder)
    told.result = demo(told.folder, config=told.config, say=told.said.append)
    told.cpu_seconds = time.process_time() - begun
    return told


def test_an_interrupted_demo_goes_on_and_repeats_no_finished_stage(story):
    """Stopped in PPO: SFT, answers to judge and both reward models were done and are the very same files."""
    done = {path for path in story.before_the_last if not path.startswith("runs/ppo/")}
    assert {f"runs/{run}/final/model.safetensors" for run in RUNS[:3]} | {"to_judge.jsonl"} <= done
    assert "runs/ppo/final/model.safetensors" not in story.before_the_last
    now = files(story.folder)
    assert all(now[path] == story.before_the_last[path] for path in done)


def test_every_stage_left_what_it_promises(story):
    here = story.folder
    assert story.result.report == here / "report.html"
    for run in RUNS:
        assert Run(here / "runs" / run).finished()
        verify_folder(here / "runs" / run / "final")
        assert Run(here / "runs" / run).metrics()
    for model in ("base", "sft", "ppo"):
        found = [Response.from_dict(row) for row in read_jsonl(here / "answers" / f"{model}.jsonl")]
        assert {r.policy for r in found} == {model} and len(found) == len(story.result.input.prompts) == 40
    asked = list(read_jsonl(here / "to_judge.jsonl"))
    assert len(asked) == 4 and all(len(row["responses"]) == 2 and Prompt.from_dict(row["prompt"]) for row in asked)
    rows = Run(here / "runs" / "ppo").metrics()
    assert {row["step"] for row in rows} == {1, 2} and all(row["ptx_loss"] > 0 for row in rows)
    assert set(read_json(here / "timings.json")) >= {
        "clean",
        "sft",
        "respond",
        "judgements",
        "reward",
        "judge",
        "ppo",
        "evaluate",
        "report",
    }
    kept = read_json(here / "clean.json")
    assert kept["kept"]["instructions"] > 400 and kept["kept"]["preferences"] > 300


@pytest.mark.parametrize(
    "run, kind",
    [
        ("sft", AutoModelForCausalLM),
        ("ppo", AutoModelForCausalLM),
        ("reward", AutoModelForSequenceClassification),
        ("judge", AutoModelForSequenceClassification),
    ],
)
def test_the_models_load_in_plain_transformers(story, run, kind):
    folder = story.folder / "runs" / run / "final"
    model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        out = model(**tokenizer("hello", return_tensors="pt")).logits
    assert torch.isfinite(out).all() and out.shape[-1] == (259 if kind is AutoModelForCausalLM else 1)


def test_the_judge_learned_from_other_prompts_than_the_teacher_and_nothing_was_tested_that_was_trained_on(story, tmp_path):
    data = clean_and_split(story.config, tmp_path)
    teacher, judge = ({pair.prompt.id for pair in pairs} for pairs in (data.pairs_teacher, data.pairs_judge))
    assert min(len(teacher), len(judge)) > 100 and not teacher & judge
    assert not {pair.group for pair in data.pairs_teacher} & {pair.group for pair in data.pairs_judge}
    asked = {prompt.id for prompt in data.prompts}
    assert not asked & judge  # PPO never saw the judge's prompts either
    held_out = {prompt.id for prompt in data.evaluation}
    assert not held_out & (asked | teacher | judge)
    texts = {message.text.strip() for example in data.train for message in example.messages if message.role == "user"}
    assert not texts & {prompt.messages[-1].text.strip() for prompt in data.evaluation}
    assert not {example.group for example in data.train} & {example.group for example in data.val}
    seeds = [read_json(story.folder / "runs" / run / "manifest.json")["seed"] for run in ("reward", "judge")]
    assert seeds[0] != seeds[1]


def test_what_is_simulated_is_called_simulated_and_nothing_else_is(story):
    found = [Judgement.from_dict(row) for row in read_jsonl(story.folder / "judgements.jsonl")]
    kinds = {judgement.judge.split(":")[0] for judgement in found}
    assert kinds == {"author", "simulated"}  # nobody human has judged here, so nobody is called human
    data_ids = {read_json(story.folder / "runs" / run / "manifest.json")["parents"][-1] for run in ("reward", "judge")}
    assert data_ids == {"starter:preferences/reward", "starter:preferences/judge"}
    page = story.result.report.read_text(encoding="utf-8")
    assert words("en")("simulated") in page and "simulated:noisy" in page
    assert any("simulated" in line for line in story.said)


def test_the_report_has_its_sections_and_opens_offline(story):
    page = story.result.report.read_text(encoding="utf-8")
    t = words("en")
    for section in (
        "glance",
        "wins",
        "not_improved",
        "next",
        "tasks",
        "safety",
        "sides",
        "training",
        "reward_model",
        "judged",
        "settings",
        "glossary",
    ):
        assert re.search(rf"<h[12][^>]*>\s*{re.escape(t(section))}", page), section
    assert t("held_out_yes")[:60] in page
    assert not re.search(r"<(?:script|link|iframe)\b|(?:src|href)=[\"'](?!#|data:)", page)
    for curve in ("curve_loss", "curve_reward", "curve_kl", "curve_entropy", "curve_length", "curve_accuracy"):
        assert t(curve) in page


def test_the_report_speaks_chinese_and_the_second_call_makes_nothing_again(story):
    before, begun = files(story.folder), time.process_time()
    again = demo(story.folder, config=story.config, lang="zh")
    assert files(story.folder) == before
    assert time.process_time() - begun < story.cpu_seconds / 2  # CPU time: what else the machine does is not our matter
    page = again.report.read_text(encoding="utf-8")
    assert again.report.name == "report.zh.html" and 'lang="zh' in page
    for section in ("glance", "wins", "not_improved", "simulated", "safety"):
        assert words("zh")(section) in page
    assert (story.folder / "report.html").exists()


def test_the_figures_hold_every_comparison_with_interval_and_the_judges_own_accuracy(story):
    figures = json.loads((story.folder / "figures.json").read_text(encoding="utf-8"))
    assert [(w["a"], w["b"]) for w in figures["win_rates"] if w["judge"] == "reward:judge"] == [
        ("sft", "base"),
        ("ppo", "sft"),
        ("ppo", "base"),
    ]
    for win in figures["win_rates"]:
        assert 0 <= win["low"] <= win["estimate"] <= win["high"] <= 1 and win["wins"] + win["ties"] + win["losses"] == 40
        assert 0 <= win["judge_accuracy"]["low"] <= win["judge_accuracy"]["high"] <= 1
    assert set(figures["safety"]) == set(figures["tasks"]) == {"base", "sft", "ppo"}


def test_another_configuration_sets_the_old_demo_aside(tmp_path):
    folder = tmp_path / "demo"
    for seed in (0, 1):
        with pytest.raises(PowerCut):
            demo(folder, config=tiny(seed), progress=cut_at("SFT", 1))
    aside = [path for path in tmp_path.iterdir() if path != folder]
    assert len(aside) == 1 and read_json(aside[0] / "demo.json")["seed"] == 0 and read_json(folder / "demo.json")["seed"] == 1
    assert (aside[0] / "runs" / "sft" / "manifest.json").exists()
