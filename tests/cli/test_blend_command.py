"""`tutelage blend`: from two LoRA runs to one model that every command takes."""

import json
import shutil

import pytest
import torch
from calling import QUICK, call
from safetensors.torch import load_file

import tutelage
from tutelage.commands import blend as blend_command
from tutelage.core.errors import UserError
from tutelage.models.load import load

RL = [
    "steps=1",
    "prompts_per_step=2",
    "responses_per_prompt=2",
    "max_tokens=4",
    "normalise_on=0",
    "lora.rank=2",
    "optim.learning_rate=0.01",
]


@pytest.fixture(scope="module")
def soup(tmp_path_factory):
    """Two RL runs, one an objective, and an SFT run with an adapter."""
    place = tmp_path_factory.mktemp("soup")
    for name, reward in (("long", "rule:length"), ("fresh", "rule:repetition")):
        done = call("rl", "--run", name, f"reward={reward}", *QUICK, *RL, "--workspace", place)
        assert done.code == 0, done.err
    return place


def test_a_run_with_lora_leaves_its_adapter_beside_the_merged_model(soup):
    final = soup / "runs" / "long" / "final"
    assert {path.name for path in (final / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    merged = load(str(final), device="cpu", dtype="float32").model.state_dict()
    onto_base = load(str(final / "adapter"), device="cpu", dtype="float32").model.state_dict()
    for name, value in merged.items():
        torch.testing.assert_close(onto_base[name], value, rtol=0, atol=1e-6)
    assert call("runs", "verify", "--workspace", soup).code == 0


def test_blend_makes_a_run_that_answers(soup):
    done = call("blend", "--weights", "long=0.7,fresh=0.3", "--workspace", soup, "--json")
    assert done.code == 0, done.err
    assert (
        done.json["run"] == "blend-0001"
        and done.json["kind"] == "adapter"
        and done.json["weights"] == {"long": 0.7, "fresh": 0.3}
    )
    answer = call("respond", "blend-0001", "--prompt", "Hello", "--max-tokens", "3", "--workspace", soup)
    assert answer.code == 0, answer.err
    listed = call("runs", "--workspace", soup, "--json").json["runs"]
    assert [row["kind"] for row in listed if row["run"] == "blend-0001"] == ["blend"]


def test_the_same_from_python_and_the_ends_are_the_members(soup):
    made = tutelage.blend({"long": 1.0, "fresh": 0.0}, workspace=soup, run="end")
    ours = load(str(made), device="cpu", dtype="float32").model.state_dict()
    theirs = load_file(soup / "runs" / "long" / "final" / "model.safetensors")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--weights", "long=0.7,fresh=0.2"], "these sum to 0.9"),
        (["--weights", "long=1.0"], "two models or more"),
        (["--weights", "long"], "is no weight"),
        (["--weights", "long=0.5,long=0.5"], "stands twice"),
        (["--weights", "long=0.5,nothing=0.5"], 'no model named "nothing"'),
        (["--weights", "long=0.5,test=0.5"], "are adapters and test are whole models"),
        (["--weights", "long=0.5,fresh=0.5", "--run", "a/b"], "the name of a run is a folder name"),
        (["--weights", "long=0.5,fresh=0.5", "--run", "../out"], "the name of a run is a folder name"),
    ],
)
def test_what_cannot_be_blended_leaves_no_run(soup, words, message):
    before = sorted(path.name for path in (soup / "runs").iterdir())
    done = call("blend", *words, "--workspace", soup)
    assert done.code == 2 and message in done.err
    assert sorted(path.name for path in (soup / "runs").iterdir()) == before


@pytest.fixture
def odd(soup, tmp_path):
    """A copy of the run `fresh` whose adapter has another alpha."""
    folder = shutil.copytree(soup / "runs" / "fresh" / "final", tmp_path / "odd")
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 7}))
    return folder


def test_a_blend_that_fails_late_does_not_block_its_name(soup, odd):
    words = ["--weights", f"long=0.5,{odd}=0.5", "--run", "mix", "--workspace", soup]
    done = call("blend", *words, "--method", "factors")
    assert done.code == 2 and "one rank and alpha" in done.err
    assert not (soup / "runs" / "mix").exists()
    done = call("blend", *words, "--method", "weights")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (soup / "runs" / "mix").iterdir()) == ["config.yaml", "final", "manifest.json"]
    assert call("runs", "verify", "--workspace", soup).code == 0


def test_a_blend_that_was_killed_does_not_block_its_name(soup, monkeypatch):
    """Killed: nothing is tidied up.  What the first try had written must not come into the second's result."""

    def killed(weights, folder, **more):
        (folder / "left").mkdir(parents=True)
        (folder / "left" / "over.safetensors").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(blend_command, "blend", killed)
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)
        with pytest.raises(KeyboardInterrupt):
            blend_command.blend_runs("long=0.5,fresh=0.5", workspace=soup, run="shot")
    made = tutelage.blend("long=0.5,fresh=0.5", workspace=soup, run="shot")
    assert sorted(path.name for path in made.parent.iterdir()) == ["config.yaml", "final", "manifest.json"]
    assert not (made / "left").exists()


def test_unnormalised_weights_are_allowed_when_asked_for(soup):
    assert call("blend", "--weights", "long=1.3,fresh=-0.1", "--unnormalised", "--run", "far", "--workspace", soup).code == 0
    with pytest.raises(UserError, match="a run already stands in"):
        tutelage.blend("long=0.5,fresh=0.5", workspace=soup, run="far")
