"""Offline preference training: the loss of a step against full logits, the reference in its three ways, resuming, refusals."""

import gc
import math
from dataclasses import replace

import pytest
import torch
import toys
from torch.nn.functional import softplus
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tutelage.core.config import bind
from tutelage.core.errors import ConfigError, UserError
from tutelage.core.words import Label, Preference
from tutelage.models.load import load
from tutelage.models.tiny import tiny_llama
from tutelage.store.runs import CLOCK_FIELDS, Run, begin
from tutelage.training import prefer as prefer_module
from tutelage.training import reference as reference_module
from tutelage.training.actor_critic import Networks
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.prefer import PreferConfig, PreferTask, networks_of, prefer, with_reference
from tutelage.training.preference_rows import items_of
from tutelage.training.reference import reference_key
from tutelage.training.state import SaveConfig

CONFIG = PreferConfig(
    model="test",
    device="cpu",
    dtype="float32",
    loop=LoopConfig(max_steps=2, rows_per_step=4, keep_best=False, token_budget=4096),
    optim=OptimConfig(learning_rate=1e-3, schedule="constant", warmup=0.0),
)
METHODS = {  # name -> options
    "dpo": {},
    "cdpo": {"label_smoothing": 0.1},
    "robust_dpo": {"label_smoothing": 0.1},
    "ipo": {},
    "kto": {"desirable_weight": 1.2},
    "orpo": {},
    "simpo": {},
}


def with_method(method: str, **more) -> PreferConfig:
    return replace(CONFIG, method=method, **{**METHODS[method], **more})


def pair(question: str, better: str, worse: str, **more) -> Preference:
    prompt = toys.ask(question)
    return Preference(prompt=prompt, chosen=toys.reply(prompt, better), rejected=toys.reply(prompt, worse, index=1), **more)


def vote(question: str, text: str, good: bool | None, **more) -> Label:
    prompt = toys.ask(question)
    return Label(prompt=prompt, response=toys.reply(prompt, text), desirable=good, **more)


PAIRS = [pair(f"question {n}", "yes " * (n % 3 + 1), "no" + "!" * (5 * n % 7), weight=(1.0, 0.5, 2.0)[n % 3]) for n in range(8)]
PAIRS[3] = pair("question 3", "perhaps", "never", soft_label=0.8)


@pytest.fixture(scope="module")
def loaded():
    return load("test", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def moved() -> LlamaForCausalLM:
    """A policy that has left its reference, the model `test`."""
    model, rng = tiny_llama(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=rng))
    return model


def task_of(loaded, moved, config, records) -> PreferTask:
    items = items_of(loaded.tokenizer, records, method=config.method, max_tokens=config.max_tokens, seed=config.seed)
    networks = Networks(moved, reference=loaded.model if config.asks_reference() else None, heads=())
    if not config.asks_reference():
        items = [item._replace(reference=(0.0,) * len(item.rows)) for item in items]
    return PreferTask(networks, items, items, config)


def gradient(task: PreferTask, model) -> torch.Tensor:
    model.requires_grad_(True).zero_grad()
    for micro in task.micro(list(range(task.rows))):
        micro.loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def step_loss(task: PreferTask) -> float:
    return sum(float(micro.loss.detach()) for micro in task.micro(list(range(task.rows))))


# -- the loss of a step ------------------------------------------------------------------------------------------------


def full_logp(model, tokenizer, question: str, answer: str) -> tuple[torch.Tensor, int]:
    """Log-probability of an answer and its number of tokens, from transformers' full logits, one row at a time."""
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    first = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor(tokenizer(prompt + answer + "<|im_end|>")["input_ids"])
    logp_TV = model(ids[None]).logits[0].log_softmax(-1)
    chosen = [logp_TV[t - 1, ids[t]] for t in range(first, len(ids))]
    return torch.stack(chosen).sum(), len(chosen)


def witness(loaded, moved, method: str, config: PreferConfig) -> torch.Tensor:
    """The weighted mean loss of PAIRS by the papers' formulas, without any of the package's code."""
    total = weight = 0.0
    for each in PAIRS:
        question, p = each.prompt.messages[0].text, each.soft_label
        (w, nw), (l, nl) = (full_logp(moved, loaded.tokenizer, question, side.text) for side in (each.chosen, each.rejected))
        with torch.no_grad():
            sides = (each.chosen, each.rejected)
            rw, rl = (full_logp(loaded.model, loaded.tokenizer, question, side.text)[0] for side in sides)
        if method == "dpo":
            h = 0.1 * ((w - rw) - (l - rl))
            loss = p * softplus(-h) + (1 - p) * softplus(h)
        elif method == "ipo":
            h = (w - rw) / nw - (l - rl) / nl
            loss = p * (h - 5) ** 2 + (1 - p) * (h + 5) ** 2
        else:
            d = 2 * w / nw - 2 * l / nl
            loss = p * softplus(1 - d) + (1 - p) * softplus(1 + d)
        total = total + each.weight * (loss - config.sft_coef * w / nw)
        weight += each.weight
    return total / weight


@pytest.mark.parametrize("method, coef", [("dpo", 0.0), ("dpo", 0.5), ("ipo", 0.0), ("simpo", 0.0)])
def test_the_step_loss_and_its_gradient_are_those_of_full_logits_on_the_answers_alone(loaded, moved, method, coef):
    """Tokens of prompts add nothing: neither to the loss nor to the gradient."""
    config = with_method(method, sft_coef=coef)
    task = task_of(loaded, moved, config, PAIRS)
    moved.requires_grad_(True).zero_grad()
    wanted = witness(loaded, moved, method, config)
    wanted.backward()
    wanted_gradient = torch.cat([p.grad.flatten() for p in moved.parameters()])
    got = gradient(task, moved)
    assert step_loss(task) == pytest.approx(wanted.item(), rel=1e-5)
    assert float((got - wanted_gradient).norm() / wanted_gradient.norm()) < 1e-4


def test_sft_coef_raises_the_answer_that_the_judges_preferred(loaded, moved):
    """By soft_label: above 0.5 `chosen`, below it `rejected`, and of a tie neither.  Witness: the full logits."""
    prompt = ("question", "yes yes", "no!")
    records = [pair(*prompt, soft_label=p) for p in (0.8, 0.2, 0.5)]
    with torch.no_grad():
        (w, nw), (l, nl) = (full_logp(moved, loaded.tokenizer, prompt[0], text) for text in prompt[1:])
    for record, nll in zip(records, (-w / nw, -l / nl, 0.0), strict=True):
        configs = (with_method("dpo", sft_coef=coef) for coef in (0.5, 0.0))
        with_nll, without = (step_loss(task_of(loaded, moved, config, [record])) for config in configs)
        assert with_nll - without == pytest.approx(0.5 * float(nll), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method, budget", [*((method, 250) for method in METHODS), ("dpo", 1), ("kto", 1)])
def test_the_token_budget_does_not_change_the_gradient(loaded, moved, method, budget):
    records = [*PAIRS, vote("another", "well done", True), vote("another", "bah", False)] if method == "kto" else PAIRS
    config = with_method(method)
    whole = gradient(task_of(loaded, moved, replace(config, loop=replace(config.loop, token_budget=10**6)), records), moved)
    parts = gradient(task_of(loaded, moved, replace(config, loop=replace(config.loop, token_budget=budget)), records), moved)
    assert float(whole.norm()) > 0 and float((whole - parts).norm() / whole.norm()) < 1e-5


def test_kto_by_hand(loaded, moved):
    """Good and bad answers with weights, and z from each prompt with the other's answer."""
    votes = [vote("one", "a", True, weight=2.0), vote("two", "bcd", False)]
    says = lambda model, question, text: full_logp(model, loaded.tokenizer, question, text)[0].item()
    moves = lambda question, text: says(moved, question, text) - says(loaded.model, question, text)
    z = max(0.0, (moves("one", "bcd") + moves("two", "a")) / 2)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    wanted = (2 * 1.2 * (1 - sigmoid(0.5 * (moves("one", "a") - z))) + (1 - sigmoid(0.5 * (z - moves("two", "bcd"))))) / 3
    task = task_of(loaded, moved, with_method("kto", beta=0.5), votes)
    assert step_loss(task) == pytest.approx(wanted, rel=1e-5)
    row = task.evaluate()
    assert row["eval_z"] == pytest.approx(z, abs=1e-5)
    assert row["eval_chosen_logp"] == pytest.approx(says(moved, "one", "a"), rel=1e-5)
    assert row["eval_rejected_logp"] == pytest.approx(says(moved, "two", "bcd"), rel=1e-5)
    assert row["eval_chosen_reward"] == pytest.approx(0.5 * moves("one", "a"), abs=1e-5)
    assert "eval_accuracy" not in row and "eval_margin" not in row  # there are no pairs to rank


def test_kto_ranks_the_records_that_are_pairs(loaded, moved):
    rewards = []
    for each in PAIRS:
        question = each.prompt.messages[0].text
        rewards.append([0.1 * (full_logp(moved, loaded.tokenizer, question, side.text)[0]
                               - full_logp(loaded.model, loaded.tokenizer, question, side.text)[0]).item()
                        for side in (each.chosen, each.rejected)])
    weights = [each.weight for each in PAIRS]
    right = sum(weight * (w > l) for weight, (w, l) in zip(weights, rewards, strict=True)) / sum(weights)
    margin = sum(weight * (w - l) for weight, (w, l) in zip(weights, rewards, strict=True)) / sum(weights)
    for method in ("kto", "dpo"):
        row = task_of(loaded, moved, with_method(method), PAIRS).evaluate()
        assert row["eval_accuracy"] == pytest.approx(right, abs=1e-6) and row["eval_margin"] == pytest.approx(margin, abs=1e-5)
    mixed = [*PAIRS, vote("another", "well done", True)]
    assert task_of(loaded, moved, with_method("kto"), mixed).evaluate()["eval_accuracy"] == pytest.approx(right, abs=1e-6)


def test_a_record_of_weight_0_does_not_count(loaded, moved):
    for method in ("dpo", "kto"):
        config = with_method(method)
        some = [replace(each, weight=0.0 if at >= 4 else 1.0) for at, each in enumerate(PAIRS)]
        got = task_of(loaded, moved, config, some)
        half = task_of(loaded, moved, config, some)
        half.train, half.rows = half.train[:4], 4
        if method == "kto":  # z is of all rows of the step, whatever they weigh
            got._reference_point = half._reference_point = lambda items: torch.tensor(0.3)
        assert step_loss(got) == pytest.approx(step_loss(half), rel=1e-6)


def test_without_a_reference_every_answer_counts_as_equally_likely(loaded, moved):
    config = with_method("dpo", reference_free=True)
    total = 0.0
    for each in PAIRS[:3]:
        question = each.prompt.messages[0].text
        w, l = (full_logp(moved, loaded.tokenizer, question, side.text)[0] for side in (each.chosen, each.rejected))
        total += each.weight * softplus(-0.1 * (w - l)).item()
    wanted = total / sum(each.weight for each in PAIRS[:3])
    assert step_loss(task_of(loaded, moved, config, PAIRS[:3])) == pytest.approx(wanted, rel=1e-5)


# -- records -----------------------------------------------------------------------------------------------------------


def text_of(loaded, row) -> str:
    return loaded.tokenizer.decode([t for t, w in zip(row.token_ids, row.weights, strict=True) if w])


def read(loaded, records, method, **more):
    return items_of(loaded.tokenizer, records, **{"method": method, "max_tokens": 512, "seed": 0, **more})


def test_pairs_keep_their_order_and_kto_takes_votes_but_no_ties(loaded):
    tie, unsure = pair("tie", "a", "b", soft_label=0.5), pair("unsure", "c", "d", soft_label=0.2)
    records = [tie, vote("v", "good one", True), vote("v", "bad one", False), vote("v", "nobody said", None), unsure]
    assert [[text_of(loaded, row) for row in item.rows] for item in read(loaded, records, "dpo")] == [
        ["a<|im_end|>", "b<|im_end|>"], ["c<|im_end|>", "d<|im_end|>"]]
    kto = read(loaded, records, "kto")
    assert [item.good for item in kto] == [(True,), (False,), (False, True)]
    assert [text_of(loaded, item.rows[0]) for item in kto] == ["good one<|im_end|>", "bad one<|im_end|>", "c<|im_end|>"]


def test_strangers_answer_other_prompts(loaded):
    records = [*PAIRS, *(vote(f"question {n}", f"third {n}", bool(n % 2)) for n in range(8))]
    own: dict[str, set[str]] = {}
    for each in records:
        texts = (each.response.text,) if isinstance(each, Label) else (each.chosen.text, each.rejected.text)
        own.setdefault(each.prompt.messages[0].text, set()).update(f"{text}<|im_end|>" for text in texts)
    alike = {text for texts in own.values() for text in texts if sum(text in others for others in own.values()) > 1}
    unlike = 0
    for each, item in zip(records, read(loaded, records, "kto"), strict=True):
        assert len(item.strangers) == len(item.rows)
        question = each.prompt.messages[0].text
        for row in item.strangers:
            assert question in loaded.tokenizer.decode(row.token_ids)
            if text_of(loaded, row) not in alike:  # some answers were given to several prompts
                assert text_of(loaded, row) not in own[question]
                unlike += 1
    assert unlike >= 8
    assert not any(item.strangers for item in read(loaded, PAIRS, "dpo"))


def test_the_seed_alone_draws_the_strangers(loaded):
    first, same, other = (read(loaded, PAIRS, "kto", seed=seed) for seed in (0, 0, 1))
    assert first == same and [item.rows for item in first] == [item.rows for item in other] and first != other


# -- the reference -----------------------------------------------------------------------------------------------------


def curves(folder) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in CLOCK_FIELDS} for row in Run(folder).metrics()]


@pytest.mark.parametrize("method, rank", [("dpo", 0), ("kto", 0), ("kto", 4)], ids=["dpo", "kto", "kto, lora"])
def test_asking_the_reference_beforehand_or_as_it_goes_is_the_same(tmp_path, method, rank):
    found = []
    for beforehand in (True, False):
        folder = tmp_path / str(beforehand)
        config = with_method(method, precompute_reference=beforehand, lora=LoraConfig(rank=rank))
        prefer(config, train=PAIRS, val=PAIRS[:3], folder=folder)
        assert (folder / "reference").exists() is beforehand
        found.append(curves(folder))
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        keys = [key for key in one if "accuracy" not in key]  # at the reference itself it is a matter of rounding
        assert all(one[key] == pytest.approx(other[key], rel=1e-3, abs=2e-4) for key in keys), (one, other)


def models_alive() -> int:
    gc.collect()
    return sum(type(each) is LlamaForCausalLM for each in gc.get_objects())


@pytest.mark.parametrize(
    "options, models",
    [
        ({"lora": LoraConfig(rank=2)}, 1),  # the reference is the trunk with its adapters off
        ({}, 1),  # it was asked before the first step
        ({"precompute_reference": False}, 2),  # a frozen copy
        ({"method": "simpo"}, 1),
    ],
    ids=["lora", "full", "full, asked as it goes", "simpo"],
)
def test_how_many_models_are_held(tmp_path, options, models):
    before, during = models_alive(), []

    def progress(what: str, done: int, total: int) -> None:
        if what == "train":
            during.append(models_alive() - before)

    once = replace(CONFIG.loop, max_steps=1)
    prefer(replace(CONFIG, loop=once, **options), train=PAIRS, folder=tmp_path / "r", progress=progress)
    assert during == [models]


def test_with_lora_the_reference_stays_where_it_was(loaded, tmp_path, monkeypatch):
    """While the policy moves, its trunk with adapters off says what the model that was loaded said."""
    kept, seen, real = {}, [], prefer_module.networks_of
    monkeypatch.setattr(prefer_module, "networks_of", lambda *given: kept.setdefault("networks", real(*given)))
    rows = [row for item in read(loaded, PAIRS, "dpo") for row in item.rows]

    def look(what: str, done: int, total: int) -> None:
        networks = kept["networks"]
        seen.append((reference_module.reference_logps(networks, rows), reference_module.answer_logps(networks, rows).logp_B))

    prefer(replace(CONFIG, lora=LoraConfig(rank=4)), train=PAIRS, folder=tmp_path / "r", progress=look)
    wanted = reference_module.reference_logps(Networks(loaded.model, reference=loaded.model, heads=()), rows)
    assert len(seen) == 2
    for reference, policy in seen:
        torch.testing.assert_close(reference, wanted, rtol=1e-5, atol=1e-4)
        assert (policy - wanted).abs().max() > 0.01


def test_the_frozen_copy_stays_where_it_was(loaded):
    config = replace(CONFIG, precompute_reference=False)
    mine = load("test", dtype="float32", device="cpu")
    networks = networks_of(mine, config)
    rows = [row for item in read(loaded, PAIRS, "dpo") for row in item.rows]
    before = reference_module.reference_logps(networks, rows)
    with torch.no_grad():
        for p in mine.model.parameters():
            p.mul_(1.1)
    torch.testing.assert_close(reference_module.reference_logps(networks, rows), before, rtol=0, atol=0)
    assert not [name for name, p in networks.named_parameters() if p.requires_grad and not name.startswith("policy.")]


def test_what_is_kept_is_for_one_model_one_precision_and_one_set_of_rows(loaded):
    rows = [item.rows[0] for item in read(loaded, PAIRS, "dpo")]
    key = reference_key("m", torch.float32, rows)
    weights = rows[0]._replace(weights=[0.0] * len(rows[0].weights))
    others = [("n", torch.float32, rows), ("m", torch.bfloat16, rows), ("m", torch.float32, rows[:-1]),
              ("m", torch.float32, rows[::-1]), ("m", torch.float32, [weights, *rows[1:]])]
    assert key == reference_key("m", torch.float32, list(rows)) and key not in [reference_key(*other) for other in others]


def test_what_was_kept_is_used_where_it_fits_and_made_again_where_it_does_not(loaded, tmp_path, monkeypatch):
    run = begin(tmp_path / "r", kind="prefer", config={}, seed=0)
    networks = Networks(load("test", dtype="float32", device="cpu").model, reference=None, heads=())
    splits = [read(loaded, PAIRS, "dpo"), []]
    asked, said = [], []
    real = reference_module.reference_logps
    monkeypatch.setattr(reference_module, "reference_logps", lambda *given: asked.append(1) or real(*given))

    def ask(model: str) -> list:
        asked.clear()
        return with_reference(run, networks, splits, CONFIG, model=model, warn=said.append)

    first = ask("m")
    assert asked and all(len(item.reference) == 2 for item in first[0])
    assert ask("m") == first and not asked and not said
    assert ask("other") == first and asked and "was made for another model or other data" in said[0]
    file = tmp_path / "r" / "reference" / "logps.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert ask("other") == first and asked and "does not match its SHA-256" in said[1]
    (tmp_path / "r" / "reference" / "SHA256.json").unlink()
    assert ask("other") == first and asked and "SHA256.json is missing" in said[2]


# -- the run -----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killer(what: str, at: int):
    def progress(doing: str, done: int, total: int) -> None:
        if doing == what and done >= at:
            raise Killed

    return progress


def bits(folder) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "method, options, stops",
    [
        ("dpo", {}, [("reference", 1), ("train", 3)]),  # while the reference is asked, and before a checkpoint was due
        ("dpo", {"precompute_reference": False}, [("train", 4)]),
        ("kto", {"lora": LoraConfig(rank=2)}, [("train", 1), ("train", 4)]),  # before the first checkpoint: it begins anew
    ],
    ids=["dpo", "dpo, copy", "kto, lora"],
)
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, method, options, stops):
    """Weights and metrics: one evaluation stands between the kills."""
    loop = LoopConfig(epochs=2, rows_per_step=3, eval_every=2, token_budget=400)
    config = with_method(method, **options, save=SaveConfig(every_steps=1), loop=loop)
    given = {"train": PAIRS, "val": PAIRS[:3]}
    prefer(config, **given, folder=tmp_path / "whole")
    for stop in stops:
        with pytest.raises(Killed):
            prefer(config, **given, folder=tmp_path / "broken", resume=True, progress=killer(*stop))
    prefer(config, **given, folder=tmp_path / "broken", resume=True)
    assert bits(tmp_path / "broken") == bits(tmp_path / "whole")
    assert curves(tmp_path / "broken") == curves(tmp_path / "whole")


def test_resuming_does_not_ask_the_reference_again(tmp_path, monkeypatch):
    config = replace(CONFIG, save=SaveConfig(every_steps=1))
    with pytest.raises(Killed):
        prefer(config, train=PAIRS, folder=tmp_path / "r", progress=killer("train", 2))
    monkeypatch.setattr(reference_module, "reference_logps", lambda *given: pytest.fail("asked again"))
    assert prefer(config, train=PAIRS, folder=tmp_path / "r", resume=True).outcome.steps == 2


def test_a_finished_run_answers_at_once(tmp_path, monkeypatch):
    first = prefer(CONFIG, train=PAIRS, val=PAIRS, folder=tmp_path / "r")
    monkeypatch.setattr(prefer_module, "load_trainable", lambda *given, **more: pytest.fail("loaded again"))
    assert prefer(CONFIG, train=PAIRS, val=PAIRS, folder=tmp_path / "r", resume=True) == first


@pytest.mark.parametrize("method", METHODS)
def test_what_is_logged(tmp_path, method):
    """At the reference all rewards are 0 but for rounding; ORPO and SimPO have opinions from the start."""
    prefer(with_method(method), train=PAIRS, val=PAIRS, folder=tmp_path / "r")
    first, step, *_ = Run(tmp_path / "r").metrics()
    keys = {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp"}
    keys |= {"z"} if method == "kto" else set()
    assert keys | {"tokens"} <= set(step) and {f"eval_{key}" for key in keys} == set(first) - {"step", "time"}
    start = {"dpo": math.log(2), "cdpo": math.log(2), "robust_dpo": math.log(2), "ipo": 25.0, "kto": 0.55}  # 1.2 and 1, halved
    if method in start:
        assert first["eval_loss"] == pytest.approx(start[method], rel=1e-4)
        assert abs(first["eval_margin"]) < 1e-4 and abs(first["eval_chosen_reward"]) < 1e-4
    else:
        assert 0 < first["eval_accuracy"] < 1 and first["eval_chosen_reward"] < 0
    assert first["eval_chosen_logp"] < 0 and step["tokens"] > 100
    last = Run(tmp_path / "r").metrics()[-1]
    assert last["eval_loss"] < first["eval_loss"] and last["eval_margin"] > first["eval_margin"]


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
def test_the_result_is_a_plain_model_with_adapters_merged(tmp_path, rank):
    result = prefer(replace(CONFIG, lora=LoraConfig(rank=rank)), train=PAIRS, folder=tmp_path / "r")
    assert not (result.path / "adapter_config.json").exists()
    assert Run(tmp_path / "r").manifest["kind"] == "prefer"
    base = load("test", dtype="float32", device="cpu").model.state_dict()
    after = AutoModelForCausalLM.from_pretrained(result.path).state_dict()
    assert set(after) == set(base) and any(not torch.equal(value, base[name]) for name, value in after.items())


def test_frozen_layers_stay_where_they_were(tmp_path):
    result = prefer(replace(CONFIG, frozen_layers=2), train=PAIRS, folder=tmp_path / "r")
    base = load("test", dtype="float32", device="cpu").model.state_dict()
    after = AutoModelForCausalLM.from_pretrained(result.path).state_dict()
    moved = {name.removeprefix("model.") for name, value in after.items() if not torch.equal(value, base[name])}
    assert "layers.3.mlp.up_proj.weight" in moved
    assert not [name for name in moved if name.startswith(("embed_tokens", "layers.0.", "layers.1.", "lm_head"))]


# -- refusals and warnings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"method": "dop"}, "method must be one of"),
        ({"method": "dop"}, 'did you mean "dpo"'),
        ({"betta": 0.1}, 'unknown key "betta" in the top level; did you mean "beta"?'),
        ({"beta": 0}, "beta must be > 0; got 0"),
        ({"label_smoothing": 0.1}, "label_smoothing belongs to cdpo, robust_dpo, and method is dpo"),
        ({"method": "cdpo"}, "cdpo needs label_smoothing"),
        ({"method": "robust_dpo", "label_smoothing": 0.5}, "above 0 and below 0.5 (for instance 0.1); got 0.5"),
        ({"method": "orpo", "beta": 0.1}, "beta belongs to dpo, cdpo, robust_dpo, ipo, kto, simpo, and method is orpo"),
        ({"method": "orpo", "sft_coef": 1.0}, "sft_coef belongs to"),
        ({"simpo_gamma": 0.5}, "simpo_gamma belongs to simpo"),
        ({"method": "simpo", "simpo_gamma": -1}, "simpo_gamma must be >= 0; got -1"),
        ({"method": "simpo", "precompute_reference": True}, "precompute_reference belongs to"),
        ({"method": "kto", "reference_free": True}, "reference_free belongs to dpo, cdpo, robust_dpo, ipo, and method is kto"),
        ({"method": "kto", "desirable_weight": 0}, "desirable_weight must be > 0; got 0"),
        ({"reference_free": True, "precompute_reference": True}, "nothing to ask where reference_free is true"),
        ({"method": "ipo", "ipo_normalise": "mean"}, "ipo_normalise must be one of"),
        ({"max_tokens": 0}, "max_tokens must be >= 1; got 0"),
    ],
)
def test_bad_settings_are_refused_with_the_reason(options, fault):
    with pytest.raises(ConfigError) as caught:
        bind(PreferConfig, options)
    assert fault in str(caught.value)


def test_all_faults_are_reported_at_once():
    with pytest.raises(ValueError) as caught:
        PreferConfig(method="cdpo", beta=-1.0, simpo_gamma=3.0, sft_coef=-1.0)
    assert len(str(caught.value).split("\n")) == 4


def test_each_method_has_its_own_beta():
    assert PreferConfig().strength() == 0.1 and PreferConfig(method="simpo").strength() == 2.0
    assert PreferConfig(method="simpo", beta=0.1).strength() == 0.1


def test_records_that_teach_nothing_are_refused(tmp_path):
    votes = [vote("q", "a", True), vote("q", "b", False)]
    with pytest.raises(UserError, match="dpo learns from pairs .*; none of the 2 training records .* are for method=kto"):
        prefer(CONFIG, train=votes, folder=tmp_path / "a")
    with pytest.raises(UserError, match="kto learns from .*; none of the 1 training records is of use to it"):
        prefer(with_method("kto"), train=[vote("q", "a", None)], folder=tmp_path / "b")


def test_what_is_left_out_and_weights_that_do_not_fit_are_told(tmp_path):
    said: list[str] = []
    prefer(replace(CONFIG, loop=replace(CONFIG.loop, max_steps=1)), train=[*PAIRS, vote("q", "a", True)], folder=tmp_path / "a",
           warn=said.append)
    assert said == ["1 of the 9 training records are left out: dpo learns from pairs of a chosen and a rejected answer"]
    said.clear()
    kto = with_method("kto", desirable_weight=1.0, loop=replace(CONFIG.loop, max_steps=1))
    votes = [vote(f"q{n}", "yes", True) for n in range(2)] + [vote(f"q{n}", "no", False) for n in range(6)]
    prefer(kto, train=votes, folder=tmp_path / "b", warn=said.append)
    assert len(said) == 1 and "2 good and 6 bad answers count 0.333 to 1" in said[0]
    assert "set desirable_weight between 3 and 4" in said[0]
    said.clear()
    prefer(replace(kto, desirable_weight=3.0), train=votes, folder=tmp_path / "c", warn=said.append)
    assert not said
    prefer(kto, train=[vote("q", "yes", True), vote("q", "no", False)], folder=tmp_path / "d", warn=said.append)
    assert len(said) == 1 and "all answers are to one prompt" in said[0]


def test_long_prompts_lose_their_beginning_and_answers_stay(loaded):
    item = read(loaded, [pair("x" * 300, "short", "a little longer")], "dpo", max_tokens=40)[0]
    assert [len(row.token_ids) for row in item.rows] == [40, 40]
    assert [text_of(loaded, row) for row in item.rows] == ["short<|im_end|>", "a little longer<|im_end|>"]
