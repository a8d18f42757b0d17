"""Our preference losses beside TRL's own code, where the optional `trl` is installed (pip install 'tutelage[peers]').

TRL's losses are methods of trainers; they are called here on stand-ins that hold only what the loss reads.
"""

import importlib
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from tutelage.algos.direct_preference import Pairs, dpo_loss, ipo_loss, orpo_loss, robust_dpo_loss, simpo_loss
from tutelage.algos.kto import kto_loss, reference_point

pytestmark = pytest.mark.peers
pytest.importorskip("trl")

COUNTS = [(3, 5), (6, 2), (4, 4), (1, 7)]  # tokens of chosen and rejected
VOCABULARY, WIDTH = 11, 9


def trainer(name: str) -> type:
    """A trainer of TRL, wherever this version keeps it."""
    lower = name.removesuffix("Trainer").lower()
    for module in (f"trl.experimental.{lower}", "trl", f"trl.trainer.{lower}_trainer"):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    pytest.skip(f"this version of trl has no {name}")


def given() -> tuple[Pairs, dict[str, torch.Tensor], torch.Tensor]:
    """Pairs, and the batch and logits of which they are the sums: chosen rows first, then rejected ones."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2 * len(COUNTS), WIDTH, VOCABULARY, generator=rng)
    ids = torch.randint(0, VOCABULARY, (2 * len(COUNTS), WIDTH), generator=rng)
    mask = torch.zeros_like(ids)
    for row, count in enumerate([w for w, _ in COUNTS] + [l for _, l in COUNTS]):
        mask[row, 2:2 + count] = 1  # two tokens of prompt
    token = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    logps = torch.where(mask[:, 1:] > 0, token, 0.0).sum(1)
    counts = mask.sum(1).float()
    refs = logps + torch.randn(len(logps), generator=rng)
    half = len(COUNTS)
    pairs = Pairs(logps[:half], logps[half:], refs[:half], refs[half:], counts[:half], counts[half:], torch.ones(half))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask,
             "ref_chosen_logps": refs[:half], "ref_rejected_logps": refs[half:]}
    return pairs, batch, logits


def given_model(*, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_) -> SimpleNamespace:
    """What TRL reads of a model's answer: logits, and since 1.16 what its own LM head makes of them (0 where no label stands)."""
    logits = given()[2]
    if labels is None:
        return SimpleNamespace(logits=logits)
    logp, labels = logits[:, :-1].log_softmax(-1), labels[:, 1:]
    picked = logp.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return SimpleNamespace(log_probs=torch.where(labels >= 0, picked, 0.0), entropy=-(logp.exp() * logp).sum(-1),
                           mean_logits=logits[:, :-1].mean(-1), is_top1=logp.argmax(-1) == labels, aux_loss=None)


def trl_dpo(loss_type: str, *, beta: float, label_smoothing: float = 0.0) -> float:
    """The mean loss that TRL's DPOTrainer makes of the batch."""
    pairs, batch, _ = given()
    peer = trainer("DPOTrainer")
    me = MagicMock()
    me.configure_mock(beta=beta, label_smoothing=label_smoothing, loss_type=loss_type, loss_types=[loss_type], ld_alpha=None,
                      loss_weights=[1.0], f_divergence_type="reverse_kl", precompute_ref_logps=True, use_weighting=False,
                      aux_loss_enabled=False, reference_free=False, _metrics=defaultdict(lambda: defaultdict(list)))
    me.accelerator.device = torch.device("cpu")
    me.accelerator.gather = me.accelerator.gather_for_metrics = lambda x: x
    me._truncate_inputs = lambda *tensors: tensors
    if hasattr(peer, "dpo_loss"):  # up to TRL 0.29: averaged beforehand for IPO
        scale = (pairs.chosen_count_P, pairs.rejected_count_P) if loss_type == "ipo" else (1.0, 1.0)
        return float(peer.dpo_loss(me, pairs.chosen_logp_P / scale[0], pairs.rejected_logp_P / scale[1],
                                   pairs.chosen_ref_logp_P / scale[0], pairs.rejected_ref_logp_P / scale[1])[0].mean())
    return float(peer._compute_loss(me, given_model, batch, False))


@pytest.mark.parametrize(
    "loss_type, share, ours",
    [
        ("sigmoid", 0.0, lambda pairs: dpo_loss(pairs, beta=0.3)),
        ("robust", 0.2, lambda pairs: robust_dpo_loss(pairs, beta=0.3, label_smoothing=0.2)),
        ("ipo", 0.0, lambda pairs: ipo_loss(pairs, beta=0.3, normalise="length")),
    ],
)
def test_dpo_and_its_kin_are_trls(loss_type, share, ours):
    wanted = trl_dpo(loss_type, beta=0.3, label_smoothing=share)
    assert ours(given()[0]).loss_P.mean().item() == pytest.approx(wanted, rel=1e-5)


def test_kto_is_trls():
    """Rows of the batch: four good ones, then four bad ones; the strange pairs of the reference point are the rows shifted by one."""
    pairs, batch, _ = given()
    logp, ref = torch.cat([pairs.chosen_logp_P, pairs.rejected_logp_P]), torch.cat([pairs.chosen_ref_logp_P, pairs.rejected_ref_logp_P])
    good = torch.tensor([True] * 4 + [False] * 4)
    strange = {"KL_input_ids": batch["input_ids"], "KL_attention_mask": batch["attention_mask"],
               "KL_completion_mask": batch["completion_mask"]}
    strange_ref = logp - torch.linspace(-1.0, 2.0, 8)  # so that the reference point is 0.5 and not cut off at 0
    me = MagicMock()
    me.configure_mock(loss_type="kto", beta=0.4, desirable_weight=1.3, undesirable_weight=0.7, calculate_KL=True,
                      precompute_ref_logps=True, aux_loss_enabled=False, _tp_size=1, _total_train_tokens=0,
                      _metrics=defaultdict(lambda: defaultdict(list)))
    me.accelerator.device, me.accelerator.gather_for_metrics = torch.device("cpu"), lambda x: x
    peer = trainer("KTOTrainer")
    me._compute_kl_logps = lambda model, rows: peer._compute_kl_logps(me, model, rows)
    rows = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "completion_mask": batch["completion_mask"],
            "label": good, "ref_logps": ref, "ref_KL_logps": strange_ref, **strange}
    wanted = peer._compute_loss(me, given_model, rows, False)
    z = reference_point(logp, strange_ref)
    out = kto_loss(logp, ref, good, z=z, beta=0.4, desirable_weight=1.3, undesirable_weight=0.7)
    (theirs,) = me._metrics.values()
    assert z.item() == pytest.approx(0.5) and theirs["kl"] == pytest.approx([0.5], rel=1e-5)
    assert out.loss_N.mean().item() == pytest.approx(float(wanted), rel=1e-5)
    assert out.reward_N[:4].mean().item() == pytest.approx(theirs["rewards/chosen"][0], rel=1e-5)
    assert out.reward_N[4:].mean().item() == pytest.approx(theirs["rewards/rejected"][0], rel=1e-5)


def test_orpos_ranking_is_trls():
    """TRL adds the NLL elsewhere, over the whole batch."""
    pairs = given()[0]
    means = pairs.chosen_logp_P / pairs.chosen_count_P, pairs.rejected_logp_P / pairs.rejected_count_P
    me = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    found = trainer("ORPOTrainer").odds_ratio_loss(me, *means)
    ours = orpo_loss(pairs, weight=0.25)
    torch.testing.assert_close(ours.loss_P + means[0], -found[0], rtol=1e-5, atol=1e-6)  # theirs is what is gained
    torch.testing.assert_close(ours.chosen_reward_P, found[1].detach(), rtol=1e-5, atol=1e-6)


def test_simpo_is_trls():
    pairs = given()[0]
    means = pairs.chosen_logp_P / pairs.chosen_count_P, pairs.rejected_logp_P / pairs.rejected_count_P
    me = SimpleNamespace(beta=2.0, simpo_gamma=0.8, alpha=0.0, loss_type="simpo", label_smoothing=0.0,
                         accelerator=SimpleNamespace(device="cpu"))
    losses = trainer("CPOTrainer").cpo_loss(me, *means)[0]
    torch.testing.assert_close(simpo_loss(pairs, beta=2.0, gamma=0.8).loss_P, losses, rtol=1e-5, atol=1e-6)
