"""How far people agree in a project, what they get right, how fast they are, and what an adjudicator must settle."""

from collections import defaultdict
from typing import Any, NamedTuple

from fastapi import APIRouter
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from tutelage.stats.agreement import Agreement, krippendorff_alpha, ratings_table, shared_agreement
from tutelage.stats.habits import Timing, left_rate, too_fast
from tutelage.stats.intervals import Interval
from tutelage.stats.raters import gold_accuracy
from tutelage.stats.votes import PairVote
from tutelage.store import collected, queue
from tutelage.store.collected import Collected
from tutelage.store.db import Database
from tutelage.store.feedback import iter_items, load_project
from tutelage.web.auth import Adjudicator, Checked, Reader
from tutelage.web.page import page

router = APIRouter(include_in_schema=False)
SCALE_OF = {"pair": "ordinal", "rank": "ordinal", "rating": "interval", "label": "nominal"}
SHOWN = 200  # disagreements on one page
RESAMPLES = 400


class QuestionAgreement(NamedTuple):
    question: str
    kind: str
    alpha: Agreement
    raw: Agreement


class RaterRow(NamedTuple):
    name: str
    judged: int
    gold: Interval | None
    left: Interval | None
    warning: str


@router.get("/projects/{project}/agreement")
def agreement(project: str, visit: Reader) -> Response:
    where = load_project(visit.db, project)
    standing = [each for each in collected.collected(visit.db, project) if each.purpose == "judge"]
    return page(visit, "agreement.html", project=where, questions=by_question([each for each in standing if not each.special]),
                raters=by_rater(visit.db, project, standing))


def by_question(standing: list[Collected]) -> list[QuestionAgreement]:
    """Alpha and raw agreement of each question; a unit is an answer, or for pairs the item, in the item's own order."""
    records: dict[tuple[str, str], dict[tuple[Any, str], float]] = defaultdict(dict)
    for each in standing:
        for said in each.judgements:
            if said.kind not in SCALE_OF or not said.values or not said.dimensions:
                continue
            key = (said.dimensions[0].name, said.kind)
            if said.kind == "pair":  # signed: above 0 the item's first answer is better
                value = said.values[0] - said.values[1]
                records[key][each.item, each.person] = value if each.order[0] == 0 else -value
                continue
            for response, value in zip(said.responses, said.values, strict=True):
                records[key][(each.item, response), each.person] = value
    out = []
    for (question, kind), cells in sorted(records.items()):
        table = ratings_table((unit, rater, value) for (unit, rater), value in cells.items())
        items = [unit[0] if isinstance(unit, tuple) else unit for unit in table.units]
        out.append(QuestionAgreement(
            question, kind, krippendorff_alpha(table.rows, scale=SCALE_OF[kind], seed=0, clusters=items, resamples=RESAMPLES),
            shared_agreement(table.rows, seed=0, clusters=items, resamples=RESAMPLES)))
    return out


def by_rater(db: Database, project: str, standing: list[Collected]) -> list[RaterRow]:
    """Each person's figures, and a warning where they are faster than anybody reads."""
    words = {item.id: sum(len(each.text.split()) for each in (*(item.prompt.messages if item.prompt else ()), *item.responses))
             for item in iter_items(db, project)}
    gold = collected.gold_counts(db, project)
    votes: dict[str, list[PairVote]] = defaultdict(list)
    times, counts = [], defaultdict(int)
    for each in standing:
        counts[each.person] += 1
        if each.seconds:
            times.append(Timing(each.person, each.seconds, words.get(each.item, 0)))
        votes[each.person] += [PairVote(left=f"{each.item}:{each.order[0]}", right=f"{each.item}:{each.order[1]}",
                                        level=round(2 * (said.values[0] - said.values[1])), rater=each.person)
                               for said in each.judgements if said.kind == "pair"]
    fast = too_fast(times)
    return [RaterRow(name, count, gold_accuracy(*gold[name]) if name in gold else None,
                     left_rate(votes[name]).rate, fast.get(name, "")) for name, count in sorted(counts.items())]


@router.get("/projects/{project}/adjudicate")
def disagreements(project: str, visit: Reader) -> Response:
    where = load_project(visit.db, project)
    found = collected.disagreements(visit.db, project)
    return page(visit, "adjudicate.html", project=where, found=found[:SHOWN], count=len(found),
                open=sum(not each.adjudicated for each in found), may=visit.person.can("adjudicate"))


@router.post("/items/{item}/adjudicate")
def adjudicate(item: str, visit: Adjudicator, form: Checked) -> Response:
    return RedirectResponse(f"/lease/{queue.adjudicate(visit.db, item, visit.name).lease.id}", 303)
