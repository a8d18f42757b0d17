"""A weighted sum of judges: one reward out of several."""

import math
from collections.abc import Sequence

from tutelage.core.errors import UserError
from tutelage.core.protocols import Judge
from tutelage.core.words import Judgement
from tutelage.judges.rules import Items


class WeightedSum:
    """value = sum of weight x value of each member; the members' scales are theirs, so weigh them with care."""

    def __init__(self, members: Sequence[tuple[Judge, float]], *, id: str = ""):
        if not members:
            raise UserError("WeightedSum needs at least one (judge, weight)")
        for judge, weight in members:
            if not math.isfinite(weight):
                raise UserError(f"WeightedSum: the weight of {judge.id} must be a finite number; got {weight}")
        self.members = tuple(members)
        self.id = id or "sum:" + "+".join(f"{weight:g}*{judge.id}" for judge, weight in members)

    def judge(self, items: Items) -> list[Judgement]:
        columns = [self._values(judge, items) for judge, _ in self.members]
        return [
            Judgement(judge=self.id, kind="rating", responses=tuple(r.id for r in responses),
                      values=tuple(sum(weight * column[i][k] for (_, weight), column in zip(self.members, columns, strict=True))
                                   for k in range(len(responses))))
            for i, (_, responses) in enumerate(items)
        ]

    @staticmethod
    def _values(judge: Judge, items: Items) -> list[tuple[float, ...]]:
        judgements = judge.judge(items)
        for judgement, (_, responses) in zip(judgements, items, strict=True):
            if judgement.kind not in ("rating", "label") or judgement.responses != tuple(r.id for r in responses):
                raise UserError(f"{judge.id} gave a {judgement.kind!r} judgement; "
                                "a sum needs one rating for each answer, in order")
        return [judgement.values for judgement in judgements]
