"""`tutelage feedback plan`: how many more labels, of which items, from whom.  The reckoning is stats/planning.py's."""

import csv
from argparse import Namespace
from collections import Counter, defaultdict
from pathlib import Path

from tutelage.commands import feedback_next
from tutelage.commands.feedback_data import opened
from tutelage.core.errors import UserError
from tutelage.recipes import find_workspace
from tutelage.stats.planning import (
    CurvePlan,
    IntervalPlan,
    OverlapRow,
    TrainingRow,
    overlap_worth,
    plan_accuracy,
    plan_interval,
    whom_to_train,
)
from tutelage.store.collected import gold_counts
from tutelage.store.feedback import load_project
from tutelage.store.figures import Votes, comparisons_of, model_votes, rater_model, shared_votes, side_votes, votes_of
from tutelage.terminal import Terminal


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    if args.half_width <= 0:
        raise UserError(f"--half-width must be above 0, for instance 0.03; got {args.half_width}")
    if not 0 < args.accuracy < 1:
        raise UserError(f"--accuracy must lie between 0 and 1; got {args.accuracy}")
    if not 0 < args.level < 1:
        raise UserError(f"--level must lie between 0 and 1; got {args.level}")
    curve = read_curve(Path(args.curve)) if args.curve else None
    with opened(args.database, workspace) as db:
        load_project(db, args.project)
        votes = votes_of(db, args.project)
        intervals = win_rate_plans(votes, half_width=args.half_width)
        overlap, why = overlap_rows(votes)
        training = whom_to_train(gold_counts(db, args.project), level=args.level)
        following = feedback_next.plan(db, args.project, votes, args) if args.features else None
    accuracy = plan_accuracy(*curve, args.accuracy, seed=args.seed) if curve else None
    _show(intervals, overlap, why, training, accuracy, args, terminal)
    feedback_next.show(following, args, terminal)
    terminal.result({
        "win_rates": [{"a": a, "b": b, **(plan._asdict() if isinstance(plan, IntervalPlan) else {"text": plan})}
                      for a, b, plan in intervals],
        "overlap": [{"item": str(row.unit[0]), "question": str(row.unit[1]), "votes": row.votes, "chance": row.chance, "gain": row.gain}
                    for row in overlap],
        "training": [{"rater": r.rater, "right": r.right, "n": r.n, "low": r.low, "high": r.high, "below": r.below, "advice": r.advice}
                     for r in training],
        "accuracy": accuracy._asdict() if accuracy else None, "next": feedback_next.facts(following)})
    return 0


def win_rate_plans(votes: Votes, *, half_width: float) -> list[tuple[str, str, IntervalPlan | str]]:
    """A plan for every two models, or why there is none."""
    scores: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for vote in model_votes(comparisons_of(votes)):
        a, b = sorted((vote.left, vote.right))
        level = vote.level if vote.left == a else -vote.level
        scores[a, b].append((0.5 + 0.5 * ((level > 0) - (level < 0)), vote.rater))
    out: list[tuple[str, str, IntervalPlan | str]] = []
    for (a, b), found in sorted(scores.items()):
        try:
            out.append((a, b, plan_interval([score for score, _ in found], [rater for _, rater in found], half_width)))
        except ValueError as error:
            out.append((a, b, str(error)))
    return out


def overlap_rows(votes: Votes) -> tuple[list[OverlapRow], str]:
    """Pairs for which one more vote is worth most, best first; or why that cannot be told."""
    model = rater_model(votes)
    if model is None:
        return [], "no two people judged the same pair (or all said the same): nothing tells where a second opinion helps"
    return overlap_worth(model, Counter(vote.unit for vote in shared_votes(side_votes(votes)))), ""


def read_curve(path: Path) -> tuple[list[float], list[float]]:
    """Columns `labels` and `accuracy` of a CSV file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        return [float(row["labels"]) for row in rows], [float(row["accuracy"]) for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--curve {path}: wanted a CSV with the columns labels and accuracy, one line a size ({error})") from error


def _show(intervals: list[tuple[str, str, IntervalPlan | str]], overlap: list[OverlapRow], why: str, training: list[TrainingRow],
          accuracy: CurvePlan | None, args: Namespace, terminal: Terminal) -> None:
    terminal.head("Win rates")
    for a, b, plan in intervals:
        terminal.say(f"  {a} over {b}: {plan.text if isinstance(plan, IntervalPlan) else plan}")
    if not intervals:
        terminal.note("  no two models were compared")
    terminal.head("Reward model")
    terminal.say(f"  {accuracy.text}" if accuracy else
                 "  give --curve FILE with its accuracy on held-out pairs at four numbers of labels or more")
    terminal.head("One more vote")
    if overlap:
        terminal.say(f"  {len(overlap)} pairs where one more vote makes the better answer surer by 2 points of a hundred or more:")
        terminal.table(["  item", "votes", "chance now", "gain"], right=(1, 2, 3), rows=[
            (f"  {row.unit[0]}", row.votes, f"{100 * row.chance:.0f} %", f"{100 * row.gain:.1f}") for row in overlap[:args.show]])
    else:
        terminal.note(f"  {why or 'no pair would gain by one more vote'}")
    terminal.head("People")
    if training:
        terminal.table(["  person", "gold", "accuracy", f"below {100 * args.level:.0f} %", "advice"], right=(1, 2, 3), rows=[
            (f"  {row.rater}", f"{row.right}/{row.n}", f"{100 * row.low:.0f}-{100 * row.high:.0f} %", f"{100 * row.below:.0f} %",
             row.advice)
            for row in training])
    else:
        terminal.note("  nobody has judged a gold item: add some (items with `gold`) to see who needs training")
