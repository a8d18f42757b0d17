"""The engine on this machine; transformers' generate and its plain forward pass are the witnesses."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, MistralConfig, Qwen2Config

from tutelage.core.words import Message, Prompt, Sampling
from tutelage.models.load import load
from tutelage.models.lora import adapter_off, add_lora
from tutelage.models.tiny import byte_tokenizer, tiny_llama
from tutelage.rollout.generic import GenericNet
from tutelage.rollout.llama import Linear, LlamaNet, can_prepack, supports
from tutelage.rollout.local import LocalEngine
from tutelage.text.chat import render_prompt

WORDS = ("hi", "what is 2 + 2?", "tell me a story about a small boat", "翻译：你好", "a", "bb")


def prompt(text):
    return Prompt(messages=(Message(role="user", text=text),))


def spicy(model):
    """Fresh weights answer nearly uniformly, or repeat their input; louder layers give peaks that depend on the context."""
    with torch.no_grad():
        for layer in model.model.layers:
            for parameter in layer.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(5.0)
        model.model.norm.weight.mul_(8.0)
    return model.eval()


def engine(model=None, **kwargs):
    return LocalEngine(model if model is not None else spicy(tiny_llama()), byte_tokenizer(), policy="p", **kwargs)


def small(name):
    shared = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
              "max_position_embeddings": 256, "bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 258,
              "initializer_range": 0.2}
    configs = {
        "qwen2": Qwen2Config(**shared, num_key_value_heads=2),
        "mistral": MistralConfig(**shared, num_key_value_heads=2, sliding_window=None),
        "mistral-window": MistralConfig(**shared, num_key_value_heads=2, sliding_window=8),
        "gemma3": Gemma3TextConfig(**shared, num_key_value_heads=1, head_dim=8, sliding_window=8, final_logit_softcapping=5.0),
        "gpt2": GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=257, eos_token_id=258,
                           initializer_range=0.2),
        "gpt_neox": GPTNeoXConfig(**shared),
    }
    torch.manual_seed(0)
    model = spicy(tiny_llama()) if name == "llama" else AutoModelForCausalLM.from_config(configs[name]).eval()
    if name == "qwen2":  # biases are zero at first and would hide that they are read
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.k_proj.bias, std=0.5)
            torch.nn.init.normal_(layer.self_attn.q_proj.bias, std=0.5)
    return model


MODELS = ("llama", "qwen2", "mistral", "mistral-window", "gemma3", "gpt2", "gpt_neox")


def test_which_models_take_the_fast_way():
    fast = {name for name in MODELS if supports(small(name))}
    assert fast == {"llama", "qwen2", "mistral"}


def generated(model, ids, count):
    """Witness: transformers' own greedy search on one prompt."""
    token_BT = torch.tensor([ids])
    out = model.generate(token_BT, attention_mask=torch.ones_like(token_BT), max_new_tokens=count, do_sample=False,
                         eos_token_id=258, pad_token_id=258)
    return out[0, len(ids):].tolist()


def plain_logps(model, ids, answer, temperature=1.0):
    """Witness: one plain forward pass over one sequence."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, *answer]]), use_cache=False).logits[0].double()
    logp = torch.log_softmax(logits / temperature, -1)
    return [logp[len(ids) + t - 1, token].item() for t, token in enumerate(answer)]


@pytest.mark.parametrize("prepack", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_are_those_of_generate(name, prepack):
    model = small(name)
    mine = engine(model, prepack=prepack, batch_rows=3)
    requests = [(prompt(word), Sampling(temperature=0, max_tokens=4 + 3 * at)) for at, word in enumerate(WORDS)]
    responses = {response.prompt_id: response for response in mine.respond(requests)}
    assert len(responses) == len(WORDS)
    for asked, sampling in requests:
        ids = render_prompt(mine.tokenizer, asked)
        response = responses[asked.id]
        assert list(response.token_ids) == generated(model, ids, sampling.max_tokens)
        assert response.logps == pytest.approx(plain_logps(model, ids, response.token_ids), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.3])
@pytest.mark.parametrize(("name", "tolerance"), [("test", 1e-5), ("gemma3", 1e-5), ("llama", 5e-5)])  # the last one is louder
def test_ratio_is_one_before_the_first_update(name, tolerance, temperature):  # RLHF_CORRECTNESS C8
    model = tiny_llama() if name == "test" else small(name)
    mine = engine(model, batch_rows=7)
    requests = [(prompt(word), Sampling(n=3, temperature=temperature, max_tokens=12)) for word in WORDS[:4]]
    asked = {item.id: item for item, _ in requests}
    worst = 0.0
    for response in mine.respond(requests):
        ids = render_prompt(mine.tokenizer, asked[response.prompt_id])
        trainer = plain_logps(model, ids, response.token_ids, temperature)
        worst = max(worst, max(abs(torch.tensor(a - b).exp().item() - 1) for a, b in zip(response.logps, trainer, strict=True)))
        scored = mine.score_ids([[*ids, *response.token_ids]], [len(ids)], temperature=temperature)[0]
        assert scored == pytest.approx(trainer, abs=tolerance)
    assert worst < tolerance


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_response_does_not_depend_on_the_batch_it_rode_in(name):
    model = small(name)
    requests = [(prompt(word), Sampling(n=2, temperature=1.0, max_tokens=5 + 2 * at, seed=3)) for at, word in enumerate(WORDS)]
    together = {(r.prompt_id, r.index): r for r in engine(model, batch_rows=16).respond(requests)}
    crowded = {(r.prompt_id, r.index): r for r in engine(model, batch_rows=3).respond(requests[::-1])}
    assert len(together) == len(crowded) == 2 * len(WORDS)
    for asked, sampling in requests:
        alone = {r.index: r for r in engine(model, batch_rows=1).respond([(asked, sampling)])}
        for index in (0, 1):
            key = (asked.id, index)
            assert alone[index].token_ids == together[key].token_ids == crowded[key].token_ids
            assert alone[index].id == together[key].id
    assert len({r.token_ids for r in together.values()}) > len(WORDS)  # they do differ from each other


def test_seed_step_and_index_change_the_answer():
    mine = engine()
    sampling = Sampling(n=2, max_tokens=20, seed=1)
    first = [r.token_ids for r in sorted(mine.respond([(prompt("hi"), sampling)]), key=lambda r: r.index)]
    assert first[0] != first[1]
    for changed in (Sampling(n=2, max_tokens=20, seed=2), Sampling(n=2, max_tokens=20, seed=1, step=1)):
        assert next(iter(mine.respond([(prompt("hi"), changed)]))).token_ids not in first
    again = [r.token_ids for r in sorted(mine.respond([(prompt("hi"), sampling)]), key=lambda r: r.index)]
    assert again == first


class Choir:
    """A stand-in net that says what it is told: each prompt's first id names its script."""

    def __init__(self, scripts):
        self.scripts, self.rows = scripts, []
        self.joins, self.prefills, self.steps = True, [], []

    def open(self, rows, length):
        self.room = rows

    def admit(self, prompts, copies):
        self.prefills.append(list(copies))
        new = [[ids[0], 0] for ids, count in zip(prompts, copies, strict=True) for _ in range(count)]
        self.rows += new
        assert len(self.rows) <= self.room
        return self._say(new)

    def step(self, token_ids):
        for row, token in zip(self.rows, token_ids, strict=True):
            assert token == self.scripts[row[0]][row[1]]  # the loop and the net agree on who stands where
            row[1] += 1
        self.steps.append(len(self.rows))
        return self._say(self.rows)

    def _say(self, rows):
        logits = torch.full((len(rows), 259), -50.0)
        for at, (name, position) in enumerate(rows):
            logits[at, self.scripts[name][position]] = 50.0
        return logits

    def keep(self, alive):
        order = [i for i, lives in enumerate(alive) if lives][::-1]  # any order will do, if it is told
        self.rows = [self.rows[i] for i in order]
        return order

    def close(self):
        self.rows = []


def choir(scripts, *, rows, monkeypatch, sampling=None, ends=(258,), n=1):
    mine = engine(batch_rows=rows)
    mine.ends = frozenset(ends)
    net = Choir({index: list(script) for index, script in enumerate(scripts)})
    mine._net, mine._seen = net, mine._versions()
    asked = {prompt(str(index)).id: index for index in range(len(scripts))}
    monkeypatch.setattr("tutelage.rollout.local.render_prompt", lambda tokenizer, item: [asked[item.id]])
    sampling = sampling or Sampling(max_tokens=8, n=n)
    out = list(mine.respond([(prompt(str(index)), sampling) for index in range(len(scripts))]))
    return net, {(asked[response.prompt_id], response.index): response for response in out}


@pytest.mark.parametrize("end", [10, 20, 258])
def test_any_of_several_end_tokens_ends_a_response(end, monkeypatch):  # RLHF_CORRECTNESS C13
    _, out = choir([[65, 66, end, 67, 68, 69, 70, 71]], rows=2, monkeypatch=monkeypatch, ends=(10, 20, 258))
    assert out[0, 0].token_ids == (65, 66, end) and out[0, 0].finish == "stop"
    assert out[0, 0].text == "AB"  # the end token is sampled and kept, and not said


def test_length_ends_a_response_without_an_end_token(monkeypatch):
    _, out = choir([[65] * 8], rows=1, monkeypatch=monkeypatch)
    assert out[0, 0].finish == "length" and out[0, 0].is_truncated() and out[0, 0].text == "A" * 8
    assert len(out[0, 0].logps) == 8 and max(map(abs, out[0, 0].logps)) < 1e-6


def test_stop_strings_end_a_response_and_are_not_said(monkeypatch):
    text = "yes 好\nUser: no"
    _, out = choir([text.encode()], rows=1, monkeypatch=monkeypatch,
                   sampling=Sampling(max_tokens=30, stop=("\nUser:", "never")))
    assert out[0, 0].text == "yes 好" and out[0, 0].finish == "stop"
    assert bytes(out[0, 0].token_ids).decode() == "yes 好\nUser:"  # what was sampled stays what was sampled


def test_rows_leave_when_they_finish_and_others_take_their_places(monkeypatch):
    scripts = [[65] * length + [258] for length in (1, 7, 2, 5, 3, 4, 6, 1, 2)]
    net, out = choir(scripts, rows=4, monkeypatch=monkeypatch)
    for index, script in enumerate(scripts):
        assert list(out[index, 0].token_ids) == script[:8]
    assert len(net.prefills) > 1  # newcomers joined
    assert sum(net.steps) == sum(len(script) - 1 for script in scripts)  # no finished row was ever stepped


def test_a_prompt_is_run_once_for_its_samples(monkeypatch):
    net, out = choir([[65, 258], [66, 258]], rows=8, monkeypatch=monkeypatch, n=4)
    assert net.prefills == [[4, 4]] and len(out) == 8
    net, out = choir([[65, 258], [66, 258]], rows=3, monkeypatch=monkeypatch, n=4)  # more samples than places
    assert sorted(out) == [(prompt_, index) for prompt_ in (0, 1) for index in range(4)]


def test_sampled_ids_are_returned_even_where_text_does_not_encode_back(monkeypatch):  # RLHF_CORRECTNESS C3
    broken = [0xE4, 0xBD, 65, 258]  # the first two bytes of a three-byte character
    _, out = choir([broken], rows=1, monkeypatch=monkeypatch)
    response = out[0, 0]
    assert list(response.token_ids) == broken
    assert byte_tokenizer().encode(response.text) != broken[:-1]


def test_pad_equal_to_eos_does_no_harm():  # RLHF_CORRECTNESS C1
    model = spicy(tiny_llama())
    mine = engine(model)
    assert mine.tokenizer.pad_token_id == mine.tokenizer.eos_token_id
    with torch.no_grad():  # the turn end (= pad) is likely wherever its logit is positive
        model.get_output_embeddings().weight[258] *= 3
    responses = list(mine.respond([(prompt(word), Sampling(n=4, max_tokens=10)) for word in WORDS]))
    ended = [response for response in responses if response.token_ids[-1] == 258]
    assert ended and all(response.finish == "stop" for response in ended)
    for response in ended:
        ids = render_prompt(mine.tokenizer, next(prompt(word) for word in WORDS if prompt(word).id == response.prompt_id))
        assert response.logps == pytest.approx(plain_logps(model, ids, response.token_ids), abs=1e-5)


def test_score_gives_one_log_prob_for_each_answer_token_and_the_turn_end():
    model = small("llama")
    mine = engine(model)
    items = [(prompt("hi"), "yes"), (prompt(WORDS[2]), "no, 你"), (prompt("a"), "")]
    scores = mine.score(items)
    for (asked, answer), got in zip(items, scores, strict=True):
        ids = render_prompt(mine.tokenizer, asked)
        want = plain_logps(model, ids, [*answer.encode(), 258])
        assert got == pytest.approx(want, abs=1e-5)


def test_weights_and_adapters_are_read_anew_after_a_change():
    model = add_lora(spicy(tiny_llama()), rank=4, alpha=8)
    mine = engine(model)
    ask = [(prompt("hi"), Sampling(temperature=0, max_tokens=12))]
    before = next(mine.respond(ask)).token_ids
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    after = next(mine.respond(ask))
    assert after.token_ids != before
    ids = render_prompt(mine.tokenizer, ask[0][0])
    assert after.logps == pytest.approx(plain_logps(model, ids, after.token_ids), abs=1e-4)
    with adapter_off(model):
        assert next(mine.respond(ask)).token_ids == before
    assert next(mine.respond(ask)).token_ids == after.token_ids


def test_training_mode_and_gradient_checkpointing_do_not_disturb_decoding():
    model = small("gpt2")
    ask = [(prompt(word), Sampling(temperature=0, max_tokens=6)) for word in WORDS[:3]]
    want = {r.prompt_id: r.token_ids for r in engine(model).respond(ask)}
    model.gradient_checkpointing_enable()
    model.train()
    assert {r.prompt_id: r.token_ids for r in engine(model).respond(ask)} == want
    assert model.training


def test_a_prompt_that_fills_the_context_is_an_error_and_the_others_are_answered():
    model = small("gpt2")  # 256 positions
    mine = engine(model)
    long, short = prompt("x" * 400), prompt("x" * 180)
    out = {r.prompt_id: r for r in mine.respond([(long, Sampling(max_tokens=5)), (short, Sampling(max_tokens=500))])}
    assert out[long.id].finish == "error" and out[long.id].token_ids == ()
    ids = render_prompt(mine.tokenizer, short)
    assert len(ids) + len(out[short.id].token_ids) <= 256


def test_no_requests_no_responses():
    assert list(engine().respond([])) == []
    assert engine().score([]) == []


def test_packed_and_plain_linears_agree():
    if not can_prepack(torch.float32, torch.device("cpu")):
        pytest.skip("this build of torch has no oneDNN packed linear")
    torch.manual_seed(0)
    layers = [torch.nn.Linear(48, 32), torch.nn.Linear(48, 16, bias=False)]
    x = torch.randn(5, 3, 48)
    want = torch.cat([layer(x) for layer in layers], -1)
    for prepack in (True, False):
        with torch.no_grad():
            torch.testing.assert_close(Linear(layers, prepack=prepack, dtype=torch.float32)(x), want, rtol=1e-5, atol=1e-5)


def test_unpacked_weights_are_not_copied():
    layer = torch.nn.Linear(8, 8)
    assert Linear([layer], prepack=False, dtype=torch.float32).parts[0][0].data_ptr() == layer.weight.data_ptr()


def test_bfloat16_sampler_stays_close_to_the_trainer(tmp_path):
    loaded = load("test", dtype="bfloat16", cache=tmp_path)
    mine = LocalEngine(loaded.model, loaded.tokenizer, policy="p")
    asked = prompt("hi")
    ids = render_prompt(loaded.tokenizer, asked)
    gaps = []
    for response in mine.respond([(asked, Sampling(n=8, max_tokens=16))]):
        trainer = mine.score_ids([[*ids, *response.token_ids]], [len(ids)])[0]
        gaps += (torch.tensor(response.logps).exp() - torch.tensor(trainer).exp()).abs().tolist()
    assert sum(gaps) / len(gaps) < 0.005  # RLHF_CORRECTNESS C8, bf16


def test_both_nets_give_the_same_logits_row_by_row():
    model = spicy(tiny_llama())
    prompts, copies = [[1, 2, 3], [9] * 7, [5]], [2, 1, 1]
    nets = LlamaNet(model), GenericNet(model)
    for net in nets:
        net.open(4, 20)
    seen = [[net.admit(prompts, copies)] for net in nets]
    for net, logits in zip(nets, seen, strict=True):
        logits.append(net.step([4, 5, 6, 7]))
        order = net.keep([True, False, True, True])
        tokens = [[4, 5, 6, 7][old] for old in order]
        out = net.step([token + 1 for token in tokens])
        logits.append(out[sorted(range(3), key=lambda place: order[place])])  # back in the old order
        net.close()
    for fast, plain in zip(*seen, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.embedded
def test_embedded_model_greedy_is_generate_and_ratio_is_one():
    loaded = load("smollm2-135m", dtype="float32")
    mine = LocalEngine(loaded.model, loaded.tokenizer, policy="p", batch_rows=4)
    asked = [prompt("What is the capital of France?"), prompt("Say hello in French.")]
    for response in mine.respond([(item, Sampling(temperature=0, max_tokens=16)) for item in asked]):
        ids = render_prompt(loaded.tokenizer, next(item for item in asked if item.id == response.prompt_id))
        token_BT = torch.tensor([ids])
        want = loaded.model.generate(token_BT, attention_mask=torch.ones_like(token_BT), max_new_tokens=16, do_sample=False)
        assert list(response.token_ids) == want[0, len(ids):].tolist()
        assert response.logps == pytest.approx(plain_logps(loaded.model, ids, response.token_ids), abs=1e-4)
