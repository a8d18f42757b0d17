"""What a check has to say: what is wrong, why it matters, what cures it, and where the fault is described."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.core.config import to_dict

# Every code that a check may use, and the question that it answers with yes.  docs/preflight.md holds the same table.
CODES = {
    "learning-rate": "Is the learning rate far out of range for the method?",
    "temperature": "Is the temperature so low that nothing is explored, or so high that answers are noise?",
    "group-size": "Are there too few answers a prompt for the method's comparison to say much?",
    "kl-off": "Is a learned reward pursued with nothing that holds the policy near the reference?",
    "score-clip": "Are scores cut off that nothing has brought to the scale of score_clip?",
    "few-prompts": "Are nearly all prompts the same?",
    "identical-pairs": "Are chosen and rejected the same, as they stand or after they were cut?",
    "contradicting-pairs": "Do pairs contradict one another?",
    "label-direction": "Do the labels seem to be upside down?",
    "one-sided-labels": "Do all labels say the same?",
    "length-bias": "Is the chosen answer nearly always the longer (or the shorter) one?",
    "prompt-in-answer": "Do answers repeat the prompt that they answer?",
    "turns-in-answer": "Do answers hold further turns of a conversation?",
    "evaluation-in-training": "Do evaluation prompts stand in the training data?",
    "memory": "Will it not fit into memory?",
    "wrong-kind": "Is the model that is to speak a reward model, a cost model or a classifier?",
    "nothing-to-train": "Does no parameter (or no adapter) learn?",
    "no-end": "Is there no token that ends an answer?",
    "vocabulary": "Does the tokenizer make ids that the model has no row for?",
    "double-bos": "Does a text begin with two BOS tokens?",
    "missing-bos": "Does the tokenizer want a BOS that the chat template does not write?",
    "special-in-text": "Do texts hold special tokens spelt out?",
    "template-changed": "Is the chat template another one than the model was trained with?",
    "template-mismatch": "Do policy and reward model see the same words as different tokens?",
    "template-refuses": "Can the template not tell the trained tokens apart, or refuse the conversations?",
    "empty-loss-mask": "Are there rows without a trained token?",
    "full-loss-mask": "Are prompts trained on where only answers should be?",
    "untrained-turn-ends": "Does the model never learn to stop?",
    "prompt-too-long": "Are prompts left out, or cut away, because they are too long?",
    "context": "Is a text longer than the model's context?",
    "pad-is-end": "Is the pad token one that ends a text where a program looks for the last token by pad id?",
    "pad-frozen": "Does a token that is trained get no gradient because it is the embedding's padding?",
    "critic-tokenizer": "Is the critic to begin from a reward model with another tokenizer?",
    "float16": "Are there float16 weights, which overflow without a loss scaler?",
    "dropout": "Do two passes over the same row differ?",
    "not-finite": "Does the model say NaN or infinity?",
    "worse-than-chance": "Does the model find the texts less likely than guessing would?",
    "all-truncated": "Is every answer cut off by the length limit?",
    "empty-answers": "Do answers end before they begin?",
    "identical-samples": "Are all answers to a prompt the same?",
    "sampler-gap": "Do sampler and trainer disagree about the probability of what was sampled?",
    "reward-raises": "Does the reward raise an exception?",
    "reward-not-finite": "Is a reward NaN, infinite, or missing?",
    "reward-constant": "Is the reward the same whatever is answered?",
    "reward-noisy": "Does the reward differ from call to call?",
    "reward-batch": "Does a reward depend on what else stands in the batch (is it read at the padding)?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong (`error`: training would be wasted or wrong) or may be (`warning`)."""

    code: str
    cause: str  # what was found, with numbers
    cure: str  # what to do
    severity: Literal["error", "warning"] = "error"
    reference: str = ""  # where the fault is described: a checklist number, issues, a paper

    def __post_init__(self):
        assert self.code in CODES, f"{self.code} is not in the table of codes"

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)

    def text(self) -> str:
        return f"{self.cause}\n  cure: {self.cure}" + (f"\n  see:  {self.reference}" if self.reference else "")


class Blocked(Exception):
    """A finding after which the checks that come later cannot be made."""

    def __init__(self, finding: Finding):
        super().__init__(finding.cause)
        self.finding = finding


def errors(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def told(findings: Sequence[Finding]) -> str:
    """The findings as text, errors first.

    >>> print(told([Finding(code="temperature", severity="warning", cause="It is 0.01.", cure="Raise it.")]))
    warning [temperature] It is 0.01.
      cure: Raise it.
    """
    order = sorted(findings, key=lambda finding: finding.severity)  # "error" < "warning", and the sort is stable
    return "\n".join(f"{finding.severity} [{finding.code}] {finding.text()}" for finding in order)


def of(count: int, total: int) -> str:
    """
    >>> of(3, 40), of(40, 40)
    ('3 of 40', 'all 40')
    """
    return f"all {total}" if count == total else f"{count} of {total}"
