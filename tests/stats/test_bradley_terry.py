import math

import evalica
import numpy as np
import pytest

from tutelage.stats.bradley_terry import bradley_terry


def test_two_players_have_the_log_odds_of_their_wins():
    out = bradley_terry([("a", "b", 1)] * 7 + [("a", "b", 0)] * 3)
    assert out["a"] - out["b"] == pytest.approx(math.log(7 / 3)) and sum(out.values()) == pytest.approx(0)


def test_equals_evalica():
    random, truth = np.random.default_rng(0), {"a": 0.0, "b": 0.5, "c": -0.7, "d": 1.1}
    games = []
    for _ in range(600):
        x, y = random.choice(list(truth), size=2, replace=False)
        games.append((str(x), str(y), float(random.random() < 1 / (1 + math.exp(truth[y] - truth[x])))))
    xs, ys, scores = zip(*games, strict=True)
    winners = [evalica.Winner.X if s else evalica.Winner.Y for s in scores]
    witness = np.log(evalica.bradley_terry(xs, ys, winners, tolerance=1e-12).scores)
    ours = bradley_terry(games)
    for name in truth:
        assert ours[name] - ours["a"] == pytest.approx(witness[name] - witness["a"], abs=1e-4)
    assert sorted(ours, key=ours.get) == sorted(truth, key=truth.get)


def test_a_tie_is_half_a_win_each_way():
    with_ties = bradley_terry([("a", "b", 0.5), ("a", "b", 0.5), ("a", "b", 1)])
    assert with_ties["a"] - with_ties["b"] == pytest.approx(math.log(2))  # 2 wins to 1


def test_never_beaten_is_explained_and_a_prior_mends_it():
    games = [("a", "b", 1), ("b", "c", 1), ("c", "b", 1)]
    with pytest.raises(ValueError, match="no chain of wins.*prior=1"):
        bradley_terry(games)
    out = bradley_terry(games, prior=1)
    assert out["a"] > out["b"] and all(math.isfinite(x) for x in out.values())


def test_bad_games_are_refused():
    with pytest.raises(ValueError, match="two different players"):
        bradley_terry([("a", "a", 1), ("a", "b", 1)])
    with pytest.raises(ValueError, match="at least two"):
        bradley_terry([])
