"""Rater models against a plain loop over the formulas, the truth of a simulation, and hand tables."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from tutelage.stats.raters import LabelVote, chance_below, dawid_skene, entropy, gold_accuracy, one_coin


def crowd(seed, *, units=200, accuracies=(0.95, 0.9, 0.85, 0.7, 0.6, 0.5), votes=4, labels=("a", "b", "tie")):
    """(votes, truth): each unit gets `votes` raters; a wrong answer is any of the others."""
    random = np.random.default_rng(seed)
    out, truth = [], {}
    for u in range(units):
        truth[f"u{u}"] = labels[random.integers(len(labels))]
        for w in random.choice(len(accuracies), size=votes, replace=False):
            wrong = [label for label in labels if label != truth[f"u{u}"]]
            said = truth[f"u{u}"] if random.random() < accuracies[w] else wrong[random.integers(len(wrong))]
            out.append(LabelVote(f"u{u}", f"w{w}", said))
    return out, truth


def plain_em(votes, labels, *, coin, rounds, right=2.0, wrong=1.0):
    """Dawid and Skene's formulas, word by word, with dictionaries."""
    units, raters = sorted({v.unit for v in votes}), sorted({v.rater for v in votes})
    count = {u: [v.label for v in votes if v.unit == u] for u in units}
    T = {u: {j: count[u].count(j) / len(count[u]) for j in labels} for u in units}
    for _ in range(rounds):
        p = {j: (sum(T[u][j] for u in units) + 1) / (len(units) + len(labels)) for j in labels}
        pi = {}
        for w in raters:
            mine = [v for v in votes if v.rater == w]
            count = {(j, l): sum(T[v.unit][j] for v in mine if v.label == l) for j in labels for l in labels}
            hit = (sum(count[j, j] for j in labels) + right) / (len(mine) + right + wrong)
            for j in labels:
                row = {l: count[j, l] + (right if j == l else wrong / (len(labels) - 1)) for l in labels}
                for l in labels:
                    pi[w, j, l] = ((hit if j == l else (1 - hit) / (len(labels) - 1)) if coin
                                   else row[l] / sum(row.values()))
        for u in units:
            raw = {j: p[j] * math.prod(pi[v.rater, j, v.label] for v in votes if v.unit == u) for j in labels}
            T[u] = {j: raw[j] / sum(raw.values()) for j in labels}
    return T, pi


@pytest.mark.parametrize("coin", [True, False])
def test_em_equals_a_plain_loop_over_the_formulas(coin):
    votes, _ = crowd(1, units=40)
    ours = (one_coin if coin else dawid_skene)(votes)
    assert ours.converged
    T, pi = plain_em(votes, ours.labels, coin=coin, rounds=ours.rounds)
    for unit, chances in T.items():
        assert ours.posterior[unit] == pytest.approx([chances[j] for j in ours.labels], abs=1e-9)
    for (w, j, l), p in pi.items():
        assert ours.confusion[w][ours.labels.index(j), ours.labels.index(l)] == pytest.approx(p, abs=1e-9)


def test_the_models_find_who_is_good_and_beat_the_majority_where_there_are_spammers():
    accuracies = [0.9] * 7 + [1 / 3] * 5  # 5 of 12 answer at random
    votes, truth = crowd(3, units=600, accuracies=accuracies, votes=4)
    for model in (one_coin(votes), dawid_skene(votes)):
        for w, accuracy in enumerate(accuracies):
            assert model.accuracy[f"w{w}"] == pytest.approx(accuracy, abs=0.09)
        right = np.mean([model.best(u) == label for u, label in truth.items()])
        count = {u: [sum(v.label == l for v in votes if v.unit == u) for l in model.labels] for u in list(truth)[:200]}
        majority = np.mean([model.labels[int(np.argmax(c))] == truth[u] for u, c in count.items()])
        assert right > majority + 0.02


def test_dawid_skene_sees_a_rater_who_says_safe_to_everything():
    votes, _ = crowd(5, units=300, accuracies=(0.9,) * 5, votes=3, labels=("safe", "unsafe"))
    votes += [LabelVote(f"u{u}", "sleepy", "safe") for u in range(300)]
    model = dawid_skene(votes)
    unsafe, safe = model.labels.index("unsafe"), model.labels.index("safe")
    assert model.confusion["sleepy"][unsafe, safe] > 0.97 and model.confusion["sleepy"][safe, safe] > 0.97
    assert model.accuracy["sleepy"] < 0.6


def test_same_votes_same_answer_whatever_their_order():
    votes, _ = crowd(7, units=50)
    one, other = one_coin(votes), one_coin(votes[::-1])
    for unit in one.posterior:
        assert one.posterior[unit] == pytest.approx(other.posterior[unit], abs=1e-7)


def test_without_overlap_only_the_prior_speaks_and_the_note_says_so():
    model = one_coin([LabelVote(1, "x", "a"), LabelVote(2, "y", "b")])
    assert "nothing is known of the raters" in model.note
    assert one_coin([LabelVote(1, "x", "a"), LabelVote(1, "y", "b")]).note == ""


def test_one_class_no_votes_and_strange_labels_are_explained():
    with pytest.raises(ValueError, match="every vote is 'a'.*labels="):
        one_coin([LabelVote(1, "x", "a"), LabelVote(1, "y", "a")])
    assert one_coin([LabelVote(1, "x", "a"), LabelVote(1, "y", "a")], labels=("a", "b")).best(1) == "a"
    with pytest.raises(ValueError, match="no votes"):
        dawid_skene([])
    with pytest.raises(ValueError, match=r"not among \('a', 'b'\): \['c'\]"):
        one_coin([LabelVote(1, "x", "c")], labels=("a", "b"))


def test_gold_posterior_equals_integration_of_the_likelihood():
    likelihood = lambda p: p**7 * (1 - p) ** 3
    whole = quad(likelihood, 0, 1)[0]
    got = gold_accuracy(7, 10)
    assert got.estimate == pytest.approx(quad(lambda p: p * likelihood(p), 0, 1)[0] / whole, abs=1e-9)
    assert quad(likelihood, 0, got.low)[0] / whole == pytest.approx(0.025, abs=1e-9)
    assert quad(likelihood, got.high, 1)[0] / whole == pytest.approx(0.025, abs=1e-9)
    assert chance_below(7, 10, 0.8) == pytest.approx(quad(likelihood, 0, 0.8)[0] / whole, abs=1e-9)
    assert gold_accuracy(0, 0).low == pytest.approx(0.025)  # nothing known: the flat prior
    with pytest.raises(ValueError, match="right = 3, n = 2"):
        gold_accuracy(3, 2)


def test_entropy_by_hand():
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(math.log(2)) and entropy(np.array([1.0, 0.0])) == 0
