"""Generated faults that no test can see, each with the reason why nothing observable changes.

An entry names its fault by file, function, operator, the line as it stands and the line as altered; it has to fit
exactly one generated fault, so an entry whose line has gone is an error.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Equivalent(NamedTuple):
    file: str  # below src/tutelage
    function: str
    operator: str
    before: str  # the line as it stands, outer white space gone
    after: str
    proof: str


def key(fault: Any) -> tuple[str, ...]:
    """What names a fault, generated or listed."""
    return fault.file, fault.function, fault.operator, fault.before, fault.after


def mislisted(generated: Iterable[Any]) -> list[str]:
    """Entries that do not fit exactly one of the generated faults of their file."""
    found = [key(fault) for fault in generated]
    counts = [(entry, found.count(key(entry))) for entry in EQUIVALENT]
    return [f"{entry.file}: listed as equivalent, but {count} generated faults fit, wanted 1: "
            f"{entry.function}, {entry.operator}: {entry.before!r} -> {entry.after!r}" for entry, count in counts if count != 1]


EQUIVALENT: list[Equivalent] = [
    Equivalent("algos/cross_entropy.py", "", "constant",
        "TILE, ROWS = 2048, 1024  # tokens of the vocabulary and positions that are worked on at a time: 8 MB of logits",
        "TILE, ROWS = 2049, 1024  # tokens of the vocabulary and positions that are worked on at a time: 8 MB of logits",
        "How much is worked on at a time: each position's numbers are sums over the vocabulary, in any parts."),
    Equivalent("algos/cross_entropy.py", "", "constant",
        "TILE, ROWS = 2048, 1024  # tokens of the vocabulary and positions that are worked on at a time: 8 MB of logits",
        "TILE, ROWS = 2048, 1025  # tokens of the vocabulary and positions that are worked on at a time: 8 MB of logits",
        "How much is worked on at a time: each position's numbers are sums over the vocabulary, in any parts."),
    Equivalent("algos/cross_entropy.py", "_read", "extremum",
        "first = logits_nt.amax(1, keepdim=True) if first is None else first", "first = logits_nt.amin(1, keepdim=True) if first is None else first",
        "Any reference gives the same: it is taken off every logit and comes back with the norm; where it lets the exponential overflow, the "
        "largest of all is taken instead."),
    Equivalent("algos/cross_entropy.py", "", "constant",
        "KEPT_BYTES = 400_000_000  # of softmaxes that one call keeps for the backward pass; above that logits are made twice instead",
        "KEPT_BYTES = 400000001  # of softmaxes that one call keeps for the backward pass; above that logits are made twice instead",
        "How much memory is worth how much time: both ways give the same numbers, as the test of the limit holds."),
    Equivalent("algos/cross_entropy.py", "_matrix", "sign", "graded = torch.is_grad_enabled()", "graded = -(torch.is_grad_enabled())",
        "Read as a condition only: -True is -1, which is true, and -False is 0, which is false."),
    Equivalent("algos/groups.py", "group_mean", "axis", "return same_BB @ score_B / same_BB.sum(1)", "return same_BB @ score_B / same_BB.sum(0)",
        "`same_BB` is symmetric: its row sums are its column sums."),
    Equivalent("algos/groups.py", "group_std", "axis", "count_B = same_BB.sum(1)", "count_B = same_BB.sum(0)",
        "`same_BB` is symmetric: its row sums are its column sums."),
    Equivalent("algos/groups.py", "leave_one_out", "axis", "others_B = same_BB.sum(1) - 1", "others_B = same_BB.sum(0) - 1",
        "`same_BB` is symmetric: its row sums are its column sums."),
    Equivalent("algos/groups.py", "leave_one_out", "clamp", "mean_B = (same_BB.to(score_B.dtype) @ score_B - score_B) / others_B.clamp(min=1)",
        "mean_B = (same_BB.to(score_B.dtype) @ score_B - score_B) / others_B",
        "Differs only where there are no others, and there the last line puts 0, whatever was divided; scores carry no gradient."),
    Equivalent("algos/policy_gradient.py", "clipped_sequence_loss", "axis",
        "out = clipped_policy_loss(logp_B1, old_logp_B1, advantage_B1, acted_BT.any(1, keepdim=True), clip=clip)",
        "out = clipped_policy_loss(logp_B1, old_logp_B1, advantage_B1, acted_BT.any(0, keepdim=True), clip=clip)",
        "The row's one number is broadcast over the columns in which any row acted; it is read at the row's own acted columns, which are among them."),
    Equivalent(
        "algos/ppo.py", "clipped_policy_loss", "comparison",
        "below_BT = (advantage_BT < 0) & (objective_BT < floor_BT)", "below_BT = (advantage_BT <= 0) & (objective_BT < floor_BT)",
        "At an advantage of 0 objective and floor are both 0, since the ratio is finite, so that the second condition is false."),
    Equivalent(
        "algos/ppo.py", "clipped_policy_loss", "mask",
        "kl_old_BT = torch.where(acted_BT, torch.expm1(log_ratio_BT) - log_ratio_BT, 0.0)",
        "kl_old_BT = (torch.expm1(log_ratio_BT) - log_ratio_BT)",
        "Where not acted the log-ratio was set to 0 at the top, and expm1(0) - 0 is 0."),
    Equivalent(
        "algos/ppo.py", "clipped_value_loss", "constant",
        "value_BT, old_value_BT, return_BT = (torch.where(acted_BT, x, 0.0) for x in (value_BT, old_value_BT, return_BT))",
        "value_BT, old_value_BT, return_BT = (torch.where(acted_BT, x, 1.0) for x in (value_BT, old_value_BT, return_BT))",
        "Where not acted all three become the same constant: both errors are 0 there, and so are the loss and its gradient."),
    Equivalent(
        "algos/ppo.py", "clipped_value_loss", "mask",
        "return ValueLoss(torch.where(acted_BT, 0.5 * error_BT, 0.0), clipped_BT)", "return ValueLoss((0.5 * error_BT), clipped_BT)",
        "Where not acted value, old value and return were set to 0 at the top, so that both errors are 0 there."),
    Equivalent(
        "text/mask.py", "_trained_text", "extremum",
        "cut = max((tail.rfind(mark) + len(mark) for mark in (tokenizer.convert_ids_to_tokens(end) for end in ends) if mark in tail),",
        "cut = min((tail.rfind(mark) + len(mark) for mark in (tokenizer.convert_ids_to_tokens(end) for end in ends) if mark in tail),",
        "`ends` holds one id at most: turn_end_ids gives one or none, and then eos stands in. Of one number max and min are the same."),
    Equivalent(
        "text/mask.py", "answer_row", "comparison",
        "prompt_ids = prompt_ids[len(prompt_ids) - keep:] if keep < len(prompt_ids) else prompt_ids",
        "prompt_ids = prompt_ids[len(prompt_ids) - keep:] if keep <= len(prompt_ids) else prompt_ids",
        "Where the two are equal the slice begins at 0: it is the whole prompt, as in the other branch."),
]
