"""One vote of one person on two answers, as shown: what the statistics of people's judgements are computed from."""

from collections.abc import Iterable
from typing import NamedTuple


class PairVote(NamedTuple):
    """`left` and `right` as this person saw them; only so can a liking for one side be told from a liking for an answer."""

    left: str  # the items to be scored: models for a ranking of models, answers for checks of a person
    right: str
    level: int  # above 0: left is better, by so many steps; 0: a tie; below 0: right is better
    rater: str
    unit: str = ""  # the prompt
    style: tuple[float, ...] = ()  # left minus right, one a named feature: length, headers, ...

    def flipped(self) -> "PairVote":
        """The same verdict, had the sides been swapped.

        >>> PairVote("a", "b", 2, "ann").flipped()[:3]
        ('b', 'a', -2)
        """
        return self._replace(left=self.right, right=self.left, level=-self.level, style=tuple(-x for x in self.style))


def check_votes(votes: Iterable[PairVote]) -> list[PairVote]:
    """The votes as a list; ValueError names the first that cannot be one."""
    votes = list(votes)
    for i, vote in enumerate(votes):
        if vote.left == vote.right:
            raise ValueError(f"vote number {i} (from 0): an item cannot be compared with itself; got {vote.left!r} twice")
        if not vote.rater:
            raise ValueError(f"vote number {i} (from 0) has no rater; intervals need to know who said what")
    return votes
