"""The one shift, against log-softmax of the whole logits; what stands in the padding; and micro-batches."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage.algos.cross_entropy import normalisers
from tutelage.text.mask import Row
from tutelage.text.pack import micro_batches
from tutelage.training.batch import Rollouts, collate, forward, hidden_states, spread, up_to_last

VOCAB = 50
# float32 through two layers: attention over another width adds in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LlamaForCausalLM(config).eval()
        with torch.no_grad():  # untrained heads are nearly uniform; spread the logits so that a wrong column shows
            net.lm_head.weight.mul_(20)
    return net


def rows() -> list[Row]:
    """Four rows of unlike length: one turn, two turns with a gap, trained from the second token on, fractions."""
    rng = torch.Generator().manual_seed(1)
    weights = [[0.0] * 4 + [1.0] * 5, [0.0] * 3 + [1.0] * 2 + [0.0] * 4 + [1.0] * 6, [0.0] + [1.0] * 3, [0.0] * 6 + [0.5] * 2]
    return [Row(torch.randint(0, VOCAB, (len(w),), generator=rng).tolist(), w) for w in weights]


def run(model: LlamaForCausalLM, batch, **options):
    return forward(model.model, model.lm_head, batch.token_BT, batch.acted_BT, **options)


# -- collate -------------------------------------------------------------------------------------------------------


def test_collate_by_hand():
    batch = collate([Row([5, 6, 7], [0.0, 0.0, 1.0]), Row([8, 9], [0.0, 0.5])], pad_id=3)
    assert batch.token_BT.tolist() == [[5, 6, 7], [8, 9, 3]] and batch.token_BT.dtype == torch.int64
    assert batch.real_BT.tolist() == [[True, True, True], [True, True, False]]
    assert batch.weight_BT.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.5, 0.0]]
    assert batch.acted_BT.tolist() == [[False, False, True], [False, True, False]]


def test_collate_pads_to_a_wanted_width_and_never_cuts():
    assert collate(rows(), pad_to=40).token_BT.shape == (4, 40)
    assert collate(rows(), pad_to=2).token_BT.shape == (4, 15)


def test_the_first_token_is_never_trained():
    """All-token rows weigh it 1; nothing stands before it to predict it."""
    batch = collate([Row([5, 6, 7], [1.0, 1.0, 1.0])])
    assert batch.weight_BT.tolist() == [[0.0, 1.0, 1.0]]
    with pytest.raises(AssertionError, match="no predecessor"):
        forward(lambda **_: None, lambda x: x, batch.token_BT, torch.ones(1, 3, dtype=torch.bool))


def test_padding_is_told_by_position_not_by_id():
    """C1: the pad id may stand among the real tokens, as the last trained one even."""
    batch = collate([Row([7, 3, 3], [0.0, 1.0, 1.0]), Row([8, 3], [0.0, 1.0])], pad_id=3)
    assert batch.real_BT.tolist() == [[True, True, True], [True, True, False]]
    assert batch.acted_BT.tolist() == [[False, True, True], [False, True, False]]


# -- forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.3])
@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_logps_equal_log_softmax_at_the_column_before(model, temperature, chunk):
    batch = collate(rows())
    out = run(model, batch, temperature=temperature, chunk=chunk)
    for at, row in enumerate(rows()):  # each row alone through the whole model: no padding, no masks, no chunks
        with torch.no_grad():
            logits = model(torch.tensor([row.token_ids])).logits[0] / temperature
        for t, (token, weight) in enumerate(zip(row.token_ids, row.weights, strict=True)):
            if weight > 0:
                distribution = torch.log_softmax(logits[t - 1].double(), dim=-1)
                assert out.logp_BT[at, t].item() == pytest.approx(distribution[token].item(), rel=1e-4, abs=1e-4)
                entropy = -(distribution.exp() * distribution).sum().item()
                assert out.entropy_BT[at, t].item() == pytest.approx(entropy, rel=1e-4, abs=1e-4)
    assert (out.logp_BT[~batch.acted_BT] == 0).all() and (out.entropy_BT[~batch.acted_BT] == 0).all()
    assert out.value_BT is None


def test_values_come_from_the_hidden_state_before(model):
    batch = collate(rows())
    head = torch.nn.Linear(32, 1)
    out = run(model, batch, value_head=lambda hidden_ND: head(hidden_ND)[:, 0])
    with torch.no_grad():
        whole = head(model.model(batch.token_BT).last_hidden_state)[..., 0]
    for at, t in batch.acted_BT.nonzero().tolist():
        assert out.value_BT[at, t].item() == pytest.approx(whole[at, t - 1].item(), rel=1e-5, abs=1e-6)
    assert (out.value_BT[~batch.acted_BT] == 0).all()


def test_what_stands_in_the_padding_changes_nothing(model):
    batch = collate(rows())
    other = batch._replace(token_BT=torch.where(batch.real_BT, batch.token_BT, 49))
    assert (other.token_BT != batch.token_BT).sum() > 15
    for got, wanted in zip(run(model, other)[:2], run(model, batch)[:2], strict=True):
        assert torch.equal(got, wanted)  # bit for bit: real tokens never look to their right


def test_more_padding_changes_nothing(model):
    wide, narrow = run(model, collate(rows(), pad_to=90)), run(model, collate(rows()))
    torch.testing.assert_close(wide.logp_BT[:, :15], narrow.logp_BT, **CLOSE)
    torch.testing.assert_close(wide.entropy_BT[:, :15], narrow.entropy_BT, **CLOSE)
    assert (wide.logp_BT[:, 15:] == 0).all()


def test_a_row_is_scored_alike_in_any_company(model):
    together = run(model, collate(rows())).logp_BT
    for at, row in enumerate(rows()):
        alone = run(model, collate([row])).logp_BT[0]
        torch.testing.assert_close(together[at, : len(alone)], alone, **CLOSE)
    turned = run(model, collate(rows()[::-1])).logp_BT.flip(0)
    torch.testing.assert_close(turned, together, **CLOSE)


def test_uncounted_tokens_get_no_gradient_of_their_own(model):
    """The head sees the acted positions and no others."""
    seen = []

    def head(hidden_ND: torch.Tensor) -> torch.Tensor:
        seen.append(hidden_ND.shape[0])
        return model.lm_head(hidden_ND)

    batch = collate(rows())
    with torch.no_grad():
        forward(model.model, head, batch.token_BT, batch.acted_BT, chunk=4)
    assert sum(seen) == int(batch.acted_BT.sum()) == 5 + 8 + 3 + 2 and max(seen) == 4


def test_hidden_states_ask_for_no_cache_and_no_mask():
    asked = {}

    class Out:
        last_hidden_state = "H"

    def decoder(**kwargs):
        asked.update(kwargs)
        return Out

    assert hidden_states(decoder, "tokens") == "H" and asked == {"input_ids": "tokens", "use_cache": False}


def test_spread_puts_values_back_and_lets_gradients_through():
    mask = torch.tensor([[False, True, False], [True, False, True]])
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    out = spread(x, mask)
    assert out.tolist() == [[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]]
    (out * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert x.grad.tolist() == [1.0, 3.0, 5.0]


# -- one optimiser step, however it is cut (C22) -------------------------------------------------------------------


def gradients(model: LlamaForCausalLM, rows: list[Row], batches: list[list[int]], kind: str) -> list[torch.Tensor]:
    model.zero_grad()
    norms = normalisers(kind, [sum(row.weights) for row in rows])
    for batch_rows in batches:
        batch = collate([rows[at] for at in batch_rows])
        loss_BT = -run(model, batch).logp_BT * batch.weight_BT
        (loss_BT.sum(1) / torch.tensor([norms[at] for at in batch_rows])).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", ["token", "example", "sum"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_micro_batching_never_changes_the_gradient(model, kind, dtype, tolerance):
    step = rows() + [Row(row.token_ids[::-1], row.weights) for row in rows()]
    net = LlamaForCausalLM(model.config).to(dtype)
    net.load_state_dict(model.state_dict())
    whole = gradients(net, step, [list(range(8))], kind)
    size = max(float(g.abs().max()) for g in whole)
    assert size > 1e-3
    cuts = [[list(range(at, at + n)) for at in range(0, 8, n)] for n in (1, 2, 4)]
    for batches in [*cuts, micro_batches([len(row.token_ids) for row in step], token_budget=30)]:
        for got, wanted in zip(gradients(net, step, batches, kind), whole, strict=True):
            assert float((got - wanted).abs().max()) <= tolerance * size


@pytest.mark.parametrize("kind", ["token", "example"])
def test_the_step_loss_equals_torch_cross_entropy(model, kind):
    step = rows()[:3]  # weights 0 and 1, which torch can say with ignore_index
    norms = normalisers(kind, [sum(row.weights) for row in step])
    batch = collate(step)
    with torch.no_grad():
        ours = float(((-run(model, batch).logp_BT * batch.weight_BT).sum(1) / torch.tensor(norms)).sum())
        logits = model(batch.token_BT).logits[:, :-1]
    labels = batch.token_BT[:, 1:].masked_fill(~batch.acted_BT[:, 1:], -100)
    each = [torch.nn.functional.cross_entropy(logits[at], labels[at]) for at in range(3)]
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert ours == pytest.approx(float(whole) if kind == "token" else float(sum(each) / 3), rel=1e-5)


# -- what the rest promises ------------------------------------------------------------------------------------------


def test_padding_is_0_unless_told_otherwise():
    assert collate([Row([5, 6, 7], [0.0, 0.0, 1.0]), Row([8, 9], [0.0, 1.0])]).token_BT.tolist() == [[5, 6, 7], [8, 9, 0]]


def test_rows_without_any_token_are_refused():
    with pytest.raises(IndexError):
        collate([Row([], []), Row([], [])])


def test_one_row_that_acts_on_its_first_token_is_enough_to_be_refused():
    acted = torch.tensor([[False, True], [True, True]])
    with pytest.raises(AssertionError, match="no predecessor"):
        forward(lambda **_: None, lambda x: x, torch.zeros(2, 2, dtype=torch.int64), acted)


def test_entropy_has_a_gradient_only_where_asked(model):
    batch = collate(rows())
    plain, asked = run(model, batch), run(model, batch, entropy_grad=True)
    assert plain.logp_BT.requires_grad and not plain.entropy_BT.requires_grad and asked.entropy_BT.requires_grad
    assert torch.equal(plain.entropy_BT, asked.entropy_BT.detach())


def test_logits_are_made_256_at_a_time_unless_told_otherwise(model):
    seen = []

    def head(hidden_ND: torch.Tensor) -> torch.Tensor:
        seen.append(hidden_ND.shape[0])
        return hidden_ND

    with torch.no_grad():
        token_BT = torch.zeros(2, 130, dtype=torch.int64)
        acted_BT = torch.ones(2, 130, dtype=torch.bool)
        acted_BT[:, 0] = False
        forward(model.model, head, token_BT, acted_BT)
    assert seen == [256, 2]  # 2 x 129


def test_a_pass_looks_at_a_row_up_to_its_last_acted_token():
    acted = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    needed = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(up_to_last(acted), needed)


def test_length_and_prompt_of_a_rollout_count_tokens():
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    acted = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    rollouts = Rollouts(**{**dict.fromkeys(Rollouts._fields), "real_BT": real, "acted_BT": acted})
    assert rollouts.lengths() == [4, 3, 2]
    assert rollouts.begins() == [2, 1, 2]  # the last row never acted: all of it is prompt


def test_rollouts_are_scored_where_nothing_else_is_said():
    """An update on rollouts that are not scored overwrites the log-probs of the sampling policy: never by accident."""
    given = [name for name in Rollouts._fields if name not in Rollouts._field_defaults]
    assert Rollouts(**dict.fromkeys(given)).scored is True
