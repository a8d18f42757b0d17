"""Rows that share a beginning: the same hidden states and gradients as each row alone, from fewer tokens."""

import copy
import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tutelage.models.attention import quicken
from tutelage.models.prefix import can_share, families, hidden_states, pads

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}


def trunk(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = {"llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL))}[kind]()
    return made.model.eval()


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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_rows_in_one_row_without_padding_give_the_same_states_and_gradients(kind, checkpointing):
    plain = trunk(kind).double()
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
    # the two prompts once each, what follows them, and the row of its own: no padding
    assert found[1][2] == (10 + 3 + 2) + (9 + 1 + 5) + 2 and found[1][2] < found[0][2]


def test_rows_without_padding_do_not_see_one_another():
    quick = quicken(trunk("llama").double())
    token_BT, real_BT = batch([[1, 2, 3], [4, 5, 6, 7]])
    both = hidden_states(quick, token_BT, real_BT)
    token_BT[0, :3] = torch.tensor([9, 9, 9])
    changed = hidden_states(quick, token_BT, real_BT)
    assert torch.equal(both[1], changed[1]) and not torch.equal(both[0, :3], changed[0, :3])
