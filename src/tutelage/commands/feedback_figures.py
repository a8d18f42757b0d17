"""What a project's judgements say of answers and of the people who gave them, as figures with intervals (tutelage.stats)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from tutelage.commands.feedback_data import shared_votes, side_votes
from tutelage.core.words import Judgement
from tutelage.stats.agreement import Agreement, krippendorff_alpha, ratings_table, shared_agreement
from tutelage.stats.habits import Cycles, Flips, LeftRate, Timing, flip_consistency, intransitivity, left_rate, time_outliers, too_fast
from tutelage.stats.intervals import Interval
from tutelage.stats.ordered import Fragility, OrderedFit, fragility, ordered_scores
from tutelage.stats.people_winrate import PeopleWinRate, people_win_rate
from tutelage.stats.raters import RaterModel, gold_accuracy, one_coin
from tutelage.stats.votes import PairVote
from tutelage.store.collected import Collected, Progress, collected, gold_counts, progress
from tutelage.store.db import Database
from tutelage.store.feedback import Item, Project, iter_items, load_project
from tutelage.store.rubrics import Rubric, load_rubric

SCALES = {"pair": "ordinal", "rank": "ordinal", "rating": "interval", "good_bad": "nominal", "safe_unsafe": "nominal"}
MOST_MODELS = 30  # more policies than that are not models to be ranked


class Voted(NamedTuple):
    """A comparison as it was shown."""

    left: str  # ids of responses
    right: str
    left_model: str  # their policies
    right_model: str
    level: float  # above 0: left is better
    person: str
    prompt: str
    group: str
    lengths: tuple[int, int]  # code points, left and right
    sides_known: bool


class Questioned(NamedTuple):
    """Agreement on one question."""

    name: str
    scale: str
    raw: Agreement  # for comparisons: the same side, or a tie, by both
    alpha: Agreement


class PersonRow(NamedTuple):
    name: str
    judged: int
    seconds: float | None  # median active time
    agreement: float | None  # accuracy by the one-coin model: agreement with the others, not truth
    shared: int  # pairs that others judged too, which is what that rests on
    gold: Interval | None
    left: LeftRate | None
    warning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that the report shows."""

    project: Project
    progress: Progress
    imported: int  # submissions that came from files
    seconds: list[float] = field(default_factory=list)
    questions: list[Questioned] = field(default_factory=list)
    people: list[PersonRow] = field(default_factory=list)
    comparisons: int = 0
    ties: int = 0
    left: PeopleWinRate | None = None  # how often the left answer was preferred, of votes that preferred one
    sides_unknown: int = 0
    longer: PeopleWinRate | None = None  # how often the longer answer was preferred, likewise
    flips: Flips | None = None
    cycles: Cycles | None = None
    wins: list[tuple[str, str, PeopleWinRate]] = field(default_factory=list)
    scores: OrderedFit | None = None
    styled: OrderedFit | None = None  # with length taken into account
    fragility: Fragility | None = None
    notes: tuple[str, ...] = ()


def figures(db: Database, project: str, *, seed: int) -> Figures:
    """Compute them all.  What cannot be computed says why in its place."""
    items = {item.id: item for item in iter_items(db, project)}
    rows = [row for row in collected(db, project) if row.item in items]
    plain = [row for row in rows if not row.special and row.purpose != "adjudicate"]
    rubrics = {ref: load_rubric(db, ref) for ref in {row.rubric for row in rows}}
    voted = comparisons_of(plain, items)
    sided = [vote for vote in voted if vote.sides_known]
    scores, styled, fragile, notes = _scores(voted)
    return Figures(
        project=load_project(db, project), progress=progress(db, project),
        imported=sum(any("imported" in said.flags for said in row.judgements) for row in plain),
        seconds=[row.seconds for row in plain if row.seconds is not None],
        questions=_agreement(plain, items, rubrics, seed=seed), people=_people(db, project, plain, items, sided),
        comparisons=len(voted), ties=sum(vote.level == 0 for vote in voted), sides_unknown=len(voted) - len(sided),
        left=_preferred([(vote, vote.level) for vote in sided], "left"), longer=_longer(voted),
        flips=flip_consistency([_answers(vote) for vote in sided]) if sided else None,
        cycles=intransitivity([_answers(vote) for vote in voted]) if voted else None,
        wins=win_rates(voted), scores=scores, styled=styled, fragility=fragile, notes=notes)


def comparisons_of(rows: Sequence[Collected], items: dict[str, Item]) -> list[Voted]:
    """Pair judgements as shown.  Rankings give every two of their answers, without sides."""
    out = []
    for row in rows:
        item = items[row.item]
        by_id = {response.id: response for response in item.responses}
        for said in row.judgements:
            for i, j, level in _compared(said):
                left, right = by_id[said.responses[i]], by_id[said.responses[j]]
                out.append(Voted(left.id, right.id, left.policy, right.policy, level, row.person, item.prompt.id, item.prompt.group,
                                 (len(left.text), len(right.text)), said.kind == "pair" and "sides-unknown" not in said.flags))
    return out


def _compared(said: Judgement) -> list[tuple[int, int, float]]:
    if said.kind == "pair":
        return [(0, 1, said.values[0] - said.values[1])]
    if said.kind == "rank":
        n = len(said.values)
        return [(i, j, said.values[j] - said.values[i]) for i in range(n) for j in range(i + 1, n)]
    return []


def _steps(votes: Sequence[Voted]) -> int:
    """Levels are whole numbers to the statistics; the half step of four-level scales makes them twice as large."""
    return 1 if all(float(vote.level).is_integer() for vote in votes) else 2


def _answers(vote: Voted) -> PairVote:
    return PairVote(vote.left, vote.right, round(2 * vote.level), vote.person, vote.prompt)


def model_votes(votes: Sequence[Voted]) -> list[PairVote]:
    """Votes on models, with the difference in length as style: (left - right) / (left + right), as FastChat has it."""
    times = _steps(votes)
    return [PairVote(v.left_model, v.right_model, round(times * v.level), v.person, v.prompt,
                     ((v.lengths[0] - v.lengths[1]) / max(1, sum(v.lengths)),))
            for v in votes if v.left_model and v.right_model and v.left_model != v.right_model]


def win_rates(votes: Sequence[Voted]) -> list[tuple[str, str, PeopleWinRate]]:
    """Every two models that were compared, by name."""
    of_models = model_votes(votes)
    pairs = sorted({tuple(sorted((vote.left, vote.right))) for vote in of_models})
    return [(a, b, people_win_rate(of_models, a, b, by_unit=_repeat(of_models))) for a, b in pairs] if len(pairs) <= MOST_MODELS else []


def _scores(votes: Sequence[Voted]) -> tuple[OrderedFit | None, OrderedFit | None, Fragility | None, tuple[str, ...]]:
    of_models = model_votes(votes)
    models = {vote.left for vote in of_models} | {vote.right for vote in of_models}
    if not 2 <= len(models) <= MOST_MODELS:
        return None, None, None, ()
    position = any(vote.sides_known for vote in votes)
    try:
        twice = _repeat(of_models)
        fit = ordered_scores(of_models, position=position, by_unit=twice)
        lengths = any(v.style[0] for v in of_models)
        styled = ordered_scores(of_models, position=position, style=("length",), by_unit=twice) if lengths else None
        return fit, styled, fragility(of_models, position=position), ()
    except ValueError as error:  # nothing but ties, say
        return None, None, None, (f"no scores: {error}",)


def _longer(votes: Sequence[Voted]) -> PeopleWinRate | None:
    """How often the longer of two answers was preferred."""
    return _preferred([(vote, vote.level if vote.lengths[0] > vote.lengths[1] else -vote.level)
                       for vote in votes if vote.lengths[0] != vote.lengths[1]], "longer")


def _preferred(levels: Sequence[tuple[Voted, float]], what: str) -> PeopleWinRate | None:
    """The share of votes with a level above 0, clustered; ties left out.  Sides play no part here."""
    votes = [PairVote(what, "other", 1 if level > 0 else -1, vote.person, vote.prompt) for vote, level in levels if level]
    return people_win_rate(votes, what, "other", by_unit=_repeat(votes)) if votes else None


def _repeat(votes: Sequence[PairVote]) -> bool:
    """Do prompts come back, so that votes on one are not independent?  Then intervals are clustered by prompt as well as by person."""
    return len({vote.unit for vote in votes}) < len(votes)


def _agreement(rows: Sequence[Collected], items: dict[str, Item], rubrics: dict[str, Rubric], *, seed: int) -> list[Questioned]:
    records: dict[tuple[str, str], list[tuple[Any, str, float, str]]] = defaultdict(list)
    for row in rows:
        rubric, item = rubrics[row.rubric], items[row.item]
        for said in row.judgements:
            if not said.dimensions or not said.values:
                continue
            question = rubric.question(said.dimensions[0].name)
            for unit, value in _units(question.kind, said):
                records[question.name, question.kind].append(((row.item, unit), row.person, value, item.prompt.group))
    out = []
    for (name, kind), found in records.items():
        table = ratings_table([(unit, person, value) for unit, person, value, _ in found])
        group = {unit: group for unit, _, _, group in found}
        clusters = [group[unit] for unit in table.units]
        compared = kind in ("pair", "rank")
        sides = [[None if v is None else (v > 0) - (v < 0) for v in line] for line in table.rows] if compared else table.rows
        out.append(Questioned(name, SCALES[kind], shared_agreement(sides, seed=seed, clusters=clusters),
                              krippendorff_alpha(table.rows, scale=SCALES[kind], seed=seed, clusters=clusters)))
    return out


def _units(kind: str, said: Judgement) -> list[tuple[Any, float]]:
    """(what was judged, value), the same for everybody whatever the order shown: pairs of ids in order, or single ids."""
    if kind not in SCALES:
        return []
    if kind in ("pair", "rank"):
        out = []
        for i, j, level in _compared(said):
            a, b = said.responses[i], said.responses[j]
            out.append(((a, b), level) if a < b else ((b, a), -level))
        return out
    return list(zip(said.responses, said.values, strict=True))


def rater_model(db: Database, project: str) -> RaterModel | None:
    """The one-coin model of pairs that two or more judged; None where there is nothing to tell people apart by."""
    votes = shared_votes(side_votes(db, project))
    return one_coin(votes) if len({vote.label for vote in votes}) > 1 else None


def _people(db: Database, project: str, rows: Sequence[Collected], items: dict[str, Item], sided: Sequence[Voted]) -> list[PersonRow]:
    model = rater_model(db, project)
    accuracy = model.accuracy if model else {}
    gold = gold_counts(db, project)
    times: dict[str, list[Timing]] = defaultdict(list)
    judged: dict[str, int] = defaultdict(int)
    for row in rows:
        judged[row.person] += 1
        if row.seconds:
            words = sum(len(response.text.split()) for response in items[row.item].responses)
            times[row.person].append(Timing(row.person, row.seconds, words, row.submission))
    everything = [time for some in times.values() for time in some]
    hasty = too_fast(everything)
    odd = dict(time_outliers(everything).raters)
    out = []
    for name in sorted(judged, key=lambda each: (-judged[each], each)):
        mine = [_answers(vote) for vote in sided if vote.person == name]
        warning = hasty.get(name, "") or (f"pace far from the others' (modified z {odd[name]:+.1f})" if name in odd else "")
        out.append(PersonRow(
            name, judged[name], median(time.seconds for time in times[name]) if times[name] else None, accuracy.get(name),
            model.votes.get(name, 0) if model else 0, gold_accuracy(*gold[name]) if name in gold else None, left_rate(mine) if mine else None, warning))
    return out
