"""Train, val and test by group hash: what belongs together stands on one side, on every machine, in any order."""

import hashlib

from tutelage.core.errors import UserError

SHARES = {"train": 0.9, "val": 0.05, "test": 0.05}


def check_shares(shares: dict[str, float]) -> None:
    """UserError unless the shares are >= 0, sum to 1 and name only train, val and test."""
    unknown = set(shares) - set(SHARES)
    if unknown:
        raise UserError(f"unknown split(s) {', '.join(sorted(unknown))}; known: {', '.join(SHARES)}")
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise UserError(
            f"the shares of the splits must be >= 0 and sum to 1; got {shares} (sum {sum(shares.values()):g})"
        )


def split_of(group: str, *, seed: int, shares: dict[str, float]) -> str:
    """The split of a group: the first 8 bytes of SHA-256(seed, group) as a number in [0, 1), laid over the shares.

    The same seed and shares give the same answer for a group whatever else is in the file.
    """
    digest = hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    names = [name for name, share in shares.items() if share > 0]
    for name in names:
        point -= shares[name]
        if point < 0:
            return name
    return names[-1]  # the shares summed to a hair under 1
