"""The optimiser against torch.optim.AdamW and torch.optim.RMSprop in plain loops."""

import math

import pytest
import torch
from torch import nn

from tutelage.training.optim import OptimConfig, Optimizer, dithered, scale_at

PLAIN = {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0, "clip": 0.0}


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)


def data(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=rng).to(dtype), torch.randn(16, 3, generator=rng).to(dtype)


def loss(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x, y = data(step, dtype)
    return ((model(x) - y) ** 2).mean()


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_float32_equals_torch_adamw(decay, clip):
    """Weight decay on matrices only; the norm is that of all gradients together."""
    config = OptimConfig(**{**PLAIN, "weight_decay": decay, "clip": clip, "schedule": "linear", "warmup": 0.2})
    ours, theirs = net(), net()
    optimizer = Optimizer(ours.named_parameters(), config, total_updates=20)
    groups = [{"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": decay},
              {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    witness = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    scaled = torch.optim.lr_scheduler.LambdaLR(witness, lambda update: scale_at(config, update, 20))
    for step in range(20):
        loss(ours, step).backward()
        norm, lr = optimizer.step()
        loss(theirs, step).backward()
        wanted = nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf)
        assert norm == pytest.approx(float(wanted), rel=1e-4) and lr == pytest.approx(scaled.get_last_lr()[0], rel=1e-12)
        witness.step()
        witness.zero_grad()
        scaled.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        # the fused update rounds otherwise than the plain one; 20 updates of 1e-2
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert not same(parameters(ours), parameters(net()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_rmsprop_equals_torch_rmsprop(clip, dtype):
    """A2C's optimiser (alpha 0.99, eps 1e-5), schedule and clip as with AdamW; bfloat16 through float32 masters."""
    config = OptimConfig(kind="rmsprop", learning_rate=1e-3, alpha=0.9, eps=1e-5, clip=clip, schedule="cosine", warmup=0.2)
    ours = net(dtype=dtype)
    optimizer = Optimizer(ours.named_parameters(), config, total_updates=20)
    shadow = net(dtype=dtype)
    masters = [master.detach().clone().requires_grad_() for master in optimizer.masters.values()]
    witness = torch.optim.RMSprop(masters, lr=1e-3, alpha=0.9, eps=1e-5)
    scaled = torch.optim.lr_scheduler.LambdaLR(witness, lambda update: scale_at(config, update, 20))
    for step in range(20):
        loss(ours, step, dtype).backward()
        norm, _ = optimizer.step()
        loss(shadow, step, dtype).backward()
        for master, p in zip(masters, shadow.parameters(), strict=True):
            master.grad, p.grad = p.grad.float(), None
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(masters, clip or math.inf)), rel=1e-4)
        witness.step()
        scaled.step()
        with torch.no_grad():
            for master, p in zip(masters, shadow.parameters(), strict=True):
                p.copy_(master)
    for p, wanted in zip(optimizer.masters.values(), masters, strict=True):
        torch.testing.assert_close(p, wanted, rtol=1e-5, atol=1e-7)
    assert not same(parameters(ours), parameters(net(dtype=dtype)))


def test_adam_in_the_style_of_tensorflow_is_its_formula_in_a_plain_loop():
    """lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps), as tf.keras and lm-human-preferences have it; eps large enough to matter."""
    config = OptimConfig(learning_rate=0.1, schedule="constant", warmup=0.0, betas=(0.9, 0.95), eps=0.03, clip=0.0, adam_style="tf")
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    ours = Optimizer([("p", p)], config, total_updates=9)
    x, m, v, t = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0], 0
    for grad in ([0.5, -0.01], [0.1, 0.02], [math.nan, 1.0], [-0.3, 0.0], [0.2, 0.04]):
        p.grad = torch.tensor(grad)
        ours.step()
        if any(map(math.isnan, grad)):
            continue  # changes nothing, and is no step of Adam's
        t += 1
        for at, g in enumerate(grad):
            m[at], v[at] = 0.9 * m[at] + 0.1 * g, 0.95 * v[at] + 0.05 * g * g
            x[at] -= 0.1 * math.sqrt(1 - 0.95**t) / (1 - 0.9**t) * m[at] / (math.sqrt(v[at]) + 0.03)
    assert p.tolist() == pytest.approx(x, rel=1e-5)
    with pytest.raises(ValueError, match="adam_style belongs to kind adamw"):
        OptimConfig(kind="rmsprop", adam_style="tf")


def test_the_first_update_of_rmsprop_by_hand():
    """v = (1 - 0.99) g^2, so every weight moves by lr / sqrt(0.01) = 10 lr against its gradient: hence the warm-up."""
    p = nn.Parameter(torch.zeros(2))
    optimizer = Optimizer([("p", p)], OptimConfig(**PLAIN, kind="rmsprop"), total_updates=2)
    (p * torch.tensor([3.0, -400.0])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.1]))


def test_bfloat16_parameters_follow_their_float32_masters():
    model = net(dtype=torch.bfloat16)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(**PLAIN), total_updates=100)
    witness_masters = [master.detach().clone().requires_grad_() for master in optimizer.masters.values()]
    witness = torch.optim.AdamW(witness_masters, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    shadow = net(dtype=torch.bfloat16)
    for step in range(10):
        loss(model, step, torch.bfloat16).backward()
        assert all(p.grad is None for p in model.parameters())  # taken up into float32 as soon as it was made
        optimizer.step()
        loss(shadow, step, torch.bfloat16).backward()
        for master, p in zip(witness_masters, shadow.parameters(), strict=True):
            master.grad, p.grad = p.grad.float(), None
        witness.step()
        with torch.no_grad():
            for master, p in zip(witness_masters, shadow.parameters(), strict=True):
                p.copy_(master)
    for p, master, wanted in zip(model.parameters(), optimizer.masters.values(), witness_masters, strict=True):
        assert master.dtype == torch.float32 and torch.equal(p, master.bfloat16())
        torch.testing.assert_close(master, wanted, rtol=1e-4, atol=1e-5)


def test_steps_too_small_for_bfloat16_add_up_in_the_masters():
    """1 - 1e-4 is 1 in bfloat16 (8 bits); a hundred such steps are not, wherever between its neighbours the master began."""
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = Optimizer([("p", p)], OptimConfig(**{**PLAIN, "learning_rate": 1e-4}), total_updates=100)
    begun = optimizer.masters["p"].item()
    for _ in range(100):
        p.sum().backward()
        optimizer.step()
    assert begun != 1 and optimizer.masters["p"].item() == pytest.approx(begun - 0.01, abs=1e-4)
    assert p.item() == pytest.approx(0.99, abs=4e-3) != 1


@pytest.mark.parametrize("shape", [(3,), (700, 301), (65_521,)])
def test_masters_round_to_their_parameters_and_lie_evenly_between_the_neighbours(shape):
    x = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).bfloat16()
    x.view(-1)[0], x.view(-1)[1], x.view(-1)[2] = 0.0, -0.0, -2.0  # -2: its neighbours are not equally far away
    out = dithered(x)
    assert out.dtype == torch.float32 and torch.equal(out.bfloat16(), x) and torch.equal(dithered(x), out)
    assert out.view(-1)[:2].tolist() == [0, 0]
    if x.numel() > 1000:
        place = ((out.view(torch.int32) - x.float().view(torch.int32)) / 2**16)[x != 0]  # in steps of bfloat16, from -1/2 to 1/2
        assert abs(float(place.mean())) < 0.01 and float(place.std()) == pytest.approx(12**-0.5, rel=0.02)
        assert float(torch.corrcoef(torch.stack([place[1:], place[:-1]]))[0, 1]) == pytest.approx(0, abs=0.02)
    whole = torch.tensor([1.5, -0.25], dtype=torch.float16)
    assert torch.equal(dithered(whole), whole.float())
    single = torch.tensor([1.5, -0.25])
    assert torch.equal(dithered(single), single) and dithered(single).data_ptr() != single.data_ptr()  # a copy, as of the others


def test_a_small_update_is_seen_in_its_share_of_bfloat16_weights():
    """A tenth of the step at 1 (2^-7 above it, 2^-8 below), up or down: a tenth of the weights see it; their mean moves as it should."""
    for sign, step in ((1, 2.0**-7), (-1, 2.0**-8)):
        p = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
        optimizer = Optimizer([("p", p)], OptimConfig(**{**PLAIN, "learning_rate": 0.1 * step}), total_updates=1)
        (-sign * p).sum().backward()
        optimizer.step()
        assert float((p.detach() != 1).float().mean()) == pytest.approx(0.1, abs=0.01)
        assert float((p.detach().float() - 1).mean()) == pytest.approx(sign * 0.1 * step, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_micro_batches_add_up(dtype):
    """In bfloat16 too: the sum is taken in float32."""
    x, y = data(0, dtype)
    got = {}
    for cut in (1, 2, 4, 8):
        model = net(dtype=dtype)
        optimizer = Optimizer(model.named_parameters(), OptimConfig(**PLAIN), total_updates=1)
        for part in range(cut):
            rows = slice(part * 16 // cut, (part + 1) * 16 // cut)
            (((model(x[rows]) - y[rows]) ** 2).sum() / y.numel()).backward()
        got[cut] = [m.grad.clone() for m in optimizer.masters.values()]
        assert all(g.dtype == torch.float32 for g in got[cut])
    size = max(float(g.abs().max()) for g in got[1])
    for cut in (2, 4, 8):
        error = max(float((a - b).abs().max()) for a, b in zip(got[cut], got[1], strict=True))
        assert error <= (1e-5 if dtype == torch.float32 else 1e-2) * size  # each bfloat16 gradient has 8 bits


def test_many_small_bfloat16_gradients_are_not_lost():
    """256 + 1 is 256 in bfloat16; 256 gradients of 1 after one of 256 make 512."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = Optimizer([("p", p)], OptimConfig(**PLAIN), total_updates=1)
    (256 * p).sum().backward()
    for _ in range(256):
        p.sum().backward()
    assert optimizer.masters["p"].grad.item() == 512


def test_clip_by_hand():
    p = nn.Parameter(torch.zeros(2))
    optimizer = Optimizer([("p", p)], OptimConfig(**{**PLAIN, "clip": 1.0}), total_updates=2)
    (p * torch.tensor([3.0, 4.0])).sum().backward()
    norm, _ = optimizer.step()
    assert norm == pytest.approx(5.0)  # as it was before clipping
    torch.testing.assert_close(optimizer.inner.state[p]["exp_avg"], 0.1 * torch.tensor([0.6, 0.8]))  # first moment of [3, 4] / 5
    (p * torch.tensor([0.3, 0.4])).sum().backward()
    optimizer.step()  # within the clip: left as it is
    wanted = 0.09 * torch.tensor([0.6, 0.8]) + 0.1 * torch.tensor([0.3, 0.4])
    torch.testing.assert_close(optimizer.inner.state[p]["exp_avg"], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, dtype):
    model = net(dtype=dtype)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(**{**PLAIN, "weight_decay": 0.1, "clip": 1.0}), total_updates=9)
    loss(model, 0, dtype).backward()
    optimizer.step()
    before = {name: t.clone() for name, t in optimizer.state().items()}, parameters(model)
    (loss(model, 1, dtype) * bad).backward()
    norm, _ = optimizer.step()
    assert not math.isfinite(norm)
    assert same(list(before[0].values()), list(optimizer.state().values())) and same(before[1], parameters(model))
    loss(model, 2, dtype).backward()  # and is forgotten
    norm, _ = optimizer.step()
    assert math.isfinite(norm) and not same(before[1], parameters(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_a_saved_state_continues_bit_for_bit(dtype, used, kind):
    decay = 0.1 if kind == "adamw" else 0.0
    config = OptimConfig(**{**PLAIN, "kind": kind, "weight_decay": decay, "clip": 0.5, "schedule": "cosine", "warmup": 0.2})

    def steps(model, optimizer, numbers):
        for step in numbers:
            loss(model, step, dtype).backward()
            optimizer.step()

    model = net(dtype=dtype)
    optimizer = Optimizer(model.named_parameters(), config, total_updates=12)
    steps(model, optimizer, range(5))
    saved = {name: t.clone() for name, t in optimizer.state().items()}
    steps(model, optimizer, range(5, 12))

    again = net(seed=1, dtype=dtype)
    resumed = Optimizer(again.named_parameters(), config, total_updates=12)
    if used:  # what it held before must not shine through
        steps(again, resumed, range(20, 23))
    resumed.load(saved, updates=5)
    assert resumed.updates == 5 and same(list(saved.values()), list(resumed.state().values()))
    steps(again, resumed, range(5, 12))
    assert same(parameters(model), parameters(again))
    assert optimizer.state().keys() == resumed.state().keys()
    assert same(list(optimizer.state().values()), list(resumed.state().values()))


def test_a_state_without_moments_takes_them_away_again():
    model = net()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(**PLAIN), total_updates=9)
    fresh = {name: t.clone() for name, t in optimizer.state().items()}
    loss(model, 0).backward()
    optimizer.step()
    optimizer.load(fresh, updates=0)
    assert optimizer.state().keys() == fresh.keys() and same(parameters(model), parameters(net()))


def test_the_saved_state_is_not_tied_to_the_running_one():
    model = net()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(**PLAIN), total_updates=9)
    loss(model, 0).backward()
    optimizer.step()
    saved = {name: t.clone() for name, t in optimizer.state().items()}
    kept = {name: t.clone() for name, t in saved.items()}
    optimizer.load(saved, updates=1)
    loss(model, 1).backward()
    optimizer.step()
    assert same(list(saved.values()), list(kept.values()))


def test_frozen_parameters_are_left_alone_and_unused_ones_too():
    model = net()
    model[0].requires_grad_(False)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(**{**PLAIN, "weight_decay": 0.5}), total_updates=9)
    assert set(optimizer.params) == {"2.weight", "2.bias", "3.weight", "3.bias"}
    before = parameters(model)
    model[2](torch.randn(4, 8)).sum().backward()  # the last layer takes no part
    optimizer.step()
    after = dict(zip([name for name, _ in model.named_parameters()], zip(before, parameters(model), strict=True), strict=True))
    assert {name for name, (a, b) in after.items() if not torch.equal(a, b)} == {"2.weight", "2.bias"}


def test_close_takes_the_hooks_off():
    model = net(dtype=torch.bfloat16)
    Optimizer(model.named_parameters(), OptimConfig(**PLAIN), total_updates=9).close()
    loss(model, 0, torch.bfloat16).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("schedule, warmup, floor, wanted", [
    ("constant", 0.0, 0.0, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("constant", 0.2, 0.0, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("linear", 0.0, 0.0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ("linear", 0.2, 0.0, [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    ("linear", 0.0, 0.5, [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55]),
    ("cosine", 0.0, 0.0, [1, 0.975528, 0.904508, 0.793893, 0.654508, 0.5, 0.345492, 0.206107, 0.095492, 0.024472]),
    ("cosine", 0.0, 0.1, [1, 0.977975, 0.914058, 0.814503, 0.689058, 0.55, 0.410942, 0.285497, 0.185942, 0.122025]),
])
def test_schedule_by_hand(schedule, warmup, floor, wanted):
    config = OptimConfig(schedule=schedule, warmup=warmup, floor=floor)
    assert [scale_at(config, update, 10) for update in range(10)] == pytest.approx(wanted, abs=1e-6)


def test_schedule_of_all_warmup_or_one_update_does_not_fail():
    assert scale_at(OptimConfig(warmup=1.0), 9, 10) == pytest.approx(10 / 11)
    assert scale_at(OptimConfig(), 0, 1) == 1.0


def test_faults_are_reported_together():
    with pytest.raises(ValueError) as caught:
        OptimConfig(learning_rate=0, warmup=2, betas=(0.9,), clip=-1)
    lines = str(caught.value).split("\n")
    assert [line.split(" ")[0] for line in lines] == ["learning_rate", "warmup", "betas", "clip"]


def test_rmsprop_says_what_it_cannot_do():
    with pytest.raises(ValueError) as caught:
        OptimConfig(kind="rmsprop", alpha=1.0, weight_decay=0.1)
    lines = str(caught.value).split("\n")
    assert [line.split(" ")[0] for line in lines] == ["alpha", "weight_decay"] and "kind adamw" in lines[1]
