"""Bradley-Terry strengths from wins and ties (Bradley and Terry 1952), by the MM iteration of Hunter 2004, eq. 3.

A tie counts as half a win for each side.  Departure from the paper: `prior` adds that many ties between every two
players, which keeps strengths finite when somebody never lost.
"""

from collections.abc import Iterable

import numpy as np
from scipy.sparse.csgraph import connected_components


def bradley_terry(games: Iterable[tuple[str, str, float]], *, prior: float = 0.0, tolerance: float = 1e-10,
                  most_rounds: int = 100_000) -> dict[str, float]:
    """Strength of each player in nats, mean 0: P(a beats b) = 1 / (1 + exp(strength[b] - strength[a])).

    games: (a, b, score of a), score 1 = a won, 0 = b won, 0.5 = tie.
    Without a prior the maximum exists only where everyone can be reached from everyone through wins; if not, ValueError
    names the groups.

    >>> out = bradley_terry([("x", "y", 1), ("x", "y", 1), ("x", "y", 1), ("x", "y", 0)])
    >>> round(out["x"] - out["y"], 4)  # ln 3
    1.0986
    """
    games = list(games)
    names = list(dict.fromkeys(name for a, b, _ in games for name in (a, b)))
    if len(names) < 2:
        raise ValueError(f"a ranking needs at least two players; got {names}")
    place = {name: i for i, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))  # wins[i, j]: how often i beat j
    for a, b, score in games:
        if a == b or not 0 <= score <= 1:
            raise ValueError(f"a game needs two different players and a score in [0, 1]; got {(a, b, score)}")
        wins[place[a], place[b]] += score
        wins[place[b], place[a]] += 1 - score
    wins += prior / 2 * (1 - np.eye(len(names)))
    _need_finite(wins, names)
    met, won = wins + wins.T, wins.sum(axis=1)
    strength = np.ones(len(names))
    for _ in range(most_rounds):
        after = won / (met / (strength[:, None] + strength[None, :])).sum(axis=1)
        after /= np.exp(np.log(after).mean())
        moved = float(np.abs(np.log(after / strength)).max())
        strength = after
        if moved < tolerance:
            return {name: float(np.log(strength[i])) for name, i in place.items()}
    raise ValueError(f"no convergence in {most_rounds} rounds; set prior=1 to steady it")


def _need_finite(wins: np.ndarray, names: list[str]) -> None:
    count, group = connected_components(wins > 0, directed=True, connection="strong")
    if count > 1:
        groups = [[name for name, g in zip(names, group, strict=True) if g == k] for k in range(count)]
        raise ValueError(f"strengths are not finite: no chain of wins leads both ways between {groups}; "
                         "add games between them, or set prior=1 (one tie between every two)")
