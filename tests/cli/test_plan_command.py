"""`tutelage plan`: the reckoning by hand, the search for what fits, and real trials of the model named `test` beside real runs."""

from dataclasses import replace

import pytest
from calling import QUICK, call, instructions, write_lines

from tutelage.commands import forecast as forecasts
from tutelage.commands import prefer, reward, sft
from tutelage.commands.forecast import GB, Trial, forecast, reckon, sample, ways
from tutelage.commands.training import prepare

WORDS = [*QUICK, "loop.rows_per_step=4", "loop.epochs=3"]


@pytest.fixture
def plan(workspace):
    write_lines(workspace / "chat.jsonl", instructions(50))
    return prepare(sft.JOB, words=["data=chat.jsonl", *WORDS], workspace=workspace)


def trial(*, peak: float = 1.0, steps=(2.0, 4.0), before: float = 5.0, scale: float = 1.0) -> Trial:
    return Trial(steps=list(steps), before=before, peak=int(peak * GB), rows=16, scale=scale)


def test_the_time_of_a_run_by_hand(plan):
    train, val = (len(plan.rows.splits[name]) for name in ("train", "val"))
    steps = 3 * -(-train // 4)
    found = reckon(plan, trial(scale=2.0), {}, fits=True)
    row = 6.0 / 4  # a step takes 3 s in the mean, rows of the whole data are twice as long, and a step has four of them
    assert (found.steps, found.step_seconds) == (steps, 6.0)
    assert found.seconds == pytest.approx(5.0 + steps * 6.0 + (1 + 3) * val * row / 3)  # before, after each of three epochs
    unmeasured = prepare(sft.JOB, words=["data=chat.jsonl", *WORDS, "loop.eval_first=false"], workspace=plan.workspace)
    assert found.seconds - reckon(unmeasured, trial(scale=2.0), {}, fits=True).seconds == pytest.approx(val * row / 3)


def test_the_pairs_of_a_prompt_are_one_row_of_a_reward_model(workspace):
    pairs = [{"prompt": f"question {number // 2}", "chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(40)]
    write_lines(workspace / "pairs.jsonl", pairs)
    plan = prepare(reward.JOB, words=["data=pairs.jsonl", *WORDS], workspace=workspace)
    train, val = (len({row.prompt.id for row in plan.rows.splits[name]}) for name in ("train", "val"))
    assert 0 < 2 * train == len(plan.rows.splits["train"]) and val
    steps = 3 * -(-train // 4)
    found = reckon(plan, trial(), {}, fits=True)
    assert found.steps == steps
    assert found.seconds == pytest.approx(5.0 + steps * 3.0 + (1 + 3) * val * (3.0 / 4) / 3)
    assert call("reward", "data=pairs.jsonl", *WORDS, "--dry-run", "--no-check", "--json").json["steps"] == steps


def test_what_kto_learns_nothing_from_is_no_row(workspace):
    pairs = [{"prompt": f"question {at}", "chosen": f"good {at}", "rejected": f"bad {at}", "soft_label": 0.5 if at % 2 else 1}
             for at in range(40)]
    write_lines(workspace / "pairs.jsonl", pairs)
    for method, share in (("kto", 2), ("dpo", 1)):
        plan = prepare(prefer.JOB, words=["data=pairs.jsonl", f"method={method}", *WORDS], workspace=workspace)
        judged = [row for row in plan.rows.splits["train"] if method == "dpo" or row.soft_label != 0.5]
        assert plan.units("train") == len(judged) and plan.steps == 3 * -(-len(judged) // 4)
        assert len(plan.rows.splits["train"]) / len(judged) == pytest.approx(share, rel=0.3)


def test_the_micro_batch_is_halved_until_it_fits_and_then_layers_are_made_twice(plan):
    assert ways(plan) == [{}, {"loop.token_budget": 512}, {"loop.token_budget": 256}, {"loop.token_budget": 128},
                          {"loop.token_budget": 128, "gradient_checkpointing": True}]

    def tried(free: float):
        seen = []

        def made(plan):
            seen.append((plan.config.loop.token_budget, plan.config.gradient_checkpointing))
            return trial(peak=plan.config.loop.token_budget / (128 if plan.config.gradient_checkpointing else 64))

        return forecast(plan, free=int(free * GB), trial=made), seen

    found, seen = tried(20)
    assert found.fits and not found.settings and seen == [(1024, False)]
    found, seen = tried(4)
    assert found.fits and found.settings == {"loop.token_budget": 256} and seen == [(1024, False), (512, False), (256, False)]
    found, seen = tried(1.5)
    assert found.fits and found.settings == {"loop.token_budget": 128, "gradient_checkpointing": True} and len(seen) == 5
    found, _ = tried(0.5)
    assert not found.fits and found.peak == GB


def test_a_trial_holds_the_longest_rows_and_a_fair_share_of_the_others(plan):
    rows = plan.rows.splits["train"]
    longest = max(rows, key=lambda row: len(str(row.to_dict())))
    long = replace(longest, messages=(longest.messages[0], replace(longest.messages[1], text="so " * 300)))
    rows = [*rows[:20], long, *rows[20:]]
    some = sample(rows, 16)
    assert len(some) == 16 and long in some and len({id(row) for row in some}) == 16
    assert sample(rows, 1000) == rows


def test_plan_and_run_agree(workspace):
    """The model named `test` on a machine that may be busy: that the figures are of the right kind; docs/benchmarks.md has real ones."""
    write_lines(workspace / "chat.jsonl", instructions(50))
    words = ["data=chat.jsonl", *WORDS]
    done = call("plan", *words, "--for", "sft", "--json")
    assert done.code == 0, done.err
    planned = done.json["plan"]
    ran = call("sft", *words, "--json").json
    assert planned["steps"] == ran["steps"] and planned["fits"] and not planned["settings"]
    assert 0.05 < planned["peak_gb"] < 4
    assert 0.1 < planned["seconds"] / ran["seconds"] < 10
    assert not list((workspace / "runs").glob("plan*")) and len(list((workspace / "runs").iterdir())) == 1


def test_what_does_not_fit_is_said_and_the_exit_code_is_1(workspace, monkeypatch):
    monkeypatch.setattr(forecasts, "in_its_own_process", lambda plan: trial())
    write_lines(workspace / "chat.jsonl", instructions(20))
    done = call("plan", "data=chat.jsonl", *WORDS, "loop.token_budget=128", "gradient_checkpointing=true", "--for", "sft",
                "--memory", "0.01")
    assert done.code == 1 and "It does not fit" in done.out and "of 0.0 GB" in done.out


def test_a_dry_run_checks_and_plans(workspace, monkeypatch):
    monkeypatch.setattr(forecasts, "in_its_own_process", lambda plan: trial())
    write_lines(workspace / "chat.jsonl", instructions(20))
    done = call("sft", "data=chat.jsonl", *WORDS, "--dry-run")
    assert done.code == 0 and "time    about" in done.out and "memory  about 1.0 GB" in done.out
    assert not (workspace / "runs").exists() or not list((workspace / "runs").iterdir())
    monkeypatch.setattr(forecasts, "available", lambda device: GB // 2)
    assert call("sft", "data=chat.jsonl", *WORDS, "--dry-run").code == 1


def test_a_wrong_recipe_is_refused_before_any_trial(workspace):
    write_lines(workspace / "chat.jsonl", instructions(20))
    done = call("plan", "algorithm=ppo", "model=test", "device=cpu", "data=chat.jsonl", "reward=rule:length", "steps=0", "--for", "rl")
    assert done.code == 2 and "steps must be >= 1" in done.err
