"""Answers drawn by a server that is given the weights of each step; a stub with vLLM's endpoints and a model of its own is the server."""

import pytest
import torch
import toys
from vllm_stub import serving

from tutelage.core.errors import UserError
from tutelage.core.words import Sampling
from tutelage.models.load import load
from tutelage.models.lora import add_lora
from tutelage.rollout.vllm import VLLMEngine
from tutelage.text.chat import render_prompt

SAMPLING = Sampling(n=3, max_tokens=6, seed=5)


@pytest.fixture(scope="module")
def babbler(tmp_path_factory):
    return toys.babbler(tmp_path_factory.mktemp("babbler"))


def engine_of(stub, babbler, folder, model=None):
    loaded = load(str(babbler), dtype="float32", device="cpu")
    return VLLMEngine(stub.address, model or loaded.model, loaded.tokenizer, policy="p", exchange=folder / "exchange", at_once=4)


def moved(model, by):
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=rng))


def gap(engine, responses, *, temperature=1.0):
    """Largest difference, in nats, between the server's log-probs and those of the model here for the same ids."""
    rows = [row for row in responses if row.token_ids]
    prompts = {prompt.id: ids for prompt, ids in engine.asked}
    found = engine.score_ids([prompts[row.prompt_id] + list(row.token_ids) for row in rows],
                             [len(prompts[row.prompt_id]) for row in rows], temperature=temperature)
    return max(abs(a - b) for row, mine in zip(rows, found, strict=True) for a, b in zip(mine, row.logps, strict=True))


def ask(engine, sampling=SAMPLING, count=3):
    prompts = [toys.ask(f"q{number}") for number in range(count)]
    engine.asked = [(prompt, render_prompt(engine.tokenizer, prompt)) for prompt in prompts]
    return list(engine.respond([(prompt, sampling) for prompt in prompts]))


def test_answers_are_the_servers_with_ids_and_logprobs_of_the_policy(babbler, tmp_path):
    with serving(babbler) as stub:
        engine = engine_of(stub, babbler, tmp_path)
        found = ask(engine)
        assert sorted((row.prompt_id, row.index) for row in found) == sorted(
            (prompt.id, index) for prompt, _ in engine.asked for index in range(3))
        assert gap(engine, found) < 1e-4
        assert all(row.text == engine._text([t for t in row.token_ids if t not in engine.ends]) for row in found)
        assert {row.finish for row in found} <= {"stop", "length"} and all(len(row.token_ids) <= 6 for row in found)
        assert len({body["seed"] for body in stub.bodies}) == 9  # each answer its own
        again = {(row.prompt_id, row.index): row.token_ids for row in ask(engine)}
        assert again == {(row.prompt_id, row.index): row.token_ids for row in found}


def test_changed_weights_are_given_before_the_next_answers_and_only_then(babbler, tmp_path):
    with serving(babbler) as stub:
        engine = engine_of(stub, babbler, tmp_path)
        ask(engine)
        ask(engine)
        assert [path for path, _ in stub.told] == ["/collective_rpc", "/reset_prefix_cache"]  # of the first: who knows what it held
        moved(engine.model, 0.05)
        changed = ask(engine)
        assert [path for path, _ in stub.told] == 2 * ["/collective_rpc", "/reset_prefix_cache"]
        assert gap(engine, changed) < 1e-4
        assert [path.name for path in engine.exchange.iterdir()] == ["weights-2"]
        engine.close()
        assert not engine.exchange.exists()


def test_adapters_are_merged_into_what_the_server_is_given(babbler, tmp_path):
    with serving(babbler) as stub:
        adapted = add_lora(load(str(babbler), dtype="float32", device="cpu").model, rank=4, alpha=8)
        moved(adapted, 0.1)
        engine = engine_of(stub, babbler, tmp_path, adapted)
        assert gap(engine, ask(engine)) < 1e-4
        plain = load(str(babbler), dtype="float32", device="cpu").model.state_dict()
        given = stub.model.state_dict()
        assert given.keys() == plain.keys() and any(not torch.equal(given[name], plain[name]) for name in given)


def test_the_key_of_the_environment_goes_with_every_request(babbler, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    with serving(babbler) as stub:
        ask(engine_of(stub, babbler, tmp_path), Sampling(max_tokens=2))
    assert stub.keys == {"Bearer sesame"}


def test_temperature_is_the_servers(babbler, tmp_path):
    with serving(babbler) as stub:
        engine = engine_of(stub, babbler, tmp_path)
        assert gap(engine, ask(engine, Sampling(n=3, max_tokens=6, temperature=0.5)), temperature=0.5) < 1e-4


@pytest.mark.parametrize(("options", "temperature", "by", "words"), [
    ({"deaf": ("/collective_rpc",)}, 1.0, 0.0, "takes no weights.*VLLM_SERVER_DEV_MODE=1"),
    ({"stale": True}, 1.0, 0.3, "is not the policy that is trained.*% in probability"),
    ({"raw": True}, 0.3, 0.3, "is not the policy that is trained.*processed_logprobs"),
    ({"change": lambda choice: choice.pop("token_ids")}, 1.0, 0.0, "no token ids and log-probs.*'token_ids'"),
    ({"change": lambda choice: choice["token_ids"].append(1)}, 1.0, 0.0, r"\d token ids and \d log-probs, wanted as many"),
], ids=["no-dev-mode", "old-weights", "raw-logprobs", "no-ids", "too-many-ids"])
def test_a_server_that_will_not_do_is_refused_in_words(babbler, tmp_path, options, temperature, by, words):
    with serving(babbler, **options) as stub:
        engine = engine_of(stub, babbler, tmp_path)
        moved(engine.model, by)
        with pytest.raises(UserError, match=words):
            ask(engine, Sampling(n=3, max_tokens=6, temperature=temperature))


def test_a_server_that_is_not_there_is_named(babbler, tmp_path):
    with serving(babbler) as stub:
        pass
    with pytest.raises(UserError, match="cannot reach http://127.0.0.1:"):
        engine_of(stub, babbler, tmp_path)
