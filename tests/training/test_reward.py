"""Reward models: groups of answers, weights, margins, smoothing, ratings, frozen layers, and what is saved."""

import math
from dataclasses import replace

import pytest
import torch
import toys
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tutelage.core.errors import UserError
from tutelage.core.words import Label, Preference
from tutelage.judges.reward_model import RewardJudge
from tutelage.models.heads import reward_model
from tutelage.models.load import load
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.reward import RewardConfig, RewardTask, groups_of, reward

CONFIG = RewardConfig(
    model="test",
    device="cpu",
    dtype="float32",
    loop=LoopConfig(max_steps=1, rows_per_step=8, keep_best=False, token_budget=4096),
    optim=OptimConfig(learning_rate=1e-3, schedule="constant", warmup=0.0),
)
HI = toys.ask("hi")


def pair(prompt, better: str, worse: str, **more) -> Preference:
    return Preference(prompt=prompt, chosen=toys.reply(prompt, better), rejected=toys.reply(prompt, worse, index=1), **more)


RANKED = [pair(HI, "best", "good"), pair(HI, "best", "bad"), pair(HI, "good", "bad")]  # all pairs of K = 3 answers
OTHERS = [pair(toys.ask(f"q{n}"), "yes " * (n + 1), "no", strength=1.0 + n % 3) for n in range(5)]


@pytest.fixture(scope="module")
def loaded():
    return load("test", dtype="float32", device="cpu")


def task_of(loaded, items, config=CONFIG) -> RewardTask:
    return RewardTask(reward_model(loaded.model, seed=config.seed), groups_of(loaded.tokenizer, items, config), [], config)


def step_loss(task: RewardTask) -> float:
    return sum(float(micro.loss.detach()) for micro in task.micro(list(range(task.rows))))


def scores(loaded, items, seed: int = 0) -> list[tuple[float, float]]:
    """Scores of chosen and rejected, each answer in a batch of its own."""
    network = reward_model(loaded.model, seed=seed)
    judge = RewardJudge(network, loaded.tokenizer, id="reward:witness", token_budget=1)
    flat = judge.scores([(item.prompt, side.text) for item in items for side in (item.chosen, item.rejected)])
    return list(zip(flat[0::2], flat[1::2], strict=True))


def bt(margin: float) -> float:
    """-log sigmoid, in plain Python."""
    return math.log1p(math.exp(-margin))


def test_all_pairs_of_a_prompt_stand_in_one_group_and_every_answer_is_run_once(loaded):
    groups = groups_of(loaded.tokenizer, [RANKED[0], OTHERS[0], *RANKED[1:]], CONFIG)
    assert [len(group.rows) for group in groups] == [3, 2] and [len(group.pairs) for group in groups] == [3, 1]
    text = [
        loaded.tokenizer.decode([t for t, w in zip(row.token_ids, row.weights, strict=True) if w]) for row in groups[0].rows
    ]
    assert text == ["best<|im_end|>", "good<|im_end|>", "bad<|im_end|>"]
    assert [(p.chosen, p.rejected) for p in groups[0].pairs] == [(0, 1), (0, 2), (1, 2)]


def test_the_pairs_of_a_group_share_a_weight_of_one(loaded):
    for group in groups_of(loaded.tokenizer, [*RANKED, *OTHERS], CONFIG):
        assert sum(p.weight for p in group.pairs) == pytest.approx(1.0)


def test_weights_of_judgements_and_strength_count(loaded):
    items = [pair(HI, "a", "b", weight=0.5, strength=3.0)]
    assert groups_of(loaded.tokenizer, items, CONFIG)[0].pairs[0].weight == 0.5
    assert groups_of(loaded.tokenizer, items, replace(CONFIG, weigh_by_strength=True))[0].pairs[0].weight == 1.5


def test_the_step_loss_is_the_mean_over_prompts_of_the_mean_over_their_pairs(loaded):
    ranked, others = scores(loaded, RANKED), scores(loaded, OTHERS)
    wanted = (sum(bt(good - bad) for good, bad in ranked) / 3 + sum(bt(good - bad) for good, bad in others)) / (1 + len(others))
    assert step_loss(task_of(loaded, [*RANKED, *OTHERS])) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("budget", [1, 150, 10**6])
def test_the_token_budget_does_not_change_the_gradient(loaded, budget):
    found = []
    for each in (budget, 300):
        task = task_of(loaded, [*RANKED, *OTHERS], replace(CONFIG, loop=replace(CONFIG.loop, token_budget=each)))
        task.network.requires_grad_(True).zero_grad()
        for micro in task.micro(list(range(task.rows))):
            micro.loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in task.network.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-5


def test_margins_ask_for_more_where_the_preference_is_stronger(loaded):
    found = scores(loaded, OTHERS)
    wanted = sum(bt(good - bad - 0.5 * (item.strength - 1)) for (good, bad), item in zip(found, OTHERS, strict=True)) / len(
        OTHERS
    )
    assert step_loss(task_of(loaded, OTHERS, replace(CONFIG, margin=0.5))) == pytest.approx(wanted, rel=1e-5)


def test_label_smoothing_and_soft_labels_meet(loaded):
    """Smoothing 0.1 on a judgement of probability 0.8: 0.1 + 0.8 * 0.8 = 0.74."""
    item = pair(HI, "yes", "no", soft_label=0.8)
    ((good, bad),) = scores(loaded, [item])
    got = step_loss(task_of(loaded, [item], replace(CONFIG, label_smoothing=0.1)))
    assert got == pytest.approx(0.74 * bt(good - bad) + 0.26 * bt(bad - good), rel=1e-5)


def test_the_centre_pins_the_origin(loaded):
    ((good, bad),) = scores(loaded, OTHERS[:1])
    assert step_loss(task_of(loaded, OTHERS[:1], replace(CONFIG, centre=0.3))) == pytest.approx(
        bt(good - bad) + 0.3 * (good + bad) ** 2, rel=1e-5
    )


def rating(prompt, text: str, value: float | None, **more) -> Label:
    return Label(prompt=prompt, response=toys.reply(prompt, text), rating=value, **more)


def test_ratings_are_squared_errors_and_thumbs_are_one_and_zero(loaded):
    items = [
        rating(HI, "fine", 3.0),
        rating(HI, "poor", None, desirable=False, weight=2.0),
        rating(toys.ask("q"), "ok", None, desirable=True),
    ]
    network = RewardJudge(reward_model(loaded.model, seed=0), loaded.tokenizer, id="reward:witness")
    got = network.scores([(item.prompt, item.response.text) for item in items])
    wanted = ((got[0] - 3) ** 2 + 2 * got[1] ** 2 + (got[2] - 1) ** 2) / 4  # by weight: 1 + 2 + 1
    assert step_loss(task_of(loaded, items)) == pytest.approx(wanted, rel=1e-5)


def test_accuracy_is_of_pairs_alone(loaded, tmp_path):
    """Ratings beside the pairs must not thin it out; where there are no pairs there is none."""
    mixed = [*OTHERS, *(rating(toys.ask(f"r{n}"), "ok", 1.0) for n in range(5))]
    right = sum(good > bad for good, bad in scores(loaded, OTHERS))
    reward(CONFIG, train=mixed, val=mixed, folder=tmp_path / "mixed")
    rows = Run(tmp_path / "mixed").metrics()
    assert rows[0]["eval_accuracy"] == pytest.approx(right / len(OTHERS), abs=1e-6)
    assert rows[1]["accuracy"] == pytest.approx(sum(good > bad for good, bad in scores(loaded, OTHERS)) / len(OTHERS), abs=0.21)
    reward(CONFIG, train=mixed[5:], val=mixed[5:], folder=tmp_path / "ratings")
    assert not any("accuracy" in key for row in Run(tmp_path / "ratings").metrics() for key in row)


def test_neither_pair_nor_rating_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pair and no rating among the 1 training records"):
        reward(CONFIG, train=[rating(HI, "x", None)], folder=tmp_path / "r")


def test_frozen_layers_stay_and_the_others_move(loaded, tmp_path):
    result = reward(replace(CONFIG, frozen_layers=2), train=OTHERS, folder=tmp_path / "r")
    before = loaded.model.get_decoder().state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(result.path).base_model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not [name for name in moved if name.startswith(("embed_tokens", "layers.0.", "layers.1."))]
    assert {"layers.2.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight", "norm.weight"} <= moved
    with pytest.raises(UserError, match=r"frozen_layers must be above 0 and below .*it has 4 layers.*got 4"):
        reward(replace(CONFIG, frozen_layers=4), train=OTHERS, folder=tmp_path / "r2")


@pytest.mark.parametrize("rank", [0, 4])
def test_plain_transformers_gives_the_same_scores(tmp_path, rank):
    """Saved with the adapters merged; the pad token of the saved tokenizer never ends a text (C33)."""
    result = reward(replace(CONFIG, lora=LoraConfig(rank=rank)), train=OTHERS, folder=tmp_path / "r")
    judge = RewardJudge.load(result.path, dtype="float32", device="cpu")
    ours = judge.scores([(item.prompt, item.chosen.text) for item in OTHERS])
    model = AutoModelForSequenceClassification.from_pretrained(result.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": item.prompt.messages[0].text}, {"role": "assistant", "content": item.chosen.text}],
            tokenize=False,
        ).rstrip("\n")
        for item in OTHERS
    ]
    with torch.no_grad():
        theirs = model(**tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")).logits[:, 0]
    # the format has no place for the head's bias, which moves every score alike
    torch.testing.assert_close(torch.tensor(ours) - ours[0], theirs - theirs[0], rtol=1e-4, atol=1e-5)


def test_faults_are_reported_together():
    with pytest.raises(ValueError) as caught:
        RewardConfig(label_smoothing=0.5, margin=-1)
    assert len(str(caught.value).split("\n")) == 2
