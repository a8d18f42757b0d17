"""What cannot speak is not trained to, and not blended: by the manifest, or by what config.json names."""

import json
from pathlib import Path

import pytest
import setups
from faults import prefer_run, reward_run, rl_run, sft_run

from tutelage.commands.blend import blend_runs
from tutelage.core.errors import UserError
from tutelage.preflight.check import check
from tutelage.preflight.kinds import SCORERS, scorer_in


def codes(run: dict) -> list[str]:
    return [finding.code for finding in check(**run)]


def signed(folder: Path, **manifest: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("kind, what", [
    ("reward", "a reward model"), ("cost", "a cost model"), ("span-reward", "a reward model of spans"), ("classify", "a classifier"),
    ("sft", ""), ("rl", ""), ("prefer", ""), ("blend", ""),
])
def test_what_a_manifest_says(kind, what, tmp_path):
    assert scorer_in(signed(tmp_path, kind=kind)) == what


@pytest.mark.parametrize("architectures, what", [
    (["LlamaForSequenceClassification"], "a classifier or reward model"), (["BertForTokenClassification"], "a classifier or reward model"),
    (["Qwen2ForRewardModel"], "a classifier or reward model"), (["LlamaForCausalLM"], ""), ([], ""), (None, ""),
])
def test_what_an_architecture_says_where_there_is_no_manifest(architectures, what, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert scorer_in(tmp_path) == what
    assert scorer_in(tmp_path / "nowhere") == ""


def test_kinds_are_those_that_runs_write():
    """Each kind of SCORERS stands as `kind=...` or `"kind": ...` in a file of training/."""
    source = "".join(path.read_text() for path in (Path(__file__).parents[2] / "src" / "tutelage" / "training").glob("*.py"))
    assert all(f'kind="{kind}"' in source or f'"kind": "{kind}"' in source for kind in SCORERS)


@pytest.mark.parametrize("run", [rl_run, sft_run, prefer_run])
def test_a_reward_model_is_not_trained_to_speak(run, tmp_path):
    model = setups.judge(tmp_path / "m")
    signed(model, kind="reward", base="smollm2-135m")
    (found,) = check(**run(model))  # and nothing after it is looked at
    assert (found.code, found.severity) == ("wrong-kind", "error")
    assert found.cause.startswith(f"model={model} is a reward model") and "smollm2-135m" in found.cure and "reward=" in found.cure


def test_a_cost_model_and_a_classifier_name_their_own_place(tmp_path):
    cost, classifier = setups.judge(tmp_path / "c"), setups.judge(tmp_path / "k")
    signed(cost, kind="cost")
    signed(classifier, kind="classify")
    assert check(**sft_run(cost))[0].cure.endswith("name this one as cost=")
    assert "name this one" not in check(**sft_run(classifier))[0].cure


def test_a_reward_model_of_someone_else_is_known_by_its_architecture(tmp_path):
    model = setups.judge(tmp_path / "m")
    (model / "manifest.json").unlink()
    assert codes(rl_run(model)) == ["wrong-kind"]


def test_a_reward_model_may_be_trained_on_as_a_reward_model(tmp_path):
    assert "wrong-kind" not in codes(reward_run(setups.judge(tmp_path)))


def test_reward_models_are_not_blended_and_leave_no_run(tmp_path):
    made = [str(signed(setups.judge(tmp_path / f"r{seed}", seed=seed), kind="reward", base="test")) for seed in (1, 2)]
    with pytest.raises(UserError, match="r1 is a reward model; only language models are blended"):
        blend_runs(dict.fromkeys(made, 0.5), workspace=tmp_path)
    assert not (tmp_path / "runs").exists()
