"""sft, reward, rl and classify from the command line: what they print, write, refuse and resume."""

import dataclasses
import json
import re
import shutil

import pytest
import yaml
from calling import QUICK, TWO_STEPS, call, instructions, write_lines

from tutelage.commands import sft as sft_command
from tutelage.commands.training import split_words
from tutelage.core.errors import UserError
from tutelage.store.runs import Run
from tutelage.training import sft as sft_loop
from tutelage.training.state import Stopped


@pytest.fixture
def chat(workspace):
    return write_lines(workspace / "chat.jsonl", instructions())


def test_a_run_prints_its_configuration_and_ends_with_what_was_made(chat, workspace):
    done = call("sft", "data=chat.jsonl", *TWO_STEPS)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "model: test" in lines and any(line.startswith("optim: {kind: adamw, learning_rate: 0.001,") for line in lines)
    assert "Made runs/sft-0001/final" in lines and any("evaluation loss" in line for line in lines)
    assert lines[lines.index("Next:") + 1].strip() == "tutelage chat sft-0001"
    assert (workspace / "runs" / "sft-0001" / "final" / "model.safetensors").exists()
    assert Run(workspace / "runs" / "sft-0001").manifest["parents"] == ["test", lines_data(done.out)]


def test_without_an_evaluation_beforehand_the_loss_is_told_and_not_compared(chat, workspace):
    words = ["data=chat.jsonl", *TWO_STEPS]
    done, bare = call("sft", *words), call("sft", *words, "loop.eval_first=false")
    told, alone = (next(line for line in each.out.splitlines() if "evaluation loss" in line) for each in (done, bare))
    first, last = ([row["step"] for row in Run(workspace / "runs" / f"sft-000{n}").metrics() if "eval_loss" in row] for n in (1, 2))
    assert first == [0, *last] and 0 not in last
    assert re.search(r"loss \d\.\d{3} -> (\d\.\d{3}) nats", told)[1] == re.search(r"loss (\d\.\d{3}) nats", alone)[1]


def lines_data(out: str) -> str:
    return next(line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith("data   "))


def test_json_is_all_of_standard_output(trained):
    done = call("sft", "data=chat", *TWO_STEPS, "--dry-run", "--no-check", "--json", "--workspace", trained)
    assert done.json["kind"] == "sft" and done.json["steps"] == 2 and done.json["config"]["model"] == "test"
    assert sum(done.json["rows"].values()) == 40 and done.json["data"].startswith("chat@")
    assert "model: test" in done.err


def test_a_dry_run_writes_nothing(chat, workspace):
    before = sorted(workspace.rglob("*"))
    done = call("sft", "data=chat.jsonl", *TWO_STEPS, "--dry-run", "--no-check")
    assert done.code == 0 and "nothing was written" in done.out and "steps  2" in done.out
    assert sorted(workspace.rglob("*")) == before


def test_unknown_keys_and_wrong_values_are_refused_together(workspace):
    done = call("sft", "tiny_sft", "optm.learning_rate=3", "loop.epoch=2", "seed=x")
    assert done.code == 2 and "3 fault(s)" in done.err
    for hint in (
        '"optm" in the top level; did you mean "optim"?',
        '"epoch" in loop; did you mean "epochs"?',
        "seed must be a whole number",
    ):
        assert hint in done.err
    assert not list((workspace / "runs").iterdir())


def test_unknown_algorithms_name_the_nearest():
    said = call("rl", "algorithm=pop", "--dry-run", "--no-check").err
    assert "algorithm must be one of 'ppo', " in said and "got 'pop'; did you mean \"ppo\"?" in said


def test_runs_are_numbered_and_never_overwritten(trained, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(trained, place)
    done = call("sft", "data=chat", *TWO_STEPS, "--workspace", place, "--json")
    assert done.json["run"] == "sft-0002"
    again = call("sft", "data=chat", *TWO_STEPS, "--workspace", place, "--run", "sft-0002")
    assert again.code == 2 and "a run already stands in" in again.err and "--resume" in again.err


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", ""])
def test_a_run_stays_in_its_folder(name, trained):
    assert "is a folder name" in call("sft", *TWO_STEPS, "--run", name, "--workspace", trained).err


def test_held_out_data_are_not_trained_on():
    done = call("sft", "model=test", "data=starter:evaluation", "--dry-run", "--no-check")
    assert done.code == 2 and "held-out items are for evaluation only" in done.err


def test_reward_wants_judgements(trained):
    done = call("reward", "model=test", "data=chat", "--workspace", trained)
    assert done.code == 2 and "chat holds examples; a reward model needs preferences" in done.err


def test_sft_learns_from_the_chosen_answers_of_preferences(trained):
    assert call("sft", "model=test", "data=pairs", "--dry-run", "--no-check", "--workspace", trained).code == 0


def test_every_kind_of_run_left_its_result_and_its_parents(trained):
    manifests = {name: Run(trained / "runs" / name).manifest for name in ("sft-0001", "reward-0001", "rl-0001")}
    assert all(manifest["status"] == "finished" for manifest in manifests.values())
    base, reward, data = manifests["rl-0001"]["parents"]
    assert base == str(trained / "runs" / "sft-0001" / "final") and reward == str(
        trained / "runs" / "reward-0001" / "final"
    )
    assert data.startswith("chat@")


def test_classify_prints_its_confusion_matrix(workspace):
    rows = [{"text": f"the {colour} one {at}", "label": colour} for at in range(20) for colour in ("red", "green")]
    write_lines(workspace / "labels.jsonl", rows)
    words = ("classify", "data=labels.jsonl", *QUICK, "loop.max_steps=2", "loop.rows_per_step=8")
    done = call(*words)
    assert done.code == 0, done.err
    assert "always naming the most frequent class" in done.out and "truth \\ called" in done.out
    report = json.loads((workspace / "runs" / "classify-0001" / "final" / "report.json").read_text())
    assert report["labels"] == ["green", "red"] and sum(map(sum, report["confusion"])) == report["n"]


def test_classify_names_the_tags_that_could_be_predicted():
    done = call("classify", "model=test", "data=starter:instructions", "--dry-run", "--no-check")
    assert done.code == 2 and "target=tag:NAME (tags here: lang, task)" in done.err
    done = call("classify", "model=test", "data=starter:instructions", "target=tag:task", "--dry-run", "--no-check")
    assert done.code == 0, done.err


def interrupt_after(monkeypatch, step: int):
    """Stop a training run as Ctrl-C does, once."""
    real = sft_command.JOB.train

    def stopped(config, *, progress, **more):
        def press(what, done, total):
            progress(what, done, total)
            if what == "train" and done == step:
                raise Stopped(f"stopped after step {done}; checkpoint written")

        return real(config, progress=press, **more)

    monkeypatch.setattr(sft_command, "JOB", dataclasses.replace(sft_command.JOB, train=stopped))


def test_a_stopped_run_says_how_to_go_on_and_ends_like_one_that_was_not(chat, workspace, monkeypatch):
    words = ("sft", "data=chat.jsonl", *QUICK, "loop.max_steps=6", "loop.rows_per_step=4", "save.every_steps=2")
    assert call(*words, "--run", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        done = call(*words, "--run", "cut")
    assert done.code == 130
    assert done.err.strip().endswith(
        "stopped after step 5; checkpoint written; go on with: tutelage sft --run cut --resume"
    )
    assert call("sft", "--run", "cut", "--resume").code == 0  # no recipe: the run's own configuration
    whole, cut = (workspace / "runs" / name / "final" / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_resume_without_a_name_takes_the_newest_unfinished_run(chat, workspace, monkeypatch):
    assert "no unfinished sft run" in call("sft", "--resume").err
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        call("sft", "data=chat.jsonl", *TWO_STEPS)
    done = call("sft", "--resume", "--json")
    assert done.json["run"] == "sft-0001" and done.json["steps"] == 2


def test_resuming_on_other_data_or_settings_is_refused(chat, workspace, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        call("sft", "data=chat.jsonl", *TWO_STEPS)
    assert (
        "loop.rows_per_step: 4 then, 8 now"
        in call("sft", "data=chat.jsonl", *TWO_STEPS, "loop.rows_per_step=8", "--run", "sft-0001", "--resume").err
    )
    write_lines(chat, instructions(39))
    done = call("sft", "--run", "sft-0001", "--resume")
    assert done.code == 2 and "was begun on chat.jsonl@" in done.err


def test_resuming_with_other_demonstrations_is_refused(trained, tmp_path):
    """PPO-ptx learns from them in every update: a run of two files would be neither's."""
    place = shutil.copytree(trained, tmp_path / "copy")
    file = write_lines(tmp_path / "shown.jsonl", instructions(12))
    words = ["rl", "data=chat", *QUICK, "reward=rule:length", "steps=1", "prompts_per_step=2", "max_tokens=4", "normalise_on=0",
             "lora.rank=4", "ptx_coef=0.1", f"ptx_data={file}", "--no-check", "--workspace", place]
    done = call(*words, "--run", "mixed")
    assert done.code == 0, done.err
    again = ["rl", "--run", "mixed", "--resume", "--workspace", place]
    assert call(*again).code == 0
    write_lines(file, instructions(13))
    done = call(*again)
    assert done.code == 2 and "was begun on chat@" in done.err and done.err.count("+ptx@") == 2
    assert "ptx" not in Run(place / "runs" / "rl-0001").manifest["parents"][-1]  # only where something is mixed in


def test_a_finished_run_is_shown_again_when_resumed(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    done = call("sft", "--run", "sft-0001", "--resume", "--workspace", tmp_path / "copy")
    assert done.code == 0 and "is finished; nothing is left to do" in done.out


def test_workspace_settings_are_used(chat, workspace):
    (workspace / "tutelage.yaml").write_text("track: [nowhere]\n")
    assert "unknown tracker 'nowhere'" in call("sft", "data=chat.jsonl", *TWO_STEPS, "--dry-run", "--no-check").err


def test_words_are_recipes_or_overrides():
    assert split_words(["a.yaml", "x=1", "y.z=[1, 2]"], "sft") == ("a.yaml", ["x=1", "y.z=[1, 2]"])
    assert split_words([], "sft") == (None, [])
    with pytest.raises(UserError, match="takes one recipe; got a and b"):
        split_words(["a", "b"], "sft")


def test_the_resolved_configuration_on_disk_is_what_was_printed(trained):
    config = yaml.safe_load((trained / "runs" / "sft-0001" / "config.yaml").read_text())
    assert config["data"] == "chat" and config["loop"]["max_steps"] == 2


def test_a_second_run_of_a_workspace_recalls_what_training_began_from(chat, workspace, monkeypatch):
    made, evaluate = [], sft_loop.SFTTask.evaluate
    monkeypatch.setattr(sft_loop.SFTTask, "evaluate", lambda self: made.append(self) or evaluate(self))
    told = []
    for rate in ("1e-3", "2e-3"):
        done = call("sft", "data=chat.jsonl", *TWO_STEPS, f"optim.learning_rate={rate}")
        told.append((next(line for line in done.out.splitlines() if "evaluation loss" in line).split(" -> ")[0], len(made)))
    assert told[0][0] == told[1][0] and told[1][1] == 2 * told[0][1] - 1
    assert len(list((workspace / ".cache" / "evaluation").iterdir())) == 1
