"""How a check goes: what it keeps, what it estimates, what it says on the command line, and what stops a run."""

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setups
import torch
from faults import Sampler, function_in, rl_run, several, sft_run
from setups import HERE
from transformers import AutoModelForCausalLM

from tutelage.commands.check import command_of
from tutelage.core.errors import UserError
from tutelage.core.words import Message, Response
from tutelage.judges.rules import FunctionJudge
from tutelage.preflight import answers, cache, memory, settings, words
from tutelage.preflight import check as checking
from tutelage.preflight.check import check
from tutelage.preflight.findings import Blocked, Finding, told
from tutelage.preflight.setup import LONGEST_ANSWER, Setup, some
from tutelage.preflight.size import size_of
from tutelage.training.networks import LoraConfig
from tutelage.training.on_policy import RewardPart
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo_lagrangian import PPOLagrangianConfig
from tutelage.training.sft import SFTConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
calling = importlib.import_module("calling")  # of tests/cli: the command line in this process
call = calling.call

WARNING = Finding(code="kl-off", severity="warning", cause="c", cure="d")
ERROR = Finding(code="memory", cause="a", cure="b")


# -- what is kept


def test_the_second_check_loads_no_model_and_says_the_same(tmp_path, monkeypatch):
    run = sft_run(setups.policy(tmp_path / "m"), max_tokens=40)
    first = check(**run, data_id="d@1", workspace=tmp_path)
    assert [finding.code for finding in first] == ["empty-loss-mask"]
    monkeypatch.setattr(checking, "Setup", None)  # who makes one now fails
    assert check(**run, data_id="d@1", workspace=tmp_path) == first
    with pytest.raises(TypeError):
        check(**run, data_id="d@1", workspace=tmp_path, fresh=True)


@pytest.mark.parametrize("what", ["config", "data", "weights", "template", "command"])
def test_what_changes_is_looked_at_anew(what, tmp_path):
    model = setups.policy(tmp_path / "m")
    config = sft_run(model)["config"]
    before = cache.place(tmp_path, "sft", config, "d@1")
    assert before == cache.place(tmp_path, "sft", config, "d@1")
    command, data = "sft", "d@1"
    if what == "config":
        config = replace(config, seed=1)
    elif what == "data":
        data = "d@2"
    elif what == "weights":
        setups.policy(tmp_path / "m", seed=1)
    elif what == "template":
        (model / "chat_template.jinja").write_text("{{ messages }}")
    else:
        command = "reward"
    assert cache.place(tmp_path, command, config, data) != before


def test_a_reward_function_is_told_apart_by_its_text(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def f(prompts, responses): return [1.0] * len(responses)\n")
    before = cache.fingerprint(f"python:{file}:f")
    file.write_text(file.read_text() + "\n")
    assert cache.fingerprint(f"python:{file}:f") != before
    assert cache.fingerprint("rule:length") == "rule:length" and cache.fingerprint("no/such/model") == "no/such/model"


@pytest.mark.parametrize("kind", ["python", "python-spans", "python-steps"])
def test_every_kind_of_function_is_told_apart_by_its_text(kind, tmp_path):
    name = function_in(tmp_path, "[1.0] * len(answers)", kind)
    config = rl_run(tmp_path, reward=name)["config"]
    before = cache.place(tmp_path, "rl", config, "d@1")
    assert cache.place(tmp_path, "rl", config, "d@1") == before
    function_in(tmp_path, "[float('nan')] * len(answers)", kind)
    assert cache.place(tmp_path, "rl", config, "d@1") != before


def test_each_of_several_rewards_and_the_cost_are_told_apart(tmp_path):
    rewards = {"brief": "rule:length", "mine": function_in(tmp_path / "a", "[1.0]"), "helpful": str(setups.judge(tmp_path / "r"))}
    config = rl_run(tmp_path, kind=PPOLagrangianConfig, rewards=several(**rewards), cost=function_in(tmp_path / "c", "[1.0]"))["config"]
    seen = [cache.place(tmp_path, "rl", config, "d@1")]
    for change in (lambda: function_in(tmp_path / "a", "[2.0]"), lambda: setups.judge(tmp_path / "r", seed=8),
                   lambda: function_in(tmp_path / "c", "[2.0]")):
        change()
        seen.append(cache.place(tmp_path, "rl", config, "d@1"))
    assert len(set(seen)) == 4


def test_other_demonstrations_are_looked_at_anew(tmp_path):
    """They are no part of the id of the data."""
    model = setups.policy(tmp_path / "m")
    long = [replace(each, messages=(Message(role="user", text="word " * 60), each.messages[-1])) for each in setups.examples()]
    first = check(**rl_run(model, ptx_coef=0.1, ptx=setups.examples()), data_id="d@1", workspace=tmp_path)
    second = check(**rl_run(model, ptx_coef=0.1, ptx=long), data_id="d@1", workspace=tmp_path)
    assert (first, [finding.code for finding in second]) == ([], ["empty-loss-mask"])
    assert "rows of ptx_data" in second[0].cause and "max_prompt_tokens + max_tokens = 288" in second[0].cause
    assert check(**rl_run(model, ptx=long), data_id="d@1", workspace=tmp_path) == []  # without ptx_coef nothing reads them


def test_what_was_kept_comes_back_and_what_is_damaged_does_not(tmp_path):
    file = tmp_path / "x.json"
    known = cache.Known([WARNING], memory.Needs(5, 7))
    cache.remember(file, known)
    assert cache.recall(file) == known
    assert cache.recall(tmp_path / "none.json") is None
    file.write_text('{"findings": [{"code": "of-another-version", "cause": "", "cure": ""}], "needs": null}')
    assert cache.recall(file) is None
    file.write_text("{")
    assert cache.recall(file) is None


def test_free_memory_is_looked_at_each_time(tmp_path, monkeypatch):
    run = sft_run(setups.policy(tmp_path / "m"))
    assert check(**run, workspace=tmp_path) == []
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    assert [finding.code for finding in check(**run, workspace=tmp_path)] == ["memory"]


def test_nothing_is_kept_of_models_that_were_handed_over(tmp_path):
    model = setups.policy(tmp_path / "m")
    check(**sft_run(model) | {"loaded": setups.loaded_of(model)}, workspace=tmp_path)
    assert not (tmp_path / ".cache").exists()


# -- sizes and memory


@pytest.mark.parametrize("arch", setups.ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_sizes_are_those_of_the_loaded_model(arch, tied, tmp_path):
    tokenizer = setups.tokenizer_of(setups.FAMILIES["chatml"])
    model = AutoModelForCausalLM.from_config(setups.config_of(arch, len(tokenizer), tie_word_embeddings=tied))
    model.config.save_pretrained(tmp_path)
    size = size_of(tmp_path)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert (size.layers, size.hidden, size.vocabulary) == (2, 32, len(tokenizer))


def test_an_unknown_architecture_has_no_size_and_is_not_stopped(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing-like-it"}')
    assert size_of(tmp_path) is None and size_of(tmp_path / "empty") is None
    assert list(memory.fits(None, 100, sft_run(tmp_path)["config"])) == []


def test_needs_are_counted_by_hand(tmp_path):
    """A million parameters in float32: 4 MB of weights; gradient and two moments 12 MB; the reference 4 MB; the engine 4 MB."""
    size = memory.Size(parameters=10**6, linear=10**4, layers=4, hidden=100, vocabulary=50)
    config = rl_run(tmp_path)["config"]
    setup = SimpleNamespace(size=size, config=config, command="rl", lora_rank=0)
    assert memory.needs(setup).least == (4 + 12 + 4 + 4) * 10**6
    adapters = SimpleNamespace(size=size, config=replace(config, lora=LoraConfig(rank=8)), command="rl", lora_rank=8)
    assert memory.needs(adapters).least == (4 + 4) * 10**6 + 8 * 10**4 * (4 + 12)  # no reference beside the trunk
    judge = setups.judge(tmp_path / "r")
    weighed = replace(config, rewards=several(brief="rule:length", helpful=str(judge), kind=str(judge)))
    both = 2 * (judge / "model.safetensors").stat().st_size  # it is loaded for each of its names
    assert memory.needs(SimpleNamespace(size=size, config=weighed, command="rl", lora_rank=0)).least == 24 * 10**6 + both
    frozen = SimpleNamespace(size=size, config=replace(config, frozen_layers=3), command="rl", lora_rank=0)
    assert memory.needs(frozen).least == (4 + 3 + 4 + 4) * 10**6


def test_the_bound_stops_and_the_guess_warns():
    config = SFTConfig(**HERE)
    need = memory.Needs(100, 50)
    assert list(memory.fits(need, 150, config)) == []
    assert [finding.severity for finding in memory.fits(need, 149, config)] == ["warning"]
    assert [finding.severity for finding in memory.fits(need, 99, config)] == ["error"]


def test_the_containers_limit_counts(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50\n")
    assert memory._container(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container(tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4 kB\n")
    assert memory._machine(tmp_path / "meminfo") == 4096


# -- single checks where a fault's severity or border matters


def rated(command: str, rate: float, parameters: int, *, rank: int = 0) -> list[str]:
    config = SimpleNamespace(optim=OptimConfig(learning_rate=rate))
    setup = SimpleNamespace(command=command, config=config, lora_rank=rank, method=command,
                            size=SimpleNamespace(parameters=parameters))
    return [finding.severity for finding in settings.learning_rate(setup)]


@pytest.mark.parametrize("command, rate, parameters, rank, want", [
    ("rl", 1e-5, 10**9, 0, []),
    ("rl", 7e-4, 10**9, 0, ["warning"]),  # A2C's rate for small networks
    ("rl", 7e-4, 10**9, 16, []),  # and for adapters it is usual
    ("rl", 4e-3, 10**9, 0, ["error"]),
    ("rl", 7e-4, 10**6, 0, []),  # a small network bears ten times as much
    ("sft", 1e-3, 10**9, 0, []),
    ("sft", 1e-7, 10**9, 0, ["warning"]),
    ("prefer", 5e-7, 10**9, 0, []),
    ("prefer", 1e-2, 10**9, 0, ["error"]),
    ("reward", 1e-5, 10**9, 0, []),
])
def test_learning_rates(command, rate, parameters, rank, want):
    assert rated(command, rate, parameters, rank=rank) == want


def test_all_rewards_and_the_cost_are_judges_by_their_keys(tmp_path):
    run = {"rows": {}, "command": "rl"}
    weights = {"brief": RewardPart(reward="rule:length", weight=0.5), "calm": RewardPart(reward="rule:repetition", weight=-2.0)}
    config = rl_run(tmp_path, kind=PPOLagrangianConfig, rewards=weights, cost="rule:language")["config"]
    named = [(each.key, each.name, each.weight) for each in Setup(**run, config=config).judges()]
    assert named == [("rewards.brief.reward", "rule:length", 0.5), ("rewards.calm.reward", "rule:repetition", -2.0),
                     ("cost", "rule:language", 1.0)]
    mine = FunctionJudge(lambda prompts, responses: [0.0] * len(responses), id="mine")
    handed = [(each.key, each.name, each.judge is mine) for each in Setup(**run, config=config, judge=mine).judges()]
    assert handed == [("reward", "mine", True), ("cost", "rule:language", False)]


def test_a_finding_names_the_reward_that_is_wrong(tmp_path):
    model = setups.policy(tmp_path / "m")
    flat = function_in(tmp_path, "[2.0] * len(answers)")
    (found,) = check(**rl_run(model, rewards=several(brief="rule:length", flat=flat)))
    assert found.code == "reward-constant" and found.cause.startswith(f"rewards.flat.reward={flat} gives 2 to")
    mine = FunctionJudge(lambda prompts, responses: [0.0] * len(responses), id="mine")
    (found,) = check(**rl_run(model, judge=mine))
    assert found.cause.startswith("reward=mine gives")  # and not the rule that stands in the configuration


def test_the_critic_begins_from_none_of_several_reward_models(tmp_path):
    other = str(setups.judge(tmp_path / "r", family="llama3"))
    model = setups.policy(tmp_path / "m")
    alone = check(**rl_run(model, reward=other, value="separate"))
    assert "critic-tokenizer" in {finding.code for finding in alone}
    assert check(**rl_run(model, rewards=several(brief="rule:length", helpful=other), value="separate")) == []


def leashed(name: str, *, cost: str = "", **more: Any) -> list[Finding]:
    config = SimpleNamespace(**{"reward": name, "cost": cost, "rewards": {}, "beta": 0.0, "kl_target": None, **more})
    setup = Setup("rl", config, {})
    return list(settings.kl_off(setup))


def test_a_target_does_not_stand_in_for_a_beta_of_0(tmp_path):
    assert [finding.code for finding in leashed(str(tmp_path), kl_target=6.0)] == ["kl-off"]
    assert "kl_target alone" in leashed(str(tmp_path))[0].cure
    assert leashed(str(tmp_path), beta=0.01) == leashed("rule:length") == leashed("python-spans:x.py:f") == []
    assert leashed("rule:length", cost=str(tmp_path)) == []  # a cost is held down and not pursued


class Slow:
    """An engine whose answers end after so many tokens; counts how many it was asked to finish beyond a check's first look."""

    def __init__(self, *lengths: int):
        self.lengths, self.finished = lengths, 0

    def respond(self, requests: Any) -> Any:
        for at, (prompt, sampling) in enumerate(requests):
            for index in range(sampling.n):
                length = self.lengths[(at * sampling.n + index) % len(self.lengths)]
                self.finished += sampling.max_tokens > LONGEST_ANSWER
                yield Response(prompt_id=prompt.id, text="", index=index, token_ids=(1,) * min(length, sampling.max_tokens),
                               finish="stop" if length <= sampling.max_tokens else "length")


@pytest.mark.parametrize("lengths, most, codes, finished", [
    ((200, 90, 200, 200), 100, [], 2),  # the second answer ends: the others need not
    ((200,), 100, ["all-truncated"], 8),
    ((200, 30, 200, 200), 100, [], 0),  # one has ended at once
    ((200,), LONGEST_ANSWER, ["all-truncated"], 0),
    ((100,), 100, [], 1),
])
def test_answers_run_on_until_one_ends_or_max_tokens(lengths, most, codes, finished, tmp_path):
    slow = Slow(*lengths)
    run = rl_run(setups.policy(tmp_path), max_tokens=most, engine=slow)
    del run["judge"]
    assert [finding.code for finding in answers.endings(Setup(**run))] == codes
    assert slow.finished == finished


HUNDREDS = FunctionJudge(lambda prompts, responses: [100.0 * len(r.text) for r in responses], id="hundreds")


@pytest.mark.parametrize("more, found", [
    ({"normalise_on": 0}, True),
    ({"normalise_on": 0, "score_clip": None}, False),
    ({"normalise_on": 0, "score_clip": 1e6}, False),
    ({"normalise_on": 64}, False),
])
def test_a_clip_in_deviations_does_not_suit_raw_scores(more, found, tmp_path):
    codes = [finding.code for finding in check(**rl_run(setups.policy(tmp_path), judge=HUNDREDS, **more))]
    assert codes == ["score-clip"] * found


def test_what_is_clipped_is_the_weighted_sum_of_the_rewards_without_the_cost(tmp_path):
    model = setups.policy(tmp_path / "m")
    far = function_in(tmp_path, "[100.0 * len(a.text) for a in answers]")
    for weight, codes in ((1.0, ["score-clip"]), (1e-6, [])):
        rewards = {"far": RewardPart(reward=far, weight=weight), "brief": RewardPart(reward="rule:length")}
        assert [finding.code for finding in check(**rl_run(model, rewards=rewards, normalise_on=0))] == codes
    assert check(**rl_run(model, kind=PPOLagrangianConfig, cost=far, normalise_on=0)) == []


@pytest.mark.parametrize("command, ratings, good, found", [
    ("reward", (1.0, 2.0), (True, True), False),  # a reward model learns ratings where there are any
    ("reward", (3.0, 3.0), (True, False), True),
    ("prefer", (1.0, 2.0), (True, True), True),  # KTO learns good and bad
    ("prefer", (3.0, 3.0), (True, False), False),
])
def test_labels_are_one_sided_by_what_is_learned_from_them(command, ratings, good, found):
    votes = [replace(each, rating=ratings[at % 2], desirable=good[at % 2]) for at, each in enumerate(setups.votes(8))]
    setup = Setup(command, SimpleNamespace(), {"train": votes})
    assert [finding.code for finding in words.one_sided_labels(setup)] == ["one-sided-labels"] * found


def test_a_sampler_that_cuts_is_caught_in_bfloat16_too(tmp_path):
    model = setups.policy(tmp_path, odds=0, initializer_range=0.6)
    loaded = setups.loaded_of(model)
    half = replace(loaded, model=loaded.model.to(torch.bfloat16))
    honest = check(**rl_run(model, loaded=half, max_tokens=16))
    assert "sampler-gap" not in {finding.code for finding in honest}
    cut = check(**rl_run(model, loaded=half, max_tokens=16, engine=Sampler(half, top_p=0.5)))
    assert "sampler-gap" in {finding.code for finding in cut}


def test_a_check_that_cannot_go_on_ends_the_list(tmp_path, monkeypatch):
    def blocks(setup):
        yield WARNING
        raise Blocked(ERROR)

    def never(setup):
        raise AssertionError

    monkeypatch.setattr(checking, "CHECKS", (checking.Check(("kl-off",), ("sft",), blocks), checking.Check((), ("sft",), never)))
    assert check(**sft_run(setups.policy(tmp_path))) == [WARNING, ERROR]


def test_a_missing_model_says_so_itself(tmp_path):
    with pytest.raises(UserError, match="no model named"):
        check(**sft_run(tmp_path / "none"))


def test_rows_are_spread_over_the_data():
    assert some(list(range(100)), 4) == [0, 25, 50, 75] and some([1, 2], 4) == [1, 2]
    setup = Setup("rl", None, {"train": [setups.asked(0)] * 3 + [setups.asked(1)]})
    assert len(setup.prompts) == 2


def test_errors_are_told_first():
    text = told([WARNING, ERROR])
    assert text.index("error [memory] a") < text.index("warning [kl-off] c") and "cure: b" in text


# -- the command line


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calling.write_lines(tmp_path / "chat.jsonl", calling.instructions())
    return tmp_path


WORDS = ("data=chat.jsonl", *calling.TWO_STEPS)


def test_check_says_what_is_wrong_and_how_to_mend_it(workspace):
    done = call("check", "--for", "sft", *WORDS, "max_tokens=8", "--json")
    assert done.code == 1 and not done.json["ok"] and done.json["command"] == "sft"
    (found,) = (each for each in done.json["findings"] if each["code"] == "empty-loss-mask")
    assert found["severity"] == "error" and "max_tokens=8" in found["cause"] and found["cure"] == "raise max_tokens"
    text = call("check", "--for", "sft", *WORDS, "max_tokens=8").out
    assert "error [empty-loss-mask]" in text and "cure: raise max_tokens" in text and "1 error(s)" in text


def test_check_of_a_clean_recipe_exits_with_0_and_trains_nothing(workspace):
    done = call("check", "--for", "sft", *WORDS, "max_tokens=256")
    assert done.code == 0 and "nothing wrong was found" in done.out
    assert not (workspace / "runs").exists() and len(list((workspace / ".cache" / "check").iterdir())) == 1


@pytest.mark.parametrize("text, words, command", [
    ("#   tutelage reward x\nmodel: test\n", (), "reward"),
    ("model: test\nloss: all\n", (), "sft"),
    ("algorithm: ppo\nbetta: 1\n", (), "rl"),
    ("model: test\n", ("method=kto",), "prefer"),
    ("model: test\n", ("target=tag:lang",), "classify"),
    ("model: test\n", (), None),
    ("modle: test\n", (), None),
])
def test_the_command_is_told_by_the_recipe(text, words, command, workspace):
    (workspace / "x.yaml").write_text(text)
    if command:
        assert command_of("x.yaml", words, workspace) == command
        return
    with pytest.raises(UserError, match="say which one they are for with --for"):
        command_of("x.yaml", words, workspace)


def test_errors_stop_training_unless_it_is_told_not_to_look(workspace):
    done = call("sft", *WORDS, "max_tokens=44")  # cuts the end off every answer
    assert done.code == 2 and done.err.startswith("error: the check before training found")
    assert "--no-check" in done.err and not (workspace / "runs" / "sft-0001").exists()
    assert call("sft", *WORDS, "max_tokens=44", "--no-check").code == 0


def test_warnings_are_shown_and_training_goes_on(workspace):
    done = call("sft", *WORDS, "max_tokens=256", "optim.learning_rate=1e-8", "--json")
    assert done.code == 0 and [each["code"] for each in done.json["check"]] == ["learning-rate"]
    assert "warning [learning-rate]" in done.err


def test_a_dry_run_says_what_the_check_found_and_trains_nothing(workspace):
    done = call("sft", *WORDS, "max_tokens=44", "--dry-run", "--json")
    assert done.code == 1 and [each for each in done.json["check"] if each["severity"] == "error"] and "plan" not in done.json
    assert not (workspace / "runs").exists() or not list((workspace / "runs").iterdir())


def test_no_check_and_a_resumed_run_are_not_checked(workspace):
    assert call("sft", *WORDS, "max_tokens=44", "--dry-run", "--no-check").code == 0
    assert call("sft", *WORDS, "max_tokens=44", "--no-check", "--run", "x").code == 0
    assert call("sft", "--run", "x", "--resume").code == 0
    assert not (workspace / ".cache" / "check").exists()


def test_a_checked_run_ends_with_the_same_bits_as_one_that_was_not(workspace):
    for name, more in (("a", ()), ("b", ("--no-check",))):
        assert call("sft", *WORDS, "max_tokens=256", "lora.rank=2", "--run", name, *more).code == 0
    a, b = (json.loads(line) for line in ((workspace / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1] for name in "ab"))
    clock = ("time", "seconds", "tokens_per_second", "rss_gb")
    assert {key: value for key, value in a.items() if key not in clock} == {key: value for key, value in b.items() if key not in clock}
    assert math.isfinite(a.get("loss", a.get("eval_loss")))
