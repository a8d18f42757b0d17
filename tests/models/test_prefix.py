"""Rows that share a beginning: the same hidden states and gradients as each row alone, from fewer tokens."""

import copy
import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tutelage.models import attention, prefix
from tutelage.models.attention import quicken
from tutelage.models.prefix import can_share, families, hidden_states, pads

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}


def trunk(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = {"llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL))}[kind]()
    return made.model.eval()


def exact(net: torch.nn.Module) -> torch.nn.Module:
    """In float64 throughout: transformers' norms round to float32 whatever the weights' type."""
    for module in net.double().modules():
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return net


def batch(rows: list[list[int]], *, garbage: int = 49) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    token_BT = torch.full((len(rows), width), garbage)
    real_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        token_BT[at, : len(row)] = torch.tensor(row)
        real_BT[at, : len(row)] = True
    return token_BT, real_BT


FIRST, SECOND = list(range(1, 11)), [9, 8, 7, 6, 5, 4, 3, 2, 1]
ROWS = [[*FIRST, 20, 21, 22], [*FIRST, 20, 30], [*FIRST], [*SECOND, 11], [*SECOND, 12, 13, 14, 15, 16], [40, 41]]


class Counting(torch.nn.Module):
    """A trunk that notes how many positions went through it."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner, self.config, self.seen = inner, inner.config, 0

    def forward(self, input_ids: torch.Tensor, **rest):
        self.seen += input_ids.numel()
        return self.inner(input_ids=input_ids, **rest)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_hidden_states_and_gradients_are_those_of_each_row_alone(kind):
    net = trunk(kind)
    token_BT, real_BT = batch(ROWS)
    weight_BTD = torch.randn(*token_BT.shape, 32, generator=torch.Generator().manual_seed(1))

    def gradients(hidden_of):
        net.zero_grad()
        loss = sum((hidden_of(at) * weight_BTD[at, : len(row)]).sum() for at, row in enumerate(ROWS))
        loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    alone = [net(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0] for row in ROWS]
    counting = Counting(net)
    shared_BTD = hidden_states(counting, token_BT, real_BT)
    assert counting.seen < token_BT.numel()
    for at, row in enumerate(ROWS):
        torch.testing.assert_close(shared_BTD[at, : len(row)], alone[at], rtol=1e-4, atol=1e-5)
    want = gradients(lambda at: net(input_ids=torch.tensor([ROWS[at]]), use_cache=False).last_hidden_state[0])
    got = gradients(lambda at: hidden_states(net, token_BT, real_BT)[at, : len(ROWS[at])])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_what_stands_in_the_padding_changes_nothing():
    net = trunk("llama")
    first, second = (hidden_states(net, *batch(ROWS, garbage=garbage)) for garbage in (0, 33))
    for at, row in enumerate(ROWS):
        assert torch.equal(first[at, : len(row)], second[at, : len(row)])


def test_families_are_neighbours_that_share_enough_to_save_something():
    found = families(*batch(ROWS))
    assert [(family.rows, family.common) for family in found] == [([0, 1, 2], 10), ([3, 4], 9), ([5], 2)]
    system = [7] * 3  # the same system prompt before questions that differ: too little of a row
    questions = [[*system, *range(10 * k, 10 * k + 9)] for k in range(1, 4)]
    assert [family.rows for family in families(*batch(questions))] == [[0], [1], [2]]


def positions(found, rows) -> int:
    """That the trunk is given, padding included."""
    lengths = [len(row) for row in rows]
    return len(found) * max(family.common + sum(lengths[at] - family.common for at in family.rows) for family in found)


def test_gathering_never_costs_more_positions_than_leaving_rows_alone():
    """One tree of eight rows and eight rows that fit nowhere: all would be padded to the tree's width."""
    system = list(range(100, 122))
    alike = [[*system, *range(10 * k, 10 * k + 20)] for k in range(1, 9)]  # 22 of 42 tokens in common: one tree of 182
    strangers = [list(range(200 + 42 * k, 242 + 42 * k)) for k in range(8)]
    found = families(*batch([*alike, *strangers]))
    assert positions(found, [*alike, *strangers]) <= 16 * 42
    assert positions(families(*batch(alike)), alike) == 22 + 8 * 20  # alone in the batch the tree pays


@pytest.mark.parametrize("seed", range(20))
def test_any_rows_take_at_most_what_they_take_alone(seed):
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randint(1, 5)):
        begin = [rng.randrange(50) for _ in range(rng.randint(1, 30))]
        rows += [[*begin, *(rng.randrange(50) for _ in range(rng.randint(1, 40)))] for _ in range(rng.randint(1, 6))]
    found = families(*batch(rows))
    assert sorted(at for family in found for at in family.rows) == list(range(len(rows)))
    assert positions(found, rows) <= len(rows) * max(map(len, rows))


def test_a_trunk_of_another_kind_gets_the_rows_as_they_are():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)).transformer.eval()
    windowed = LlamaForCausalLM(LlamaConfig(**SMALL)).model
    windowed.config.sliding_window = 8
    assert can_share(trunk("llama")) and not can_share(gpt2) and not can_share(windowed)
    counting = Counting(gpt2)
    hidden_states(counting, *batch(ROWS))
    assert counting.seen == batch(ROWS)[0].numel()


@pytest.mark.parametrize(("spared", "positions"), [
    (1, 10 + 1 + 2 + 1 + 9 + 1 + 5 + 2), (16, 10 + 3 + 2 + 10 + 14 + 2), (99, 13 + 12 + 10 + 10 + 14 + 2)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_rows_in_one_row_without_padding_give_the_same_states_and_gradients(kind, checkpointing, spared, positions, monkeypatch):
    monkeypatch.setattr(prefix, "SPARED", spared)
    plain = exact(trunk(kind))
    quick = copy.deepcopy(plain)
    quicken(quick)
    assert pads(plain) and not pads(quick)
    if checkpointing:
        quick.train()
        quick.activation_checkpointing_enable() if hasattr(quick, "activation_checkpointing_enable") else (
            quick.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False}))
    token_BT, real_BT = batch(ROWS)
    weight_BTD = torch.randn(*token_BT.shape, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for net in (plain, quick):
        counting = Counting(net)
        hidden_BTD = hidden_states(counting, token_BT, real_BT)
        ((hidden_BTD * weight_BTD)[real_BT]).sum().backward()
        found.append((hidden_BTD[real_BT], torch.cat([p.grad.flatten() for p in net.parameters()]), counting.seen))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-7, atol=1e-9)
    assert found[1][2] == positions  # what is shared once, what follows it, and the row of its own: no padding


def forest(seed: int) -> list[list[int]]:
    """Rows as answers to questions under system prompts: beginnings within beginnings, equal rows, rows that begin others."""
    rng = random.Random(seed)

    def some(least: int, most: int) -> list[int]:
        return [rng.randrange(50) for _ in range(rng.randint(least, most))]

    rows = []
    for _ in range(rng.randint(1, 3)):
        system = some(0, 12)
        for _ in range(rng.randint(1, 3)):
            question = system + some(0, 9)
            rows += [question + some(1, 8) for _ in range(rng.randint(1, 3))]
    rows += [list(rows[0]), rows[-1][:1], rows[0] + some(1, 3)]
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("spared", [1, 4, 16])
@pytest.mark.parametrize("seed", range(8))
def test_any_forest_gives_the_states_and_gradients_of_each_row_alone(seed, spared, monkeypatch):
    monkeypatch.setattr(prefix, "SPARED", spared)
    monkeypatch.setattr(attention, "KEEP", 8 if seed % 2 else 256)  # probabilities of some made again in the backward pass
    plain, rows = exact(trunk("llama")), forest(seed)
    counting = Counting(quicken(copy.deepcopy(plain)))
    token_BT, real_BT = batch(rows)
    weight_BTD = torch.randn(*token_BT.shape, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shared_BTD = hidden_states(counting, token_BT, real_BT)
    (shared_BTD * weight_BTD)[real_BT].sum().backward()
    for at, row in enumerate(rows):
        alone_TD = plain(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(shared_BTD[at, :len(row)], alone_TD, rtol=1e-9, atol=1e-9)
        (alone_TD * weight_BTD[at, :len(row)]).sum().backward()
    for (name, mine), other in zip(counting.inner.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-7, atol=1e-9, msg=name)
    if spared == 1:
        assert counting.seen == len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})  # each beginning once


@pytest.mark.parametrize("seed", range(30))
def test_a_trie_leads_every_row_through_its_own_tokens(seed, monkeypatch):
    monkeypatch.setattr(prefix, "SPARED", 1 + seed % 20)
    rows = forest(seed)
    stretches, ways = prefix.trie(rows)
    for row, way in zip(rows, ways, strict=True):
        assert [token for at in way for token in rows[stretches[at].row][stretches[at].first:stretches[at].last]] == row
        for depth, at in enumerate(way):
            assert stretches[at].before == way[:depth]
    assert all(max(each.before, default=-1) < at and each.first < each.last for at, each in enumerate(stretches))
    assert sum(each.last - each.first for each in stretches) <= sum(map(len, rows))


def test_what_many_rows_begin_with_has_its_gradient_summed_in_float32():
    """In bfloat16, a sum of two hundred terms loses what each adds."""
    rows = [[1] * 12 + [2 + at % 40, 3 + at // 40] for at in range(200)]
    exact = quicken(trunk("llama").double())
    rough = quicken(trunk("llama").bfloat16())
    found = []
    for net in (exact, rough):
        token_BT, real_BT = batch(rows)
        hidden_BTD = hidden_states(net, token_BT, real_BT)
        hidden_BTD[:, -1].double().pow(3).sum().backward()
        found.append(net.layers[0].self_attn.v_proj.weight.grad.double())
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.04


def test_rows_without_padding_do_not_see_one_another():
    quick = quicken(trunk("llama").double())
    token_BT, real_BT = batch([[1, 2, 3], [4, 5, 6, 7]])
    both = hidden_states(quick, token_BT, real_BT)
    token_BT[0, :3] = torch.tensor([9, 9, 9])
    changed = hidden_states(quick, token_BT, real_BT)
    assert torch.equal(both[1], changed[1]) and not torch.equal(both[0, :3], changed[0, :3])
