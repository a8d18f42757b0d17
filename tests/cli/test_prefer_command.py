"""`tutelage prefer` on the command line and from Python."""

import shutil
from pathlib import Path

import pytest
from calling import QUICK, TWO_STEPS, call, write_lines

import tutelage
from tutelage.data.snapshot import load_rows
from tutelage.store.runs import Run
from tutelage.training.prefer import PreferConfig


@pytest.fixture
def place(trained, tmp_path) -> Path:
    """A copy of the trained workspace that may be written to."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_a_call_from_python_begins_from_a_run_and_leaves_a_model(place):
    made = tutelage.prefer(
        "tiny_dpo", data="pairs", model="sft-0001", workspace=place, device="cpu", dtype="float32", loop={"max_steps": 2}
    )
    assert made.path == place / "runs" / "prefer-0001" / "final" and made.outcome.steps == 2
    assert Run(place / "runs" / "prefer-0001").manifest["parents"][0] == str(place / "runs" / "sft-0001" / "final")


def test_the_command_says_how_it_went_and_what_comes_next(place):
    done = call("prefer", "data=pairs", "method=simpo", *TWO_STEPS, "--workspace", place)
    assert done.code == 0, done.err
    assert "implicit reward ranks" in done.out and "tutelage compare prefer-0001 test --judge" in done.out


def test_dry_run_counts_the_steps(trained):
    words = ["data=pairs", *QUICK, "loop.epochs=3", "loop.rows_per_step=10", "--dry-run", "--no-check", "--json", "--workspace", trained]
    done = call("prefer", *words)
    assert done.json["steps"] == 3 * -(-done.json["rows"]["train"] // 10) and done.json["config"]["method"] == "dpo"
    assert call("prefer", "method=kto", *words).json["steps"] == done.json["steps"]  # no ties in these


def test_votes_are_for_kto(workspace):
    rows = [{"prompt": f"Question {at}?", "completion": f"Answer {at}.", "label": bool(at % 2)} for at in range(20)]
    write_lines(workspace / "votes.jsonl", rows)
    refused = call("prefer", "data=votes.jsonl", *QUICK)
    assert refused.code == 2 and "holds single answers; dpo needs preferences" in refused.err
    assert "method=kto" in refused.err
    done = call("prefer", "data=votes.jsonl", "method=kto", *TWO_STEPS)
    assert done.code == 0, done.err


@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_the_closing_line_counts_the_pairs_that_were_ranked(workspace, method):
    """KTO learns nothing of ties, so they are none of the pairs of its accuracy."""
    rows = [
        {"prompt": f"Question {at}?", "chosen": f"Yes {at}.", "rejected": f"No {at}.", "soft_label": 0.5 if at % 2 else 1.0}
        for at in range(80)
    ]
    file = write_lines(workspace / "ties.jsonl", rows)
    val = load_rows(file, workspace).splits["val"]
    wanted = sum(record.soft_label == 1.0 for record in val) if method == "kto" else len(val)
    assert method == "dpo" or 0 < wanted < len(val)
    done = call("prefer", "data=ties.jsonl", f"method={method}", *TWO_STEPS)
    assert done.code == 0, done.err
    assert f"% of the {wanted} validation pairs" in done.out


def test_conversations_are_refused(trained):
    done = call("prefer", "model=test", "data=chat", "--workspace", trained)
    assert done.code == 2 and "chat holds examples; prefer needs preferences" in done.err


@pytest.mark.parametrize(
    "word, fault",
    [
        ("method=dop", 'did you mean "dpo"?'),
        ("method=cdpo", "cdpo needs label_smoothing"),
        ("simpo_gamma=2", "simpo_gamma belongs to simpo"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(word, fault):
    done = call("prefer", word, "--dry-run", "--no-check")
    assert done.code == 2 and fault in done.err


@pytest.mark.parametrize("method", ["dpo", "cdpo", "robust_dpo", "ipo", "kto", "orpo", "simpo"])
def test_every_method_has_a_recipe(method):
    config = tutelage.api.recipe("prefer", f"{method}_starter")
    assert isinstance(config, PreferConfig) and config.method == method and config.data == "starter:preferences"
