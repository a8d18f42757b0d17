"""Drawing tokens: numpy and plain loops are the witnesses."""

import numpy as np
import pytest
import torch

from tutelage.core.words import Sampling
from tutelage.rollout.sampling import draw, inverse_cdf, log_probs, support, uniforms


def test_streams_are_told_apart_by_each_of_their_four_keys():
    base = {"seed": 1, "prompt_id": "p", "index": 0, "step": 0}
    first = uniforms(8, **base)
    for change in ({"seed": 2}, {"prompt_id": "q"}, {"index": 1}, {"step": 1}):
        assert not np.array_equal(uniforms(8, **base | change), first)
    assert np.array_equal(uniforms(8, **base), first)
    assert ((0 <= first) & (first < 1)).all()


def test_a_stream_never_changes_between_versions():
    # pinned: if this changes, no earlier run can be replayed
    np.testing.assert_allclose(uniforms(3, seed=7, prompt_id="abc", index=2, step=5), PINNED, rtol=0, atol=1e-15)


PINNED = [0.34270325675476443, 0.5794647701617084, 0.6204314553912691]


@pytest.mark.parametrize(("u", "token"), [
    (0.0, 1),  # token 0 has probability 0 and is never drawn
    (0.19, 1),
    (0.2, 2),  # the first cumulated probability that exceeds u
    (0.69, 2),
    (0.7, 4),  # token 3 has probability 0
    (0.999999999, 4),
])
def test_inverse_cdf_by_hand(u, token):
    p = torch.tensor([[0.0, 0.2, 0.5, 0.0, 0.3]], dtype=torch.float64)
    assert inverse_cdf(p, torch.tensor([u], dtype=torch.float64)).tolist() == [token]


def test_inverse_cdf_agrees_with_a_full_cumulative_sum():
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(4 * torch.randn(200, 1000, generator=generator), -1)  # 1000 is no multiple of the block size
    u = torch.rand(200, generator=generator, dtype=torch.float64)
    cdf = np.cumsum(p.double().numpy(), axis=1)
    want = [int(np.argmax(row > x * row[-1])) for row, x in zip(cdf, u.numpy(), strict=True)]
    assert inverse_cdf(p, u).tolist() == want


def test_inverse_cdf_never_leaves_the_vocabulary_or_picks_a_zero():
    generator = torch.Generator().manual_seed(1)
    p = torch.softmax(30 * torch.randn(300, 130, generator=generator), -1)
    p[p < 1e-6] = 0
    nearly_one = torch.full((300,), 1 - 2**-53, dtype=torch.float64)
    for u in (torch.zeros(300, dtype=torch.float64), nearly_one):
        token = inverse_cdf(p, u)
        assert (token < 130).all() and (p.gather(1, token[:, None]) > 0).all()


def test_drawn_frequencies_are_the_probabilities():
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0]]).repeat(20000, 1)
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = draw(logits, [Sampling(temperature=0.7)] * 20000, u.tolist())
    p = torch.softmax(logits[0] / 0.7, -1)
    frequency = torch.bincount(drawn.token_R, minlength=4) / 20000
    # five standard deviations of a proportion: fails by chance less than once in 10**5 seeds
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / 20000).sqrt()).all()
    torch.testing.assert_close(drawn.logp_R[0], p.log()[drawn.token_R[0]])


def plain_support(x, k, p):
    """Top-k, then top-p, in a plain loop."""
    order = sorted(range(len(x)), key=lambda i: -x[i])
    if k:
        order = order[:k]
    weight = np.exp([x[i] for i in order])
    weight /= weight.sum()
    kept, mass = [], 0.0
    for i, w in zip(order, weight, strict=True):
        if kept and mass >= p:
            break
        kept.append(i)
        mass += w
    return set(kept)


@pytest.mark.parametrize(("k", "p"), [(0, 1.0), (3, 1.0), (0, 0.5), (0, 0.9), (5, 0.8), (1, 1.0), (0, 1e-9), (99, 0.99)])
def test_support_agrees_with_a_plain_loop(k, p):
    for seed in range(5):
        x = 2 * torch.randn(40, generator=torch.Generator().manual_seed(seed))
        kept = set(torch.isfinite(support(x, top_k=k, top_p=p)).nonzero()[:, 0].tolist())
        assert kept == plain_support(x.double().tolist(), k, p)


def test_log_probs_are_renormalised_on_the_support_and_rows_do_not_mix():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = [Sampling(temperature=0.5), Sampling(temperature=2.0, top_k=4), Sampling(temperature=0, top_k=2)]
    logp = log_probs(logits, rows)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(3))
    torch.testing.assert_close(logp[0], torch.log_softmax(logits[0] / 0.5, -1))
    assert torch.isfinite(logp[1]).sum() == 4
    top = logits[1].topk(4)
    torch.testing.assert_close(logp[1, top.indices], torch.log_softmax(top.values / 2.0, -1))
    torch.testing.assert_close(logp[2], torch.log_softmax(logits[2], -1))  # greedy rows report temperature 1, uncut


def test_temperature_zero_is_the_likeliest_token_whatever_u_is():
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    rows = [Sampling(temperature=0), Sampling(temperature=1.0), Sampling(temperature=0), Sampling(temperature=1.0)]
    drawn = draw(logits, rows, [0.99, 0.99, 0.01, 0.01])
    assert drawn.token_R[[0, 2]].tolist() == logits[[0, 2]].argmax(-1).tolist()
    alone = draw(logits[[1]], [rows[1]], [0.99])
    assert alone.token_R[0] == drawn.token_R[1] and alone.logp_R[0] == drawn.logp_R[1]


def test_logits_are_left_alone_and_bfloat16_is_read_as_float32():
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    before = logits.clone()
    logp = log_probs(logits, [Sampling(temperature=0.7, top_p=0.5)] * 2)
    assert logp.dtype == torch.float32 and torch.equal(logits, before)


def test_the_short_way_at_temperature_1_draws_the_same_tokens_with_the_same_log_probs():
    """Against the way of all other settings, which a row beside it forces."""
    rng = torch.Generator().manual_seed(4)
    logits = torch.randn(40, 1000, generator=rng) * 6
    u = torch.rand(40, generator=rng, dtype=torch.float64).tolist()
    plain = [Sampling()] * 40
    short = draw(logits, plain, u)
    long = draw(torch.cat([logits, logits[:1]]), [*plain, Sampling(temperature=0.5)], [*u, 0.5])
    assert torch.equal(short.token_R, long.token_R[:40])
    torch.testing.assert_close(short.logp_R, long.logp_R[:40], rtol=1e-5, atol=2e-6)
    exact = torch.log_softmax(logits.double(), -1).gather(1, short.token_R[:, None])[:, 0]
    torch.testing.assert_close(short.logp_R.double(), exact, rtol=1e-5, atol=2e-6)
