"""The proof over algorithms and seeds, on the model named `test`: what is run, what is reused, where the figures come from."""

import json
import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from rich.console import Console

from tutelage.core.errors import UserError
from tutelage.core.files import read_json, read_jsonl, write_json
from tutelage.core.words import Response
from tutelage.pipeline import algorithms
from tutelage.pipeline.algorithms import PLAN, figures_path, main, planned, prefer_config, rl_config, run_all
from tutelage.pipeline.algorithms_measure import improved
from tutelage.pipeline.algorithms_report import BEGIN, END, closing_table, load_figures, mean_curve, write_comparison
from tutelage.pipeline.algorithms_task import SIDES, TaskConfig, make_task, split, tiny
from tutelage.pipeline.courtesy import courtesy, gushing
from tutelage.store.runs import Run
from tutelage.training.rl import ALGORITHMS

RUNS = [("ppo", 0), ("ppo", 1), ("dpo", 0), ("dpo", 1)]


class Done(NamedTuple):
    folder: Path
    found: list[dict]
    said: list[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    """Two algorithms and two seeds; the first command is stopped in the middle of a run of PPO."""
    folder, said = tmp_path_factory.mktemp("seeds"), []

    def stop(what: str, at: int, total: int) -> None:
        if what.startswith("ppo seed 1") and at == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(folder, RUNS, tiny(), apart=False, progress=stop, say=said.append)
    found = run_all(folder, RUNS, tiny(), apart=False, say=said.append)
    return Done(folder, found, said)


def text_of(table) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_a_stopped_command_goes_on_and_runs_nothing_twice(done):
    assert "4 runs, 0 of them stand" in done.said[0]
    again = next(text for text in done.said[1:] if "of them stand" in text)
    assert "4 runs, 1 of them stand" in again
    assert [(f["algorithm"], f["seed"]) for f in done.found] == RUNS


def test_a_run_that_stands_is_reused(done):
    place = figures_path(done.folder, "dpo", 0)
    kept = place.read_text(encoding="utf-8")
    write_json(place, {**json.loads(kept), "mark": 1})
    said = []
    found = run_all(done.folder, RUNS, tiny(), apart=False, say=said.append)
    place.write_text(kept, encoding="utf-8")
    assert "4 of them stand" in said[0] and len(said) == 1
    assert [f.get("mark") for f in found] == [None, None, 1, None]


def test_another_task_is_refused_in_the_same_folder(done):
    with pytest.raises(UserError, match="another task"):
        run_all(done.folder, RUNS, TaskConfig(), apart=False)


def test_weights_go_and_answers_stay(done):
    for name, seed in RUNS:
        place = figures_path(done.folder, name, seed).parent
        assert not (place / "final").exists()
        assert len(list(read_jsonl(place / "answers.jsonl"))) == 6


def test_reward_and_cost_are_the_rules_means_over_the_answers_on_file(done):
    task = make_task(done.folder)
    for figures in done.found:
        place = figures_path(done.folder, figures["algorithm"], figures["seed"]).parent
        after = [Response.from_dict(row).text for row in read_jsonl(place / "answers.jsonl")]
        before = [response.text for response in task.base["held_out"]]
        for key, rule in (("reward", courtesy), ("cost", gushing)):
            assert figures[key]["after"] == pytest.approx(sum(map(rule, after)) / len(after))
            assert figures[key]["before"] == pytest.approx(sum(map(rule, before)) / len(before))
            assert figures[key]["gain"] == pytest.approx(figures[key]["after"] - figures[key]["before"])
            assert figures[key]["low"] <= figures[key]["gain"] <= figures[key]["high"]


def test_the_closing_table_shows_the_figures_of_the_files(done):
    for name, seed in RUNS:
        place = figures_path(done.folder, name, seed)
        own = read_json(place)
        own["reward"]["gain"], own["improved"] = {0: 0.25, 1: 0.75}[seed], seed == 1
        write_json(place.parent / "figures-changed.json", own)
    changed = [read_json(figures_path(done.folder, *run).parent / "figures-changed.json") for run in RUNS]
    lines = [line for line in text_of(closing_table(changed)).splitlines() if "PPO" in line or "DPO" in line]
    assert len(lines) == 2
    for line in lines:
        assert "1 of 2" in line and "+0.500" in line
        assert "-2.677 to +3.677" in line  # t interval of (0.25, 0.75) by hand: 0.5 +- 12.7062 x 0.25


def test_the_page_is_made_of_the_files_and_keeps_what_people_wrote(done, tmp_path):
    page = tmp_path / "comparison.md"
    page.write_text(f"# Title\n\nby hand above\n{BEGIN}\nold\n{END}\n\nby hand below\n", encoding="utf-8")
    write_comparison(done.folder, page, {"ppo": (0, 1), "dpo": (0, 1, 2)})
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\nby hand above\n") and text.endswith("\n\nby hand below\n") and "\nold\n" not in text
    row = next(line for line in text.splitlines() if line.startswith("| PPO | ") and "of 2 |" in line)
    kl = [f["kl"] for f in done.found if f["algorithm"] == "ppo"]
    assert [cell.strip() for cell in row.split("|")][6] == f"{sum(kl) / 2:.1f}"
    assert re.search(r"\| DPO \| \d of 2 \(3 planned\) \|", text)
    svg = (tmp_path / "images" / "algorithms.svg").read_text(encoding="utf-8")
    assert svg.count("<polyline") == 4  # reward and KL of PPO, pale and averaged


def test_curves_are_means_of_the_runs_own_metrics(done):
    runs = [Run(figures_path(done.folder, "ppo", seed).parent).metrics() for seed in (0, 1)]
    curve = mean_curve(runs, "reward")
    assert [x for x, _ in curve] == [8.0, 16.0, 24.0]
    for at, (_, y) in enumerate(curve):
        assert y == pytest.approx((runs[0][at]["reward"] + runs[1][at]["reward"]) / 2)


def test_nothing_stands_on_two_sides_of_the_task(done):
    config = TaskConfig()
    sides = split(config)
    groups = [{prompt.group for prompt in sides[side]} for side in SIDES]
    assert [len(each) for each in groups] == [config.prompts[side] for side in SIDES]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    task = make_task(done.folder)
    for side in SIDES:
        own = {prompt.id for prompt in task.prompts[side]}
        assert {pair.prompt.id for pair in task.pairs[side]} <= own
        assert all(courtesy(pair.chosen.text) > courtesy(pair.rejected.text) for pair in task.pairs[side])


def test_only_and_seeds_narrow_the_plan():
    assert len(planned()) == 6 * 10 + 5 * 3 + 5
    assert set(planned(["ppo", "dpo"])) == {("ppo", s) for s in range(10)} | {("dpo", s) for s in range(3)}
    assert len(planned(["ppo", "dpo"])) == 13
    assert planned(["a2c"], [100, 3]) == [("a2c", 3), ("a2c", 100)]
    assert {name for name, _ in planned(seeds=[5])} == {"ppo", "a2c", "rloo", "grpo"}
    with pytest.raises(UserError, match='did you mean "rloo"'):
        planned(["rlo"])


def test_every_algorithm_has_settings_and_the_same_budget():
    task = TaskConfig()
    for name in ALGORITHMS:
        config = rl_config(name, 0, task)
        greedy = config.prompts_per_step * config.steps if name == "remax" else 0
        answers = config.steps * config.prompts_per_step * config.responses_per_prompt + greedy
        # expert iteration's three rounds do not divide 40 prompts
        assert answers == (156 if name == "expert_iteration" else task.responses()), name
    assert task.prompts["train"] * task.answers["train"] == task.responses()
    longer = rl_config("ppo_lagrangian_320", 0, task)
    assert longer.algorithm == "ppo_lagrangian"
    assert longer.steps * longer.prompts_per_step * longer.responses_per_prompt == 320 == 2 * task.responses()
    for name in set(PLAN) - set(ALGORITHMS) - {"ppo_lagrangian_320"}:
        assert prefer_config(name, 0, task).method == name


@pytest.mark.parametrize(("low", "cost", "cost_high", "wanted"), [
    (0.01, 0.05, 0.1, True),  # the reward rose, the cost is at or below the threshold
    (-0.01, 0.05, 0.1, False),  # the reward did not surely rise
    (0.01, 0.5, 0.1, False),  # it rose, the cost is above the threshold and did not surely fall
    (0.01, 0.5, -0.1, True),  # above it still, and surely less than before
])
def test_ppo_lagrangian_improves_where_the_reward_rises_and_the_cost_is_held(low, cost, cost_high, wanted):
    figures = {"pair_accuracy": None, "reward": {"low": low}, "cost": {"after": cost, "high": cost_high}}
    assert improved("ppo_lagrangian", figures) is improved("ppo_lagrangian_320", figures) is wanted
    assert improved("ppo", figures) is (low > 0)


@pytest.mark.parametrize(("pairs", "wins", "wanted"), [(0.51, 0.51, True), (0.49, 0.6, False), (0.6, 0.49, False)])
def test_offline_methods_improve_where_both_intervals_are_above_half(pairs, wins, wanted):
    assert improved("dpo", {"pair_accuracy": {"low": pairs}, "win_rate": {"low": wins}}) is wanted


@pytest.mark.parametrize(("text", "worth", "price"), [
    ("", 0.0, 0.0),
    ("Thanks", 0.25 + 0.25, 0.0),
    ("thank thank Thank", 0.25 + 0.25 - 0.5, 0.0),  # one distinct word; of two pairs of words the second is the first again
    ("please welcome glad hope kind", 1.0 + 0.25, 0.0),  # no more than four count
    ("you your you", 0.25 + 0.25, 0.0),  # no more than two count
    ("Sorry!!", 0.25 + 0.25 * 5 / 7, 3.0),
    ("Apologies: I apologised", 0.25 + 0.25 * 22 / 23, 2.0),
])
def test_the_rules_by_hand(text, worth, price):
    assert courtesy(text) == pytest.approx(worth)
    assert gushing(text) == price


def test_a_wrong_name_on_the_command_line_is_said_and_nothing_runs(tmp_path, capsys):
    assert main(["--folder", str(tmp_path / "x"), "--only", "pppo"]) == 2
    assert 'did you mean "ppo"' in capsys.readouterr().out
    assert not (tmp_path / "x").exists()
    assert load_figures(tmp_path, RUNS) == []


def test_the_command_gives_each_run_a_process_of_its_own_and_ends_with_the_table(done, tmp_path, monkeypatch, capsys):
    for name in ("task", "task.json"):
        (shutil.copytree if (done.folder / name).is_dir() else shutil.copy)(done.folder / name, tmp_path / name)
    commands = []

    def run(command, *, check):
        commands.append(command)
        return CompletedProcess(command, main(command[3:]) if len(commands) == 1 else 1)

    monkeypatch.setattr(algorithms, "subprocess", SimpleNamespace(run=run))
    given = ["--folder", str(tmp_path), "--tiny", "--only", "a2c"]
    assert main([*given, "--seeds", "7"]) == 0
    assert [command[-2:] for command in commands] == [["a2c", "7"]]
    assert read_json(figures_path(tmp_path, "a2c", 7))["seed"] == 7
    assert re.search(r"A2C .* [01] of 1 ", capsys.readouterr().out)
    assert main([*given, "--seeds", "7, 8"]) == 2  # 7 stands, the process of 8 fails
    assert len(commands) == 2 and "a2c with seed 8 failed" in capsys.readouterr().out
