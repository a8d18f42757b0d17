"""What a project's judgements say of answers and of the people who gave them: the one place where it is reckoned.

The report, the plan and the web page show these figures, so they cannot differ.  The mathematics is that of tutelage.stats;
here it is settled what counts as a vote: judgements that stand, gold and attention items and adjudications left out.  Intervals
of rates and scores are clustered by person, and by the prompt's group too where groups come back (Cameron, Gelbach and Miller
2011, in stats/clustered.py); those of agreement by the prompt's group.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from tutelage.core.words import Judgement
from tutelage.stats.agreement import Agreement, krippendorff_alpha, ratings_table, shared_agreement
from tutelage.stats.habits import Cycles, Flips, LeftRate, Timing, flip_consistency, intransitivity, left_rate, time_outliers, too_fast
from tutelage.stats.intervals import Interval
from tutelage.stats.ordered import Fragility, OrderedFit, fragility, ordered_scores
from tutelage.stats.people_winrate import PeopleWinRate, people_win_rate
from tutelage.stats.raters import LabelVote, RaterModel, gold_accuracy, one_coin
from tutelage.stats.votes import PairVote
from tutelage.store.collected import Collected, Progress, collected, gold_counts, progress
from tutelage.store.db import Database
from tutelage.store.feedback import Item, Project, iter_items, load_project

SCALES = {"pair": "ordinal", "rank": "ordinal", "rating": "interval", "label": "nominal"}  # by the kind of the judgement
MOST_MODELS = 30  # more policies than that are not models to be ranked


class Votes(NamedTuple):
    """A project's items, and the judgements of them that count."""

    items: dict[str, Item]
    rows: list[Collected]


class Compared(NamedTuple):
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


class QuestionAgreement(NamedTuple):
    """Agreement on one question."""

    question: str
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
    questions: list[QuestionAgreement] = field(default_factory=list)
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


def figures(db: Database, project: str, *, seed: int = 0) -> Figures:
    """Compute them all.  What cannot be computed says why in its place."""
    votes = votes_of(db, project)
    compared = comparisons_of(votes)
    sided = [vote for vote in compared if vote.sides_known]
    scores, styled, fragile, notes = _scores(compared)
    return Figures(
        project=load_project(db, project), progress=progress(db, project),
        imported=sum(any("imported" in said.flags for said in row.judgements) for row in votes.rows),
        seconds=[row.seconds for row in votes.rows if row.seconds is not None],
        questions=by_question(votes.rows, groups=groups_of(votes), seed=seed), people=by_person(db, project, votes),
        comparisons=len(compared), ties=sum(vote.level == 0 for vote in compared), sides_unknown=len(compared) - len(sided),
        left=left_preferred(compared), longer=longer_preferred(compared),
        flips=flip_consistency([_answers(vote) for vote in sided]) if sided else None,
        cycles=intransitivity([_answers(vote) for vote in compared]) if compared else None,
        wins=win_rates(compared), scores=scores, styled=styled, fragility=fragile, notes=notes)


# -- votes ----------------------------------------------------------------------------------------------------------


def votes_of(db: Database, project: str, *, upto: int | None = None) -> Votes:
    """What counts: no gold, no adjudication, nothing that was withdrawn or erased."""
    items = {item.id: item for item in iter_items(db, project, special=False)}
    return Votes(items, [row for row in collected(db, project, upto=upto, special=False)
                         if row.purpose != "adjudicate" and row.item in items])


def groups_of(votes: Votes) -> dict[str, str]:
    """Item -> the group of its prompt: what is drawn together, and never split."""
    return {key: item.prompt.group for key, item in votes.items.items() if item.prompt is not None}


def comparisons_of(votes: Votes) -> list[Compared]:
    """Pair judgements as shown.  Rankings give every two of their answers, without sides."""
    out = []
    for row in votes.rows:
        item = votes.items[row.item]
        by_id = {response.id: response for response in item.responses}
        for said in row.judgements:
            for i, j, level in _levels(said):
                left, right = by_id[said.responses[i]], by_id[said.responses[j]]
                out.append(Compared(left.id, right.id, left.policy, right.policy, level, row.person, item.prompt.id, item.prompt.group,
                                    (len(left.text), len(right.text)), said.kind == "pair" and "sides-unknown" not in said.flags))
    return out


def _levels(said: Judgement) -> list[tuple[int, int, float]]:
    """(place, place, how much the first is better) of every two answers that were compared."""
    if said.kind == "pair":
        return [(0, 1, said.values[0] - said.values[1])]
    if said.kind == "rank":
        n = len(said.values)
        return [(i, j, said.values[j] - said.values[i]) for i in range(n) for j in range(i + 1, n)]
    return []


def side_votes(votes: Votes) -> list[LabelVote]:
    """Which answer of a pair won, as votes: units are item and question, labels "first" or "second" of the two ids in order, or "tie"."""
    return [LabelVote((row.item, said.dimensions[0].name), row.person, _winner(said))
            for row in votes.rows for said in row.judgements if said.kind == "pair" and said.dimensions]


def _winner(said: Judgement) -> str:
    a, b = said.values
    if a == b:
        return "tie"
    return "first" if said.responses[0 if a > b else 1] == min(said.responses) else "second"


def shared_votes(votes: Sequence[LabelVote]) -> list[LabelVote]:
    """Those on units that two or more judged.  A unit with one vote can agree with any story about its rater, and with many of
    them the model tells itself one."""
    counts = Counter(vote.unit for vote in votes)
    return [vote for vote in votes if counts[vote.unit] > 1]


# -- agreement and people -------------------------------------------------------------------------------------------


def by_question(rows: Sequence[Collected], *, groups: Mapping[str, str] | None = None, seed: int = 0) -> list[QuestionAgreement]:
    """Agreement on each question; `groups`: item -> what is drawn together in the bootstrap (default: the item)."""
    records: dict[tuple[str, str], list[tuple[Any, str, float]]] = defaultdict(list)
    for row in rows:
        for said in row.judgements:
            if said.dimensions and said.values and said.kind in SCALES:
                records[said.dimensions[0].name, said.kind] += [
                    ((row.item, what), row.person, value) for what, value in _units(said, row.order)]
    out = []
    for (question, kind), found in sorted(records.items()):
        table = ratings_table(found)
        clusters = [(groups or {}).get(item, item) for item, _ in table.units]
        compared = kind in ("pair", "rank")
        sides = [[None if v is None else (v > 0) - (v < 0) for v in line] for line in table.rows] if compared else table.rows
        out.append(QuestionAgreement(question, SCALES[kind], shared_agreement(sides, seed=seed, clusters=clusters),
                                     krippendorff_alpha(table.rows, scale=SCALES[kind], seed=seed, clusters=clusters)))
    return out


def _units(said: Judgement, order: Sequence[int]) -> list[tuple[Any, float]]:
    """(what was judged, value), the same for everybody whatever the order shown: two places in the item, of which the first is better
    where the value is above 0; or one answer."""
    if said.kind not in ("pair", "rank"):
        return list(zip(said.responses, said.values, strict=True))
    shown = [(order[i], order[j], level) for i, j, level in _levels(said)]
    return [((a, b), level) if a < b else ((b, a), -level) for a, b, level in shown]


def rater_model(votes: Votes) -> RaterModel | None:
    """The one-coin model of pairs that two or more judged; None where there is nothing to tell people apart by."""
    shared = shared_votes(side_votes(votes))
    return one_coin(shared) if len({vote.label for vote in shared}) > 1 else None


def by_person(db: Database, project: str, votes: Votes) -> list[PersonRow]:
    """Who judged, most judgements first."""
    model = rater_model(votes)
    accuracy = model.accuracy if model else {}
    gold = gold_counts(db, project)
    times: dict[str, list[Timing]] = defaultdict(list)
    judged: dict[str, int] = defaultdict(int, dict.fromkeys(gold, 0))
    sided: dict[str, list[PairVote]] = defaultdict(list)
    for row in votes.rows:
        judged[row.person] += 1
        if row.seconds:
            times[row.person].append(Timing(row.person, row.seconds, _words(votes.items[row.item]), row.submission))
    for vote in comparisons_of(votes):
        if vote.sides_known:
            sided[vote.person].append(_answers(vote))
    everything = [time for some in times.values() for time in some]
    hasty, odd = too_fast(everything), dict(time_outliers(everything).raters)
    out = []
    for name in sorted(judged, key=lambda each: (-judged[each], each)):
        warning = hasty.get(name, "") or (f"pace far from the others' (modified z {odd[name]:+.1f})" if name in odd else "")
        out.append(PersonRow(
            name, judged[name], median(time.seconds for time in times[name]) if times[name] else None, accuracy.get(name),
            model.votes.get(name, 0) if model else 0, gold_accuracy(*gold[name]) if name in gold else None,
            left_rate(sided[name]) if sided[name] else None, warning))
    return out


def _words(item: Item) -> int:
    """Of all that is to be read."""
    asked = item.prompt.messages if item.prompt else ()
    return sum(len(each.text.split()) for each in (*asked, *item.responses))


# -- bias and models ------------------------------------------------------------------------------------------------


def left_preferred(compared: Sequence[Compared]) -> PeopleWinRate | None:
    """How often the left of two answers was preferred, where it is known which that was."""
    return _preferred([(vote, vote.level) for vote in compared if vote.sides_known], "left")


def longer_preferred(compared: Sequence[Compared]) -> PeopleWinRate | None:
    """How often the longer of two answers was preferred."""
    return _preferred([(vote, vote.level if vote.lengths[0] > vote.lengths[1] else -vote.level)
                       for vote in compared if vote.lengths[0] != vote.lengths[1]], "longer")


def _preferred(levels: Sequence[tuple[Compared, float]], what: str) -> PeopleWinRate | None:
    """The share of votes with a level above 0, clustered; ties left out.  Sides play no part here."""
    votes = [PairVote(what, "other", 1 if level > 0 else -1, vote.person, vote.group) for vote, level in levels if level]
    return people_win_rate(votes, what, "other", by_unit=_repeat(votes)) if votes else None


def model_votes(compared: Sequence[Compared]) -> list[PairVote]:
    """Votes on models, with the difference in length as style: (left - right) / (left + right), as FastChat has it."""
    # Levels are whole numbers to the statistics; the half step of four-level scales makes them twice as large.
    times = 1 if all(float(vote.level).is_integer() for vote in compared) else 2
    return [PairVote(v.left_model, v.right_model, round(times * v.level), v.person, v.group,
                     ((v.lengths[0] - v.lengths[1]) / max(1, sum(v.lengths)),))
            for v in compared if v.left_model and v.right_model and v.left_model != v.right_model]


def win_rates(compared: Sequence[Compared]) -> list[tuple[str, str, PeopleWinRate]]:
    """Every two models that were compared, by name."""
    of_models = model_votes(compared)
    pairs = sorted({tuple(sorted((vote.left, vote.right))) for vote in of_models})
    return [(a, b, people_win_rate(of_models, a, b, by_unit=_repeat(of_models))) for a, b in pairs] if len(pairs) <= MOST_MODELS else []


def _scores(compared: Sequence[Compared]) -> tuple[OrderedFit | None, OrderedFit | None, Fragility | None, tuple[str, ...]]:
    of_models = model_votes(compared)
    models = {vote.left for vote in of_models} | {vote.right for vote in of_models}
    if not 2 <= len(models) <= MOST_MODELS:
        return None, None, None, ()
    position = any(vote.sides_known for vote in compared)
    try:
        twice = _repeat(of_models)
        fit = ordered_scores(of_models, position=position, by_unit=twice)
        lengths = any(v.style[0] for v in of_models)
        styled = ordered_scores(of_models, position=position, style=("length",), by_unit=twice) if lengths else None
        return fit, styled, fragility(of_models, position=position), ()
    except ValueError as error:  # nothing but ties, say
        return None, None, None, (f"no scores: {error}",)


def _answers(vote: Compared) -> PairVote:
    return PairVote(vote.left, vote.right, round(2 * vote.level), vote.person, vote.prompt)


def _repeat(votes: Sequence[PairVote]) -> bool:
    """Do prompts come back, so that votes on one are not independent?  Then intervals are clustered by prompt as well as by person."""
    return len({vote.unit for vote in votes}) < len(votes)
