"""How good a reward model is on pairs that it did not learn from, beside how well raters agree with one another."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from tutelage.core.words import Judgement, Preference
from tutelage.evals.inputs import RewardModelCard
from tutelage.judges.reward_model import RewardJudge
from tutelage.judges.rules import words_of
from tutelage.stats.calibration import ece, pair_confidence, reliability
from tutelage.stats.intervals import Interval, wilson


def audit_reward(judge: RewardJudge, pairs: Sequence[Preference], *, judgements: Sequence[Judgement] = ()) -> RewardModelCard:
    """Accuracy (a tie counts as wrong), calibration of sigma(difference), and correlation of score and length, on `pairs`.

    `judgements` of several raters on the same pairs give the ceiling: how often two of them agree.
    """
    scores = judge.scores([(pair.prompt, side.text) for pair in pairs for side in (pair.chosen, pair.rejected)])
    chosen, rejected = scores[0::2], scores[1::2]
    margins = [good - bad for good, bad in zip(chosen, rejected, strict=True)]
    probabilities, outcomes = pair_confidence(margins)
    lengths = [len(words_of(side.text)) for pair in pairs for side in (pair.chosen, pair.rejected)]
    return RewardModelCard(
        accuracy=wilson(sum(margin > 0 for margin in margins), len(margins)),
        reliability=reliability(probabilities, outcomes, bins=5, low=0.5),
        ece=ece(probabilities, outcomes, bins=5, low=0.5),
        length_correlation=float(np.corrcoef(scores, lengths)[0, 1]),
        rater_ceiling=rater_agreement(judgements) if judgements else None)


def accuracy_by_strength(judge: RewardJudge, pairs: Sequence[Preference]) -> dict[float, Interval]:
    """Accuracy on the pairs of each strength: 1 slightly better, 2 better, 3 much better."""
    by: dict[float, list[Preference]] = defaultdict(list)
    for pair in pairs:
        by[pair.strength].append(pair)
    return {strength: audit_reward(judge, members).accuracy for strength, members in sorted(by.items())}


def rater_agreement(judgements: Sequence[Judgement]) -> Interval | None:
    """Share of (item, two raters) that prefer the same answer; None where no item has two raters."""
    by_item: dict[frozenset[str], list[str]] = defaultdict(list)
    for judgement in judgements:
        best = judgement.responses[int(judgement.values[1] > judgement.values[0])]
        by_item[frozenset(judgement.responses)].append(best)
    agreed = [a == b for verdicts in by_item.values() for a, b in combinations(verdicts, 2)]
    return wilson(sum(agreed), len(agreed)) if agreed else None
