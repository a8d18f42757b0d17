"""Chunked log-probabilities against torch on the whole logits, and that the whole logits never exist."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage.algos import cross_entropy
from tutelage.algos.cross_entropy import normalisers, token_logps

N, D, V = 23, 8, 61
# The head may be float64; the log-softmax is float32 by design, so agreement is that of float32: 2**-23 of a number near 5.
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def problem(
    seed: int = 0, dtype: torch.dtype = torch.float64, positions: int = N
) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    rng = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(positions, D, generator=rng, dtype=dtype, requires_grad=True)
    target_N = torch.randint(0, V, (positions,), generator=rng)
    head = torch.nn.Linear(D, V, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, D, generator=rng, dtype=dtype))
        head.bias.copy_(torch.randn(V, generator=rng, dtype=dtype))
    return hidden_ND, target_N, head


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.3])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_values_and_gradients_equal_torch_on_whole_logits(chunk, temperature):
    hidden, target, head = problem()
    weight = torch.linspace(0.1, 2.0, N)
    out = token_logps(hidden, target, head, temperature=temperature, chunk=chunk)
    got = torch.autograd.grad((-out.logp_N * weight).sum(), [hidden, head.weight, head.bias])

    logits = head(hidden) / temperature
    wanted_N = -F.cross_entropy(logits, target, reduction="none")
    wanted = torch.autograd.grad((-wanted_N * weight).sum(), [hidden, head.weight, head.bias])

    torch.testing.assert_close(out.logp_N.double(), wanted_N, **CLOSE)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # sums of 23 float32 numbers of size up to 10


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_equals_torch(temperature):
    hidden, target, head = problem(seed=1)
    out = token_logps(hidden, target, head, temperature=temperature, chunk=5)
    wanted = torch.distributions.Categorical(logits=head(hidden).detach() / temperature).entropy()
    torch.testing.assert_close(out.entropy_N.double(), wanted, rtol=1e-5, atol=1e-5)


def test_entropy_carries_a_gradient_only_where_asked_and_then_that_of_torch():
    hidden, target, head = problem(seed=4)
    assert not token_logps(hidden, target, head).entropy_N.requires_grad
    out = token_logps(hidden, target, head, chunk=6, entropy_grad=True)
    got = torch.autograd.grad(out.entropy_N.sum(), [hidden, head.weight])
    witness = torch.distributions.Categorical(logits=head(hidden)).entropy().sum()
    for ours, theirs in zip(got, torch.autograd.grad(witness, [hidden, head.weight]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_entropy_by_hand():
    # equal logits over 4: ln 4; one logit far above the rest: 0
    hidden = torch.tensor([[0.0, 0.0, 0.0, 0.0], [80.0, 0.0, 0.0, 0.0]])
    out = token_logps(hidden, torch.tensor([2, 0]), lambda x: x)
    assert out.entropy_N.tolist() == pytest.approx([1.3862944, 0.0], abs=1e-6)
    assert out.logp_N.tolist() == pytest.approx([-1.3862944, 0.0], abs=1e-6)


def test_without_gradient_the_numbers_are_the_same():
    hidden, target, head = problem(seed=2)
    with_grad = token_logps(hidden, target, head, chunk=4)
    with torch.no_grad():
        without = token_logps(hidden, target, head, chunk=4)
    assert torch.equal(with_grad.logp_N.detach(), without.logp_N) and torch.equal(with_grad.entropy_N, without.entropy_N)
    assert not without.logp_N.requires_grad


def test_the_log_softmax_of_a_bfloat16_head_is_float32():
    """C11: bfloat16 has 8 bits; the sum over the vocabulary must not be taken in it."""
    hidden, target, head = problem(seed=3, dtype=torch.bfloat16)
    out = token_logps(hidden, target, head)
    assert out.logp_N.dtype == out.entropy_N.dtype == torch.float32
    wanted = F.log_softmax(head(hidden).double(), dim=-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(out.logp_N.double(), wanted, **CLOSE)


def test_huge_logits_stay_finite():
    out = token_logps(torch.tensor([[3e4, -3e4, 0.0]]), torch.tensor([1]), lambda x: x)
    assert out.logp_N.item() == pytest.approx(-6e4) and out.entropy_N.item() == 0.0


class Largest(TorchDispatchMode):
    """Sees every tensor that any operation makes, in the backward pass too."""

    def __init__(self):
        super().__init__()
        self.rows = 0  # most rows among the tensors whose last axis is the vocabulary

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, torch.Tensor) and each.dim() == 2 and each.shape[-1] == V and each.shape[0] != D:
                self.rows = max(self.rows, each.shape[0])
        return out


def test_the_whole_logits_never_exist():
    hidden, target, head = problem()
    seen: list[int] = []

    def spy(chunk_ND: torch.Tensor) -> torch.Tensor:
        seen.append(chunk_ND.shape[0])
        return head(chunk_ND)

    with Largest() as whole:
        F.cross_entropy(head(hidden), target).backward()
    assert whole.rows == N  # the witness sees what we forbid
    with Largest() as largest:
        token_logps(hidden, target, spy, chunk=4).logp_N.sum().backward()
    assert largest.rows == 4
    assert sorted(seen) == [3] * 2 + [4] * 10  # 23 = 5 x 4 + 3, forwards and once more backwards


def test_no_logits_are_kept_between_forward_and_backward():
    hidden, target, head = problem()
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logps(hidden, target, head, chunk=4)
        ours = list(kept)
        F.cross_entropy(head(hidden), target)
    assert not any(len(shape) == 2 and shape[1] == V and shape[0] != D for shape in ours)  # [D, V] is the head itself
    assert any(shape == (N, V) for shape in kept)  # the witness sees what we forbid


def test_no_position_at_all():
    out = token_logps(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64), torch.nn.Linear(D, V))
    assert out.logp_N.shape == out.entropy_N.shape == (0,)


def total(kind: str, losses: list[list[float]]) -> float:
    norms = normalisers(kind, [float(len(row)) for row in losses])
    return sum(sum(row) / norm for row, norm in zip(losses, norms, strict=True))


def test_normalisers_by_hand():
    losses = [[1.0] * 10, [5.0] * 2]
    assert total("token", losses) == pytest.approx(20 / 12)  # every token alike
    assert total("example", losses) == pytest.approx(3.0)  # the mean of the rows' means, 1 and 5
    assert total("sum", losses) == pytest.approx(20.0)


def test_normalisers_count_weights_not_tokens():
    assert normalisers("token", [2.5, 0.5]) == [3.0, 3.0]
    assert normalisers("example", [2.5, 0.5]) == [5.0, 1.0]


@pytest.mark.parametrize("kind", ["token", "example", "sum"])
def test_rows_without_weight_divide_by_no_zero(kind):
    assert all(norm > 0 for norm in normalisers(kind, [0.0, 0.0]))


def test_an_unknown_normaliser_is_named():
    with pytest.raises(ValueError, match='"token", "example" or "sum", got "mean"'):
        normalisers("mean", [1.0])


def test_entropy_that_is_not_wanted_is_zero_and_changes_no_logp():
    hidden_ND = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    weight_VD = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    target_N = torch.tensor([0, 6, 3, 3, 1])
    with_it = token_logps(hidden_ND, target_N, lambda h: h @ weight_VD.T, chunk=2)
    without = token_logps(hidden_ND, target_N, lambda h: h @ weight_VD.T, chunk=2, entropy=False)
    assert torch.equal(with_it.logp_N, without.logp_N) and (with_it.entropy_N > 0).all() and (without.entropy_N == 0).all()


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_temperatures_above_one_divide_too(temperature):
    hidden, target, head = problem(seed=5)
    wanted = torch.distributions.Categorical(logits=head(hidden).detach() / temperature)
    out = token_logps(hidden, target, head, temperature=temperature)
    torch.testing.assert_close(out.logp_N.double(), wanted.log_prob(target), **CLOSE)


def calls(positions: int, *, backward: bool, **options) -> list[int]:
    """How many positions the head was given, call by call."""
    rng = torch.Generator().manual_seed(6)
    hidden_ND = torch.randn(positions, D, generator=rng, requires_grad=True)
    weight_VD = torch.randn(V, D, generator=rng)
    seen: list[int] = []

    def spy(chunk_ND: torch.Tensor) -> torch.Tensor:
        seen.append(chunk_ND.shape[0])
        return chunk_ND @ weight_VD.T

    with torch.set_grad_enabled(backward):
        logp_N = token_logps(hidden_ND, torch.zeros(positions, dtype=torch.int64), spy, **options).logp_N
    if backward:
        logp_N.sum().backward()
    return seen


def test_the_head_runs_a_second_time_only_where_there_are_several_chunks_and_a_gradient():
    """One chunk alone takes no more memory kept than made twice."""
    assert calls(5, backward=True, chunk=4) == [4, 1] + [1, 4]  # last chunk first on the way back
    assert calls(4, backward=True, chunk=4) == [4]
    assert calls(3, backward=True, chunk=4) == [3]
    assert calls(5, backward=False, chunk=4) == [4, 1]


def test_a_chunk_is_256_positions_unless_told_otherwise():
    assert calls(257, backward=False) == [256, 1]


def test_the_floor_of_a_normaliser_is_1e_8():
    assert normalisers("token", [0.004, 0.001]) == [0.005, 0.005] and normalisers("example", [0.004, 0.001]) == [0.008, 0.002]
    assert normalisers("token", [0.0, 0.0]) == [1e-8, 1e-8] and normalisers("example", [0.0, 1.0]) == [1e-8, 2.0]


class OneMatrix:
    """A head that is one matrix, as models/heads.py gives it."""

    def __init__(self, weight_VD: torch.Tensor, *, trained: bool = False):
        self.weight_VD, self.trained = weight_VD, trained

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.float() @ self.weight_VD.T

    def matrix(self) -> torch.Tensor:
        return self.weight_VD


@pytest.fixture(params=[2048, 7], ids="tile{}".format)
def tile(request, monkeypatch):
    """Tokens of the vocabulary at a time: more than there are, and a number that leaves a rest."""
    monkeypatch.setattr(cross_entropy, "TILE", request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_a_head_of_one_frozen_matrix_gives_the_same_from_half_the_products(chunk, entropy, temperature):
    hidden, target, head = problem(seed=5, dtype=torch.float32)
    head = OneMatrix(head.weight.detach() * 3)
    weight = torch.linspace(-1.0, 2.0, N)
    out = token_logps(hidden, target, head, temperature=temperature, chunk=chunk, entropy=entropy)
    (got,) = torch.autograd.grad((out.logp_N * weight).sum(), [hidden])
    logits = (hidden.double() @ head.weight_VD.double().T) / temperature
    wanted_N = -F.cross_entropy(logits, target, reduction="none")
    (wanted,) = torch.autograd.grad((wanted_N * weight).sum(), [hidden])
    torch.testing.assert_close(out.logp_N.double(), wanted_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, wanted.float(), rtol=1e-4, atol=1e-5)
    wanted_entropy = torch.distributions.Categorical(logits=logits.detach()).entropy() if entropy else torch.zeros(N)
    torch.testing.assert_close(out.entropy_N.double(), wanted_entropy.double(), rtol=1e-4, atol=1e-5)
    assert not out.entropy_N.requires_grad


def test_the_shorter_way_makes_the_logits_once_and_is_left_where_the_matrix_learns():
    hidden, target, head = problem(seed=6, dtype=torch.float32)

    class Counting(OneMatrix):
        calls = 0

        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return super().__call__(hidden)

    token_logps(hidden, target, Counting(head.weight.detach()), chunk=4).logp_N.sum().backward()
    assert Counting.calls == 0
    learning = head.weight.detach().clone().requires_grad_()
    token_logps(hidden, target, Counting(learning, trained=True), chunk=4).logp_N.sum().backward()
    assert Counting.calls > 0 and learning.grad.abs().sum() > 0


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("positions, chunk", [(65, 1000), (67, 33), (23, 11)])  # one chunk; 33 x 2 and 1; 11 x 2 and 1
def test_the_shorter_way_leaves_no_position_out_however_they_fall_into_chunks(positions, chunk):
    hidden, target, head = problem(seed=7, dtype=torch.float32, positions=positions)
    head = OneMatrix(head.weight.detach())
    out = token_logps(hidden, target, head, chunk=chunk)
    (got,) = torch.autograd.grad(out.logp_N.sum(), [hidden])
    whole = torch.distributions.Categorical(logits=hidden @ head.weight_VD.T)
    (wanted,) = torch.autograd.grad(whole.log_prob(target).sum(), [hidden])
    torch.testing.assert_close(out.logp_N, whole.log_prob(target).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.entropy_N, whole.entropy().detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_whole_logits_never_exist_on_the_shorter_way_either():
    hidden, target, head = problem(dtype=torch.float32)
    with Largest() as largest:
        token_logps(hidden, target, OneMatrix(head.weight.detach()), chunk=4).logp_N.sum().backward()
    assert largest.rows == 4


class TrainedMatrix(OneMatrix):
    """A head that is one trained matrix, as models/heads.py gives it."""

    def __init__(self, weight_VD: torch.Tensor):
        super().__init__(weight_VD, trained=True)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the logits are made through the matrix")

    def parameter(self) -> torch.Tensor:
        return self.weight_VD


def through_torch(hidden, weight_VD, target, weight_N, temperature):
    """Log-probabilities, and the gradients of their weighted sum, in float64."""
    h, w = hidden.detach().double().requires_grad_(), weight_VD.detach().double().requires_grad_()
    logp_N = -F.cross_entropy((h @ w.T) / temperature, target, reduction="none")
    return logp_N.detach(), *torch.autograd.grad((logp_N * weight_N).sum(), [h, w])


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_a_head_of_one_trained_matrix_gives_both_gradients(chunk, entropy, temperature):
    hidden, target, head = problem(seed=5, dtype=torch.float32)
    matrix = (head.weight.detach() * 3).requires_grad_()
    weight = torch.linspace(-1.0, 2.0, N)
    out = token_logps(hidden, target, TrainedMatrix(matrix), temperature=temperature, chunk=chunk, entropy=entropy)
    got = torch.autograd.grad((out.logp_N * weight).sum(), [hidden, matrix])
    wanted_N, *wanted = through_torch(hidden, matrix, target, weight.double(), temperature)
    torch.testing.assert_close(out.logp_N.double(), wanted_N, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-5)
    logits = (hidden.double() @ matrix.double().T).detach() / temperature
    wanted_entropy = torch.distributions.Categorical(logits=logits).entropy() if entropy else torch.zeros(N)
    torch.testing.assert_close(out.entropy_N.double(), wanted_entropy.double(), rtol=1e-4, atol=1e-5)
    assert not out.entropy_N.requires_grad


@pytest.mark.usefixtures("tile")
def test_a_trained_bfloat16_matrix_keeps_float32_log_probs_and_rounds_its_gradients_alone():
    rng = torch.Generator().manual_seed(7)
    hidden = (torch.randn(40, 16, generator=rng) * 2).bfloat16().requires_grad_()
    matrix = torch.randn(300, 16, generator=rng).bfloat16().requires_grad_()
    target, weight = torch.randint(0, 300, (40,), generator=rng), torch.rand(40, generator=rng) / 40
    out = token_logps(hidden, target, TrainedMatrix(matrix), chunk=8)
    got = torch.autograd.grad((out.logp_N * weight).sum(), [hidden, matrix])
    wanted_N, *wanted = through_torch(hidden, matrix, target, weight.double(), 1.0)
    assert out.logp_N.dtype == torch.float32
    torch.testing.assert_close(out.logp_N.double(), wanted_N, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 0.005  # bfloat16 rounds by up to 2**-8, in the mean half


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_logits_that_leave_the_first_tile_far_behind_do_not_overflow(monkeypatch, size, trained):
    """The largest logit stands in a later tile, some 20 or 1,200 above all of the first."""
    monkeypatch.setattr(cross_entropy, "TILE", 7)
    rng = torch.Generator().manual_seed(9)
    hidden = torch.rand(6, 8, generator=rng) * size
    hidden[1] /= 100  # one that does not overflow beside others that do
    hidden.requires_grad_()
    matrix = torch.randn(30, 8, generator=rng)
    matrix[20:23] += 5.0
    target = torch.tensor([0, 3, 20, 21, 22, 29])
    head = TrainedMatrix(matrix.requires_grad_()) if trained else OneMatrix(matrix)
    out = token_logps(hidden, target, head, chunk=4)
    got = torch.autograd.grad(out.logp_N.sum(), [hidden, matrix] if trained else [hidden])
    wanted_N, *wanted = through_torch(hidden, matrix, target, torch.ones(6).double(), 1.0)
    torch.testing.assert_close(out.logp_N.double(), wanted_N, rtol=1e-5, atol=2e-5 * size)
    for ours, theirs in zip(got, wanted, strict=False):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=5e-5 * size)
    entropy = torch.distributions.Categorical(logits=hidden.detach().double() @ matrix.detach().double().T).entropy()
    torch.testing.assert_close(out.entropy_N.double(), entropy, rtol=1e-4, atol=2e-5 * size)


def test_large_vocabularies_take_more_positions_at_a_time(monkeypatch):
    """Where a tile is a quarter of the vocabulary or less, its logits are fewer than those of a chunk would be."""
    hidden, target, head = problem(seed=6, dtype=torch.float32)
    matrix, target = head.weight.detach()[:60], target % 60
    read, rows = cross_entropy._read, []
    monkeypatch.setattr(cross_entropy, "_read", lambda hidden_nD, *rest: rows.append(len(hidden_nD)) or read(hidden_nD, *rest))
    for tile, wanted in ((16, [4, 4, 4, 4, 4, 3]), (15, [N])):
        monkeypatch.setattr(cross_entropy, "TILE", tile)
        rows.clear()
        token_logps(hidden, target, OneMatrix(matrix), chunk=4, entropy=False)
        assert rows == wanted


def test_softmaxes_too_large_to_keep_are_made_twice_instead(monkeypatch):
    hidden, target, head = problem(seed=8, dtype=torch.float32)
    matrix = head.weight.detach().requires_grad_()
    short = torch.autograd.grad(token_logps(hidden, target, TrainedMatrix(matrix), chunk=4).logp_N.sum(), [hidden, matrix])
    made: list[int] = []

    class Counted(TrainedMatrix):
        def __call__(self, chunk_ND):
            made.append(len(chunk_ND))
            return chunk_ND @ self.weight_VD.T

    def long(limit: int):
        monkeypatch.setattr(cross_entropy, "KEPT_BYTES", limit)
        made.clear()
        return torch.autograd.grad(token_logps(hidden, target, Counted(matrix), chunk=4).logp_N.sum(), [hidden, matrix])

    long(N * V * 4)
    assert not made  # just fits
    for ours, theirs in zip(long(N * V * 4 - 1), short, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert sum(made) == 2 * N


def test_a_trained_matrix_goes_the_long_way_where_the_entropy_has_a_gradient():
    hidden, target, head = problem(seed=9, dtype=torch.float32)
    matrix = head.weight.detach().requires_grad_()

    class Plain(TrainedMatrix):
        def __call__(self, chunk_ND):
            return chunk_ND @ self.weight_VD.T

    out = token_logps(hidden, target, Plain(matrix), entropy_grad=True)
    witness = torch.distributions.Categorical(logits=hidden @ matrix.T).entropy().sum()
    for ours, theirs in zip(torch.autograd.grad(out.entropy_N.sum(), [hidden, matrix]), torch.autograd.grad(witness, [hidden, matrix]),
                            strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
