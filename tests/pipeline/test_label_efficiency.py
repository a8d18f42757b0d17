"""The experiment runs from end to end on the model named `test`, goes on where it was stopped, and tells planted answers apart."""

import json
from importlib import import_module

import numpy as np
import pytest

from tutelage.pipeline import label_efficiency_report as report
from tutelage.pipeline.label_efficiency import EfficiencyConfig, Pairs, accuracies, label_efficiency, main
from tutelage.stats.selection import scaled

module = import_module("tutelage.pipeline.label_efficiency")
SMALL = EfficiencyConfig(sets=("hh_harmless",), counts=(4, 8, 16), seeds=3, model="test", dtype="float32", pairs=60)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "preference").mkdir(parents=True)
    rows = [{"chosen": f"\n\nHuman: Question {at}?\n\nAssistant: Surely {at}.", "rejected": f"\n\nHuman: Question {at}?\n\nAssistant: No!"}
            for at in range(70)]
    rows[0]["chosen"] += "x" * 2000  # too long
    (tmp_path / "data" / "preference" / "hh_harmless.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def plain_file(monkeypatch):
    source = module.SOURCES["hh_harmless"]
    monkeypatch.setitem(module.SOURCES, "hh_harmless", source._replace(path="preference/hh_harmless.jsonl"))


def test_it_runs_writes_a_page_and_computes_nothing_twice(tmp_path, data, monkeypatch):
    found = label_efficiency(SMALL, data, tmp_path / "out", say=lambda line: None)
    facts = found["sets"]["hh_harmless"]
    assert facts["pairs"] == 60 and len(facts["runs"]) == 3 and {run["held_out"] for run in facts["runs"]} == {20}
    assert all(0 <= value <= 1 for run in facts["runs"] for arm in ("random", "active") for value in run[arm])
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\nBefore.\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n", encoding="utf-8")
    report.write_page(found, page)
    text, picture = page.read_text(encoding="utf-8"), (tmp_path / "images" / "label-efficiency.svg").read_text(encoding="utf-8")
    assert text.startswith("# Mine\n\nBefore.") and text.endswith("After.\n") and "old" not in text and "| 16 |" in text
    assert picture.startswith("<svg ") and picture.count("<polyline") == 2 and "nan" not in picture
    assert len(report.closing_table(found)) == 2

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    for name in ("load", "accuracies"):
        monkeypatch.setattr(module, name, never)
    assert label_efficiency(SMALL, data, tmp_path / "out", say=lambda line: None) == found


def planted(seed: int = 0) -> Pairs:
    """Nine pairs in ten are near copies of one another."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=10)
    x = np.vstack([np.tile(random.normal(size=10), (450, 1)) + 0.05 * random.normal(size=(450, 10)), 0.7 * random.normal(size=(150, 10))])
    x *= np.sign(x @ truth)[:, None]  # chosen minus rejected
    return Pairs(scaled(x), [f"g{at}" for at in range(600)])


def test_choosing_wins_where_it_was_planted_to():
    runs = [accuracies(planted(), seed=seed, counts=(10, 20, 40, 80), held_out=1 / 3, prior=1.0) for seed in range(5)]
    found = {"settings": {"counts": [10, 20, 40, 80]}, "sets": {"planted": {"title": "planted", "runs": runs}}}
    verdict = report.area_report(found, "planted")
    assert verdict.better and "10 to 80 labels" in verdict.text
    assert "on every set" in report.conclusion(found)
    swapped = [{**run, "active": run["random"], "random": run["active"]} for run in runs]
    worse = {**found, "sets": {"planted": {"title": "planted", "runs": swapped}}}
    assert report.area_report(worse, "planted").text.startswith("random beats choosing")
    assert "on none of the sets, so random is the default" in report.conclusion(worse)


def test_no_prompt_is_learned_from_and_held_out():
    pairs = planted()
    twins = Pairs(np.repeat(pairs.x_ND[:100], 2, axis=0), [f"g{at // 2}" for at in range(200)])
    assert accuracies(twins, seed=1, counts=(5, 10), held_out=0.3, prior=1.0)["held_out"] == 60  # whole groups


def test_the_area_is_the_mean_over_steps_of_equal_size():
    assert report.area([0.5, 0.7]) == pytest.approx(0.6) and report.area([0.5, 0.6, 0.9]) == pytest.approx((0.55 + 0.75) / 2)


def test_what_cannot_be_run_is_said(tmp_path, data, capsys):
    assert main(["--data", str(tmp_path / "nowhere"), "--folder", str(tmp_path / "out")]) == 2
    assert main(["--data", str(data), "--folder", str(tmp_path / "out"), "--seeds", "2"]) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert "is not there; --data names the folder" in told and "three seeds or more" in told


@pytest.mark.shared
def test_two_public_sets_in_small(shared_data, tmp_path, monkeypatch):
    monkeypatch.setitem(module.SOURCES, "hh_harmless", module.Source("HH", "preference/hh_harmless.jsonl.gz", "MIT"))
    words = ["--data", shared_data, "--folder", tmp_path, "--model", "test", "--pairs", 60, "--counts", 5, 10, 20, "--seeds", 3,
             "--page", tmp_path / "page.md"]
    assert main([str(word) for word in words]) == 0
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "HH" in text and "CC BY-NC 4.0" in text and text.count("Area under the curve") == 2
