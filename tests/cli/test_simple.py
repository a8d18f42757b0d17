"""One call for people who know trlX: models by name or as objects, rewards as functions or classifiers, clear errors."""

import math

import pytest
import torch
import yaml
from calling import call, write_lines
from peft import PromptTuningConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

import tutelage
from tutelage.core.errors import ConfigError, UserError
from tutelage.core.words import Message, Prompt
from tutelage.judges.classifier import ClassifierJudge, log_odds, rewarded_label
from tutelage.judges.reward_model import RewardJudge
from tutelage.models.heads import reward_model, save_scalar
from tutelage.models.load import load
from tutelage.models.lora import add_lora
from tutelage.models.tiny import byte_tokenizer, tiny_llama
from tutelage.store.runs import Run

QUICK = {"max_tokens": 4, "normalise_on": 0, "lora": {"rank": 2}, "device": "cpu", "dtype": "float32"}
PROMPTS = ["Say a.", "Say b.", "Say c."]


def lengths(prompts, responses):
    return [float(len(response)) for response in responses]


def classifier(labels, *, bert=False, seed=0):
    """A random classifier of the byte tokenizer's ids."""
    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    shape = {
        "vocab_size": 259,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_labels": len(labels),
        "id2label": names,
        "label2id": {name: k for k, name in names.items()},
    }
    if bert:
        return BertForSequenceClassification(BertConfig(**shape, hidden_dropout_prob=0.5))
    return LlamaForSequenceClassification(LlamaConfig(**shape, num_key_value_heads=2, pad_token_id=None))


class Recorder:
    """A reward function that remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, responses):
        self.calls.append((prompts, responses))
        return lengths(prompts, responses)


# -- the call ------------------------------------------------------------------------------------------------------


def test_a_name_a_function_and_a_list_of_prompts_are_enough(tmp_path):
    reward = Recorder()
    made = tutelage.train(
        "test", reward_fn=reward, prompts=PROMPTS, algorithm="ppo", num_iterations=2, workspace=tmp_path, **QUICK
    )
    assert made.path == tmp_path / "runs" / "rl-0001" / "final" and made.steps == 2 and made.skipped == 0
    assert [row["step"] for row in made.metrics] == [1, 2] and all("kl" in row for row in made.metrics)
    answers = made.respond(["Say a.", "Say d."], max_tokens=3)
    assert [len(answer.token_ids) <= 3 for answer in answers] == [True, True]
    prompts, responses = reward.calls[0]
    assert sorted(set(prompts)) == PROMPTS and all(isinstance(each, str) for each in responses)
    assert len(prompts) == len(responses) == 30  # 32 answers a step, as evenly as 3 prompts allow
    assert made.metrics[0]["reward"] == pytest.approx(sum(map(len, responses)) / 30)


def test_one_string_is_one_prompt(tmp_path):
    reward = Recorder()
    tutelage.train("test", reward_fn=reward, prompts="Say a.", num_iterations=1, workspace=tmp_path, run="one", **QUICK)
    assert set(reward.calls[0][0]) == {"Say a."} and len(reward.calls[0][0]) == 32
    assert Run(tmp_path / "runs" / "one").manifest["parents"][1] == "function:Recorder"


def test_further_keywords_are_the_keys_of_a_recipe_and_every_wrong_one_is_named(tmp_path):
    made = tutelage.train(
        "test",
        reward_fn=lengths,
        prompts=PROMPTS,
        algorithm="a2c",
        num_iterations=1,
        workspace=tmp_path,
        value_coef=0.25,
        optim={"learning_rate": 1e-3},
        prompts_per_step=2,
        responses_per_prompt=3,
        **QUICK,
    )
    text = (made.path.parent / "config.yaml").read_text()
    assert "algorithm: a2c" in text and "value_coef: 0.25" in text and "responses_per_prompt: 3" in text
    with pytest.raises(ConfigError) as caught:
        tutelage.train("test", reward_fn=lengths, prompts=PROMPTS, algorithm="pppo", betta=1, workspace=tmp_path)
    assert 'did you mean "ppo"' in str(caught.value) and 'unknown key "betta"' in str(caught.value)
    with pytest.raises(UserError, match="num_iterations=3 and steps=4 are the same setting"):
        tutelage.train("test", reward_fn=lengths, prompts=PROMPTS, num_iterations=3, steps=4, workspace=tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "say what is rewarded, once"),
        ({"reward_fn": lengths, "reward": "rule:length"}, "say what is rewarded, once"),
        ({"reward_fn": lengths, "reward_model": "test"}, "say what is rewarded, once"),
        ({"reward_model": lengths}, r"a function goes to reward_fn="),
        ({"reward_fn": lengths, "prompts": []}, "prompts is empty"),
        ({"reward_fn": lengths, "prompts": ["a", 3]}, r"prompts\[1\] is 3"),
        ({"reward_fn": lengths, "prompts": ["a", "  "]}, r"prompts\[1\] is '  '"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        tutelage.train("test", workspace=tmp_path, **{"prompts": PROMPTS, **options})
    assert not (tmp_path / "runs").exists()


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="got dict"):
        tutelage.train({}, reward_fn=lengths, prompts=PROMPTS, workspace=tmp_path)


def test_a_bad_reward_names_the_prompt(tmp_path):
    with pytest.raises(UserError, match="returned nan for prompt .*Say a"):
        tutelage.train(
            "test",
            reward_fn=lambda prompts, responses: [math.nan] * len(prompts),
            prompts="Say a.",
            workspace=tmp_path,
            **QUICK,
        )


def test_a_reward_by_name_is_that_of_the_recipes(tmp_path):
    made = tutelage.train("test", reward="rule:repetition", prompts=PROMPTS, num_iterations=1, workspace=tmp_path, **QUICK)
    assert Run(made.path.parent).manifest["parents"][1] == "rule:repetition"


def begun(place, run="cut", reward_fn=lengths, **more):
    """A run that ends at its first reward: its settings, and nothing learned."""

    def stop(prompts, responses):
        raise UserError("no reward yet")

    stop.__name__ = reward_fn.__name__  # what the configuration calls it
    with pytest.raises(UserError, match="no reward yet"):
        tutelage.train("test", reward_fn=stop, workspace=place, run=run, **{"prompts": PROMPTS, **QUICK, **more})
    return yaml.safe_load((place / "runs" / run / "config.yaml").read_text())


@pytest.mark.parametrize(
    "algorithm, many, n",  # of 40 prompts a step asks `many`, each n times, the algorithm's own number
    [
        ("ppo", 16, 2),
        ("a2c", 16, 2),
        ("reinforce", 16, 2),
        ("rloo", 8, 4),
        ("remax", 32, 1),
        ("grpo", 8, 4),
        ("online_dpo", 16, 2),
        ("best_of_n", 8, 4),
        ("expert_iteration", 4, 8),
    ],
)
def test_a_step_draws_as_many_answers_to_a_prompt_as_the_algorithm_is_made_for(tmp_path, algorithm, many, n):
    config = begun(tmp_path, algorithm=algorithm, prompts=[f"Say {k}." for k in range(40)], num_iterations=1)
    assert (config["prompts_per_step"], config["responses_per_prompt"]) == (many, n)


def test_few_prompts_get_more_answers_each_and_never_fewer_than_the_algorithm_is_made_for(tmp_path):
    wanted = [("a", 3, "grpo", (3, 10)), ("b", 6, "expert_iteration", (4, 8)), ("c", 1, "ppo", (1, 32))]
    for run, count, algorithm, sizes in wanted:
        config = begun(tmp_path, run, algorithm=algorithm, prompts=[f"Say {k}." for k in range(count)], num_iterations=1)
        assert (config["prompts_per_step"], config["responses_per_prompt"]) == sizes
    config = begun(tmp_path, "d", responses_per_prompt=3, num_iterations=1)  # who says one of them gets the recipe's other
    assert (config["prompts_per_step"], config["responses_per_prompt"]) == (16, 3)


def test_prompts_may_come_from_a_generator(tmp_path):
    reward = Recorder()
    made = tutelage.train(
        "test", reward_fn=reward, prompts=(each for each in PROMPTS), num_iterations=1, workspace=tmp_path, **QUICK
    )
    assert made.steps == 1 and sorted(set(reward.calls[0][0])) == PROMPTS


@pytest.mark.parametrize(
    "reward", [{"reward_fn": lengths}, {"reward_model": "rule:repetition"}, {"reward": "rule:repetition"}, {}]
)
@pytest.mark.parametrize("option", [{"reward_tokenizer": "test"}, {"reward_label": 0}, {"reward_reads": "response"}])
def test_how_a_classifier_is_read_is_refused_where_none_is_asked(tmp_path, reward, option):
    if not reward:  # a reward model of ours
        loaded = load("test", device="cpu")
        reward = {"reward_model": save_scalar(reward_model(loaded.model), loaded.tokenizer, tmp_path / "rm",
                                              manifest={"kind": "reward"})}
    with pytest.raises(UserError, match=f"{next(iter(option))}: only a classifier given as reward_model is read so"):
        tutelage.train("test", prompts=PROMPTS, num_iterations=1, workspace=tmp_path, **reward, **option, **QUICK)
    assert not (tmp_path / "runs").exists()


# -- demonstrations ------------------------------------------------------------------------------------------------


def shown(path, answer="yes"):
    return write_lines(path, [{"instruction": f"Say {k}.", "output": answer} for k in range(12)])


def test_demonstrations_are_read_as_by_the_command(tmp_path):
    more = {"ptx_coef": 0.5, "ptx_data": str(shown(tmp_path / "shown.jsonl")), "num_iterations": 1}
    made = tutelage.train("test", reward_fn=lengths, prompts=PROMPTS, workspace=tmp_path, **more, **QUICK)
    assert made.metrics[0]["ptx_loss"] > 0


# -- going on ------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_own_prompts_only(tmp_path):
    begun(tmp_path, num_iterations=1)
    again = {"reward_fn": lengths, "num_iterations": 1, "workspace": tmp_path, "run": "cut", "resume": True, **QUICK}
    for other in ([*PROMPTS[:2], "Say d."], PROMPTS[::-1]):  # the order too: a step's prompts are drawn by their places
        with pytest.raises(UserError, match="was begun on prompts@.* and the data are prompts@"):
            tutelage.train("test", prompts=other, **again)
    assert tutelage.train("test", prompts=PROMPTS, **again).steps == 1
    with pytest.raises(UserError, match="was begun on prompts@"):  # finished, its model is of other prompts all the same
        tutelage.train("test", prompts=PROMPTS[::-1], **again)


def test_a_run_goes_on_with_its_own_demonstrations_only(tmp_path):
    file = shown(tmp_path / "shown.jsonl")
    more = {"ptx_coef": 0.5, "ptx_data": str(file), "num_iterations": 1}
    begun(tmp_path, **more)
    again = {"reward_fn": lengths, "prompts": PROMPTS, "workspace": tmp_path, "run": "cut", "resume": True, **more, **QUICK}
    shown(file, answer="no")
    with pytest.raises(UserError, match=r"was begun on prompts@(\w+)\+ptx@(\w+), and the data are prompts@\1\+ptx@(?!\2)"):
        tutelage.train("test", **again)
    shown(file)
    assert tutelage.train("test", **again).steps == 1


def test_what_is_to_go_on_has_to_be_named(tmp_path):
    begun(tmp_path, num_iterations=1)
    with pytest.raises(UserError, match="resume=True needs run="):
        tutelage.train("test", reward_fn=lengths, prompts=PROMPTS, num_iterations=1, workspace=tmp_path, resume=True, **QUICK)
    assert [each.name for each in (tmp_path / "runs").iterdir()] == ["cut"]


@pytest.mark.parametrize("run", ["../out", "a/b", "..", "", "a b"])
def test_a_run_lies_in_the_folder_of_runs(tmp_path, run):
    with pytest.raises(UserError, match="the name of a run is a folder name"):
        tutelage.train("test", reward_fn=lengths, prompts=PROMPTS, num_iterations=1, workspace=tmp_path / "w", run=run, **QUICK)
    assert not list(tmp_path.iterdir())


# -- objects -------------------------------------------------------------------------------------------------------


def test_a_loaded_model_is_trained_from_its_own_weights_and_left_as_it_was(tmp_path):
    model = tiny_llama(seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = tutelage.train(
        model, tokenizer=byte_tokenizer(), reward_fn=lengths, prompts=PROMPTS, num_iterations=1, workspace=tmp_path, **QUICK
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = load(str(tmp_path / "runs" / "rl-0001" / "given"), device="cpu", dtype="float32").model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.items())
    trained = load(str(made.path), device="cpu", dtype="float32").model.state_dict()
    moved = [name for name, value in before.items() if not torch.equal(trained[name], value)]
    assert (
        moved and (trained["model.embed_tokens.weight"] - before["model.embed_tokens.weight"]).abs().max() == 0
    )  # LoRA: linears


def test_a_model_with_adapters_is_trained_from_what_it_computes(tmp_path):
    """Its base has no name and was changed in memory: an adapter alone would lose it."""
    tokens = torch.arange(40, 60)[None]
    model = add_lora(tiny_llama(seed=3), rank=2, alpha=4.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "layernorm" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        wanted = model.eval()(input_ids=tokens).logits
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = tutelage.train(
        model, tokenizer=byte_tokenizer(), reward_fn=lengths, prompts=PROMPTS, num_iterations=1, workspace=tmp_path, **QUICK
    )
    given = made.path.parent / "given"
    with torch.no_grad():
        got = load(str(given), device="cpu", dtype="float32").model(input_ids=tokens).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    after = model.state_dict()  # still with its adapters
    assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())


def test_adapters_that_are_no_change_of_weights_are_refused(tmp_path):
    model = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="PROMPT_TUNING, which cannot be merged into a plain model"):
        tutelage.train(model, tokenizer=byte_tokenizer(), reward_fn=lengths, prompts=PROMPTS, workspace=tmp_path, **QUICK)


def test_the_tokenizer_is_taken_from_the_models_own_name(tmp_path):
    model = load("test", device="cpu").model  # name_or_path is its folder in the cache
    assert tutelage.train(model, reward_fn=lengths, prompts=PROMPTS, num_iterations=1, workspace=tmp_path, **QUICK).steps == 1
    nameless = tiny_llama()
    with pytest.raises(UserError, match="LlamaForCausalLM came as an object that has no name.*pass tokenizer="):
        tutelage.train(nameless, reward_fn=lengths, prompts=PROMPTS, workspace=tmp_path, **QUICK)
    nameless.config._name_or_path = nameless.name_or_path = str(tmp_path)  # a folder without a tokenizer
    with pytest.raises(UserError, match="no tokenizer under the name .*; pass tokenizer= as an object"):
        tutelage.train(nameless, reward_fn=lengths, prompts=PROMPTS, workspace=tmp_path, **QUICK)


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<one>"])
    with pytest.raises(UserError, match="the tokenizer has 260 tokens and the model embeds 259"):
        tutelage.train(tiny_llama(), tokenizer=tokenizer, reward_fn=lengths, prompts=PROMPTS, workspace=tmp_path, **QUICK)


def test_a_run_of_an_object_resumes_from_what_was_written(tmp_path):
    class Enough(Exception):
        pass

    def stop(what, done, total):
        if done == 1:
            raise Enough

    common = {
        "tokenizer": byte_tokenizer(),
        "reward_fn": lengths,
        "prompts": PROMPTS,
        "num_iterations": 2,
        "workspace": tmp_path,
        "save": {"every_steps": 1},
        **QUICK,
    }
    whole = tutelage.train(tiny_llama(), run="whole", **common)
    with pytest.raises(Enough):
        tutelage.train(tiny_llama(), run="cut", progress=stop, **common)
    made = tutelage.train(
        tiny_llama(seed=9), run="cut", resume=True, **common
    )  # the weights of the first call stand in the run
    with pytest.raises(UserError, match="a run already stands in .*resume=True"):
        tutelage.train(tiny_llama(seed=5), run="whole", **common)
    apart = ("time", "seconds", "samples_per_second", "rss_gb")
    rows = [[{key: value for key, value in row.items() if key not in apart} for row in each.metrics] for each in (whole, made)]
    # the checkpoint of step 1 was not written yet when progress was called: the step is done again
    assert rows[0] == rows[1]


def test_pipeline_trains_against_a_reward_model_object(tmp_path):
    rewards = classifier(["NEGATIVE", "POSITIVE"])
    pipeline = tutelage.Pipeline(
        tiny_llama(), rewards, tokenizer=byte_tokenizer(), reward_tokenizer=byte_tokenizer(), workspace=tmp_path
    )
    made = pipeline.train(prompts=PROMPTS, num_iterations=1, **QUICK)
    again = pipeline.train(prompts=PROMPTS[:1], num_iterations=1, algorithm="rloo", **QUICK)
    assert made.path.parent.name == "rl-0001" and again.path.parent.name == "rl-0002"
    assert made.metrics[0]["reward"] != 0
    with pytest.raises(UserError, match="came as an object that has no name.*pass reward_tokenizer="):
        tutelage.Pipeline("test", rewards, workspace=tmp_path).train(prompts=PROMPTS)
    with pytest.raises(UserError, match="Pipeline has no option 'beta'.*go to .train"):
        tutelage.Pipeline("test", rewards, beta=1)


def test_our_own_reward_model_by_folder_scores_as_everywhere(tmp_path):
    loaded = load("test", device="cpu")
    folder = save_scalar(reward_model(loaded.model), loaded.tokenizer, tmp_path / "rm", manifest={"kind": "reward"})
    seen = []
    judge = RewardJudge.load(folder, device="cpu", dtype="float32")
    made = tutelage.train(
        "test",
        reward_model=folder,
        prompts="Say a.",
        num_iterations=1,
        workspace=tmp_path,
        progress=lambda *a: seen.append(a),
        **{**QUICK, "missing_eos": None, "score_clip": None},
    )
    # the first step's answers are drawn by the unchanged model: draw them again
    config = {"n": 32, "max_tokens": 4, "temperature": 1.0}
    prompt = Prompt(messages=(Message(role="user", text="Say a."),))
    texts = [r.text for r in tutelage.respond("test", prompt, **config)]
    assert made.metrics[0]["reward"] == pytest.approx(sum(judge.scores([(prompt, text) for text in texts])) / 32, abs=1e-4)


# -- classifiers as rewards ----------------------------------------------------------------------------------------


def config_of(labels):
    return classifier(labels).config


@pytest.mark.parametrize(
    "labels, wanted, found",
    [
        (["LABEL_0"], None, 0),
        (["LABEL_0", "LABEL_1"], None, 1),
        (["POSITIVE", "NEGATIVE"], None, 0),
        (["negative", "other"], None, 1),
        (["toxic", "fine"], "FINE", 1),
        (["toxic", "fine"], 0, 0),
        (["a", "b", "c"], "c", 2),
    ],
)
def test_the_rewarded_label(labels, wanted, found):
    assert rewarded_label(config_of(labels), wanted) == found


@pytest.mark.parametrize(
    "labels, wanted, message",
    [
        (["toxic", "fine"], None, r"has 2 labels \(toxic, fine\).*say reward_label=NAME"),
        (["a", "b", "c"], None, "has 3 labels"),
        (["negative", "neutral", "positive"], None, "has 3 labels"),
        (["toxic", "fine"], "fin", 'no label of the reward model; did you mean "fine"'),
        (["toxic", "fine"], 2, "has labels 0 to 1"),
    ],
)
def test_a_label_that_cannot_be_known_is_asked_for(labels, wanted, message):
    with pytest.raises(UserError, match=message):
        rewarded_label(config_of(labels), wanted)


def test_log_odds_by_hand():
    logit = torch.tensor([[1.0, 3.0], [0.5, -0.5]], dtype=torch.float64)
    assert log_odds(logit, 1).tolist() == [2.0, -1.0] and log_odds(logit, 0).tolist() == [-2.0, 1.0]  # positive minus negative
    assert log_odds(torch.tensor([[4.0]]), 0).tolist() == [4.0]
    three = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    p = [math.exp(x) / sum(map(math.exp, (1, 2, 3))) for x in (1, 2, 3)]
    assert log_odds(three, 1).item() == pytest.approx(math.log(p[1] / (1 - p[1])))


TEXTS = ["ab", "a longer answer", "", "ab<|im_end|>"]
ASKED = Prompt(messages=(Message(role="user", text="Why?"),))


@pytest.mark.parametrize("bert", [False, True], ids=["decoder", "encoder"])
@pytest.mark.parametrize("reads", ["both", "response"])
def test_a_score_is_what_the_model_says_of_that_text_alone(bert, reads):
    """Witness: transformers on one unpadded text.  Batching, dropout mode and pad = eos change nothing."""
    model, tokenizer = classifier(["bad", "good"], bert=bert).train(), byte_tokenizer()
    judge = ClassifierJudge(model, tokenizer, reads=reads)
    together = judge.scores([(ASKED, text) for text in TEXTS])
    assert model.training  # as it was
    model.eval()
    for text, score in zip(TEXTS, together, strict=True):
        if reads == "both":  # ChatML, as text
            whole = f"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"
        else:
            whole = text or "<|im_end|>"
        with torch.no_grad():
            logit = model(input_ids=torch.tensor([tokenizer(whole)["input_ids"]])).logits[0]
        assert score == pytest.approx((logit[1] - logit[0]).item(), abs=1e-5)
    assert judge.scores([(ASKED, TEXTS[1])]) == pytest.approx([together[1]], abs=1e-6)


def test_question_and_answer_are_a_pair_of_texts_where_there_is_no_chat_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    model = classifier(["good"], bert=True).eval()
    with torch.no_grad():
        wanted = model(**tokenizer("Why?", "So.", return_tensors="pt")).logits.item()
    assert ClassifierJudge(model, tokenizer).scores([(ASKED, "So.")]) == pytest.approx([wanted], abs=1e-6)
    with pytest.raises(UserError, match="reward_reads must be one of both, response"):
        ClassifierJudge(model, tokenizer, reads="answer")


def test_the_names_of_runs_among_several_rewards_mean_what_they_made(trained):
    words = ["rewards.good.reward=reward-0001", "rewards.good.weight=0.5", "rewards.fresh.reward=rule:repetition"]
    done = call("rl", "tiny_ppo", "reward=rule:length", *words, "data=chat", "--dry-run", "--no-check", "--json", "--workspace", trained)
    assert done.code == 0, done.err
    assert done.json["config"]["rewards"] == {
        "good": {"reward": str(trained / "runs" / "reward-0001" / "final"), "weight": 0.5},
        "fresh": {"reward": "rule:repetition", "weight": 1.0},
    }
    done = call("rl", "tiny_ppo", *words, "data=chat", "--dry-run", "--no-check", "--workspace", trained)
    assert done.code == 2 and "give reward or rewards, not both" in done.err  # the recipe names rule:repetition
