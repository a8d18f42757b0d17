"""What a classifier is worth on rows that it did not learn: accuracy, F1 and the confusion matrix.

K = classes.  confusion_KK[i, j] counts rows of class i that were called j, so a row's sum is the class's support and the
diagonal is what was right.  numpy only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage.stats.intervals import wilson


class ClassScores(NamedTuple):
    """One class against all others."""

    label: str
    precision: float  # of the rows called so, the share that is so; 0 where none was called so
    recall: float  # of the rows that are so, the share called so; 0 where there are none
    f1: float  # harmonic mean of the two
    support: int  # rows that are so


class ClassifyReport(NamedTuple):
    """Every figure of one evaluation."""

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]  # [truth][prediction]
    classes: tuple[ClassScores, ...]
    n: int
    accuracy: float
    accuracy_low: float  # 95 % Wilson interval
    accuracy_high: float
    macro_f1: float  # mean F1 over the classes that occur as truth or as prediction
    baseline: float  # accuracy of always naming the most frequent class of these rows
    split: str  # which rows these are: "test" or "val"

    def to_dict(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "labels": list(self.labels),
            "confusion": [list(row) for row in self.confusion],
            "classes": [each._asdict() for each in self.classes],
        }

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "ClassifyReport":
        return cls(
            **{
                **row,
                "labels": tuple(row["labels"]),
                "confusion": tuple(tuple(each) for each in row["confusion"]),
                "classes": tuple(ClassScores(**each) for each in row["classes"]),
            }
        )


def confusion_matrix(truth: Sequence[int], predicted: Sequence[int], classes: int) -> NDArray[np.int64]:
    """[K, K] counts, truth down and prediction across.

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
    [[1, 1], [0, 1]]
    """
    out_KK = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(out_KK, (np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)), 1)
    return out_KK


def f1_scores(confusion_KK: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of each class; 0 where a denominator is 0."""
    right_K = np.diag(confusion_KK).astype(float)
    called_K, support_K = confusion_KK.sum(0), confusion_KK.sum(1)
    divide = lambda over, under: np.divide(over, under, out=np.zeros_like(right_K), where=under > 0)
    return divide(right_K, called_K), divide(right_K, support_K), divide(2 * right_K, called_K + support_K)


def report_of(
    truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str], *, split: str
) -> ClassifyReport | None:
    """The report of predictions, as positions in `labels`; None where there is nothing to report on."""
    if not len(truth):
        return None
    confusion_KK = confusion_matrix(truth, predicted, len(labels))
    precision_K, recall_K, f1_K = f1_scores(confusion_KK)
    support_K = confusion_KK.sum(1)
    occurs_K = (support_K + confusion_KK.sum(0)) > 0
    accuracy = wilson(int(np.trace(confusion_KK)), len(truth))
    rounded = lambda x: round(float(x), 6)
    return ClassifyReport(
        labels=tuple(labels),
        confusion=tuple(tuple(map(int, row)) for row in confusion_KK),
        classes=tuple(
            ClassScores(label, rounded(precision_K[i]), rounded(recall_K[i]), rounded(f1_K[i]), int(support_K[i]))
            for i, label in enumerate(labels)
        ),
        n=len(truth),
        accuracy=rounded(accuracy.estimate),
        accuracy_low=rounded(accuracy.low),
        accuracy_high=rounded(accuracy.high),
        macro_f1=rounded(f1_K[occurs_K].mean()),
        baseline=rounded(support_K.max() / len(truth)),
        split=split,
    )
