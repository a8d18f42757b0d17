"""SFT: what divides the loss, what is trained on, which weights are kept, and what is left on disk."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.core.errors import UserError
from tutelage.core.files import read_json
from tutelage.core.words import Example, Message
from tutelage.models.load import load
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.sft import SFTConfig, SFTTask, sft, tokenise

ONE_STEP = LoopConfig(epochs=1, max_steps=1, rows_per_step=8, keep_best=False)
CONFIG = SFTConfig(
    model="test",
    device="cpu",
    dtype="float32",
    loop=ONE_STEP,
    optim=OptimConfig(learning_rate=1e-3, schedule="constant", warmup=0.0, clip=0.0),
)
EXAMPLES = [
    toys.chat("hi", "hello there"),
    toys.chat("a longer question than that?", "no"),
    toys.chat("x", "y" * 40),
    toys.chat("count", "1 2 3"),
    toys.chat("?", "!"),
    toys.chat("say it", "it is said, and said again"),
]


@pytest.fixture(scope="module")
def loaded():
    return load("test", dtype="float32", device="cpu")


def gradient(loaded, config: SFTConfig, examples=EXAMPLES) -> torch.Tensor:
    """The gradient of one optimiser step over all examples, as one vector."""
    model = loaded.model.requires_grad_(True)
    model.zero_grad()
    task = SFTTask(loaded, tokenise(loaded, examples, config)[0], [], config)
    for micro in task.micro(list(range(task.rows))):
        micro.loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def token_losses(loaded, example: Example) -> list[float]:
    """Nats of each token of the answer, turn end included, by transformers alone: the witness."""
    tokenizer = loaded.tokenizer
    messages = [{"role": m.role, "content": m.text} for m in example.messages]
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, messages[-1]["content"] + "<|im_end|>")]
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids[0] + ids[1]])).logits[0].double()
    return [-float(torch.log_softmax(logits[len(ids[0]) + at - 1], -1)[token]) for at, token in enumerate(ids[1])]


@pytest.mark.parametrize("normaliser", ["token", "example", "sum"])
def test_each_normaliser_means_what_its_name_says(loaded, normaliser):
    losses = [token_losses(loaded, example) for example in EXAMPLES]
    wanted = {
        "token": sum(map(sum, losses)) / sum(map(len, losses)),
        "example": sum(sum(each) / len(each) for each in losses) / len(losses),
        "sum": sum(map(sum, losses)),
    }[normaliser]
    config = replace(CONFIG, normaliser=normaliser)
    task = SFTTask(loaded, tokenise(loaded, EXAMPLES, config)[0], [], config)
    assert sum(float(micro.loss.detach()) for micro in task.micro(list(range(6)))) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("normaliser", ["token", "example", "sum"])
def test_the_gradient_does_not_depend_on_the_token_budget(loaded, normaliser):
    whole, pieces = (
        gradient(loaded, replace(CONFIG, normaliser=normaliser, loop=replace(ONE_STEP, token_budget=budget)))
        for budget in (10**6, 1)
    )
    # float32, added up in another order over six rows
    assert float((whole - pieces).norm() / whole.norm()) < 1e-5


def test_one_step_gives_the_same_weights_whatever_the_token_budget_and_the_chunk(tmp_path):
    """AdamW divides a gradient by its own size, so an element near zero may turn; compared is the whole step."""
    weights = [
        load_file(
            sft(
                replace(CONFIG, chunk=chunk, loop=replace(ONE_STEP, token_budget=budget)),
                train=EXAMPLES,
                folder=tmp_path / f"{budget}",
            ).path
            / "model.safetensors"
        )
        for budget, chunk in ((10**6, 512), (1, 3))
    ]
    start = load("test", dtype="float32", device="cpu").model.state_dict()
    moved = math.sqrt(sum(float((weights[0][name] - start[name]).square().sum()) for name in weights[0]))
    apart = math.sqrt(sum(float((weights[0][name] - weights[1][name]).square().sum()) for name in weights[0]))
    assert moved > 0.1 and apart < 0.01 * moved


def test_gradient_checkpointing_changes_memory_and_not_the_gradient(loaded):
    plain = gradient(loaded, CONFIG)
    loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loaded.model.train()
    try:
        again = gradient(loaded, CONFIG)
    finally:
        loaded.model.gradient_checkpointing_disable()
        loaded.model.eval()
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-8)


def test_completion_trains_the_answer_and_all_trains_the_question_too(loaded):
    completion = tokenise(loaded, EXAMPLES[:1], CONFIG)[0][0]
    everything = tokenise(loaded, EXAMPLES[:1], replace(CONFIG, loss="all"))[0][0]
    assert completion.token_ids == everything.token_ids
    trained = [token for token, weight in zip(completion.token_ids, completion.weights, strict=True) if weight]
    assert loaded.tokenizer.decode(trained) == "hello there<|im_end|>"
    assert everything.trained() == len(everything.token_ids) and completion.trained() == len("hello there") + 1


def test_message_weights_reach_the_loss(loaded):
    two = Example(
        messages=(
            Message(role="user", text="a"),
            Message(role="assistant", text="first", weight=0.0),
            Message(role="user", text="b"),
            Message(role="assistant", text="second"),
        )
    )
    row = tokenise(loaded, [two], CONFIG)[0][0]
    trained = [token for token, weight in zip(row.token_ids, row.weights, strict=True) if weight]
    assert loaded.tokenizer.decode(trained) == "second<|im_end|>"


def test_max_tokens_cuts_at_the_right_and_counts_what_is_left_without_an_answer(loaded):
    long = toys.chat("q" * 60, "never seen")
    rows, skipped = tokenise(loaded, [long, EXAMPLES[2]], replace(CONFIG, max_tokens=50))
    assert skipped == 1 and len(rows) == 1 and len(rows[0].token_ids) == 50
    assert rows[0].token_ids == tokenise(loaded, [EXAMPLES[2]], CONFIG)[0][0].token_ids[:50]


def test_nothing_to_train_on_is_refused_and_says_what_to_do(tmp_path):
    with pytest.raises(
        UserError, match=r"none of the 6 examples has a token to train on within max_tokens=5; raise max_tokens"
    ):
        sft(replace(CONFIG, max_tokens=5), train=EXAMPLES, folder=tmp_path / "r")


def test_the_best_weights_are_the_ones_that_are_saved(tmp_path):
    """The validation answer contradicts the training answer: its loss falls while byte statistics are learned, then rises."""
    train, val = [toys.chat("q", "aaaa")] * 4, [toys.chat("q", "aabb")]
    config = replace(
        CONFIG, loop=LoopConfig(epochs=12, rows_per_step=4, keep_best=True), optim=replace(CONFIG.optim, learning_rate=3e-3)
    )
    result = sft(config, train=train, val=val, folder=tmp_path / "best")
    losses = {row["step"]: row["eval_loss"] for row in Run(tmp_path / "best").metrics() if "eval_loss" in row}
    kept = result.outcome.best["eval_loss"]
    assert kept == min(loss for step, loss in losses.items() if step) < losses[12] - 0.5
    reloaded = load(str(result.path), dtype="float32", device="cpu")
    assert SFTTask(reloaded, [], tokenise(reloaded, val, config)[0], config).evaluate()["eval_loss"] == pytest.approx(
        kept, abs=1e-4
    )

    last = sft(replace(config, loop=replace(config.loop, keep_best=False)), train=train, val=val, folder=tmp_path / "last")
    reloaded = load(str(last.path), dtype="float32", device="cpu")
    assert SFTTask(reloaded, [], tokenise(reloaded, val, config)[0], config).evaluate()["eval_loss"] == pytest.approx(
        losses[12], abs=1e-3
    )


def test_patience_stops_early_and_says_so(tmp_path):
    train, val = [toys.chat("q", "aaaa")] * 4, [toys.chat("q", "aabb")]
    config = replace(
        CONFIG, loop=LoopConfig(epochs=40, rows_per_step=4, patience=2), optim=replace(CONFIG.optim, learning_rate=3e-3)
    )
    result = sft(config, train=train, val=val, folder=tmp_path / "r")
    rows = Run(tmp_path / "r").metrics()
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row and row["step"]]
    assert result.outcome.stopped_early and result.outcome.steps == max(row["step"] for row in rows) < 40
    assert min(losses) == losses[-3] == result.outcome.best["eval_loss"]  # two evaluations after the best one


def test_a_full_run_loads_in_plain_transformers_with_its_manifest(tmp_path):
    result = sft(CONFIG, train=EXAMPLES, folder=tmp_path / "runs" / "mine", data_id="toy@1")
    model = AutoModelForCausalLM.from_pretrained(result.path)
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    assert isinstance(model, nn.Module) and tokenizer.chat_template
    ours = load(str(result.path), dtype="float32", device="cpu").model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in model.state_dict().items())
    manifest = read_json(result.path / "manifest.json")
    assert manifest["kind"] == "sft" and manifest["run"] == "mine" and manifest["parents"][1] == "toy@1"
    assert manifest["config"]["optim"]["learning_rate"] == 1e-3 and manifest["template"] and manifest["versions"]["torch"]
    assert not [path for path in Path(result.path).iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_a_lora_run_saves_adapters_that_plain_peft_loads(tmp_path):
    result = sft(replace(CONFIG, lora=LoraConfig(rank=4)), train=EXAMPLES, folder=tmp_path / "r")
    assert (result.path / "adapter_config.json").exists() and not (result.path / "model.safetensors").exists()
    base = load("test", dtype="float32", device="cpu").model
    token_BT = torch.tensor([[104, 105, 258]])
    before = base(token_BT).logits
    adapted = PeftModel.from_pretrained(base, result.path)
    through_peft = adapted(token_BT).logits
    assert (through_peft - before).abs().max() > 1e-4  # it learned something
    ours = load(str(result.path), dtype="float32", device="cpu").model(token_BT).logits  # merged onto the base
    torch.testing.assert_close(ours, through_peft, rtol=1e-4, atol=1e-5)


def test_a_finished_run_is_not_run_again(tmp_path):
    first = sft(CONFIG, train=EXAMPLES, folder=tmp_path / "r")
    at = (first.path / "model.safetensors").stat().st_mtime_ns
    again = sft(CONFIG, train=EXAMPLES, folder=tmp_path / "r", resume=True)
    assert again.path == first.path and (again.path / "model.safetensors").stat().st_mtime_ns == at
    with pytest.raises(UserError, match="a run already stands in"):
        sft(CONFIG, train=EXAMPLES, folder=tmp_path / "r")
    with pytest.raises(UserError, match=r"begun with another configuration \(chunk: 512 then, 7 now\)"):
        sft(replace(CONFIG, chunk=7), train=EXAMPLES, folder=tmp_path / "r", resume=True)


def test_what_a_model_was_worth_before_training_is_found_once(tmp_path, monkeypatch):
    """A run that differs in nothing the figure depends on recalls it; any other finds its own."""
    evaluate, made = SFTTask.evaluate, []
    monkeypatch.setattr(SFTTask, "evaluate", lambda self: made.append(self) or evaluate(self))

    def begun(config=CONFIG, val=EXAMPLES[:3], cache=tmp_path / "cache") -> tuple[float, int]:
        """The figure of step 0, and evaluations that were made (one of them after the last step)."""
        made.clear()
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        sft(config, train=EXAMPLES, val=val, folder=folder, cache=cache)
        return next(row["eval_loss"] for row in Run(folder).metrics() if row["step"] == 0), len(made)

    there = begun(cache=None)
    assert there[1] == 2 and begun() == there  # nothing was kept yet
    assert begun(replace(CONFIG, optim=OptimConfig(learning_rate=5e-3), seed=3)) == (there[0], 1)
    trained = str(next(tmp_path.glob("*/final")))
    others = [begun(val=EXAMPLES[:2]), begun(replace(CONFIG, loss="all")), begun(replace(CONFIG, max_tokens=60)),
              begun(replace(CONFIG, model=trained)), begun(replace(CONFIG, dtype="bfloat16"))]
    assert [count for _, count in others] == [2] * len(others) and there[0] not in [loss for loss, _ in others]
    assert begun(replace(CONFIG, chunk=3))[1] == 2 and begun(replace(CONFIG, lora=LoraConfig(rank=2)))[1] == 2  # rounds otherwise

    for file in (tmp_path / "cache").iterdir():
        file.write_text("{", encoding="utf-8")
    assert begun() == there  # damaged: found anew, and kept
    assert begun() == (there[0], 1)
