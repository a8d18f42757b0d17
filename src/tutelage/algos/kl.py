"""KL penalties: estimators (http://joschu.net/blog/kl-approx.html) and the adaptive coefficient of Ziegler et al. 2019.

B = responses, T = token positions; u = logp - ref_logp in nats, on tokens drawn from the policy.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def k1(logp_BT: Tensor, ref_logp_BT: Tensor, acted_BT: Tensor) -> Tensor:
    """u: unbiased, the one to put into the reward.  0 where not acted."""
    return torch.where(acted_BT, logp_BT - ref_logp_BT, 0.0)


def k2(logp_BT: Tensor, ref_logp_BT: Tensor, acted_BT: Tensor) -> Tensor:
    """u^2 / 2: biased, its gradient on-policy is that of the reverse KL; the one to put into a loss."""
    return 0.5 * k1(logp_BT, ref_logp_BT, acted_BT) ** 2


def k3(logp_BT: Tensor, ref_logp_BT: Tensor, acted_BT: Tensor) -> Tensor:
    """exp(-u) - 1 + u: unbiased and never negative, the one to log.  In a loss its gradient is that of the forward KL."""
    u_BT = k1(logp_BT, ref_logp_BT, acted_BT)
    return torch.expm1((-u_BT).clamp(-20, 20)) + u_BT  # expm1: in float32 exp(-u) - 1 loses all digits of a small u


class AdaptiveKL(NamedTuple):
    """The coefficient of the KL penalty and how it follows a target (Ziegler et al. 2019, section 2.2).

    `target=None` keeps beta fixed.
    """

    beta: float
    target: float | None = None  # nats per response
    horizon: float = 10_000.0  # responses

    def updated(self, kl: float, responses: int) -> "AdaptiveKL":
        """After a batch of `responses` with mean per-response KL `kl` (nats)."""
        if self.target is None:
            return self
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return self._replace(beta=self.beta * (1 + error * responses / self.horizon))
