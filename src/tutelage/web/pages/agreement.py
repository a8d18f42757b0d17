"""How far people agree in a project, what they get right, which models they prefer, and what an adjudicator must settle."""

from fastapi import APIRouter
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from tutelage.store import collected, queue
from tutelage.store.feedback import load_project
from tutelage.store.figures import by_person, by_question, comparisons_of, groups_of, left_preferred, longer_preferred, votes_of, win_rates
from tutelage.web.auth import Adjudicator, Checked, Reader
from tutelage.web.page import page

router = APIRouter(include_in_schema=False)
SHOWN = 200  # disagreements on one page


@router.get("/projects/{project}/agreement")
def agreement(project: str, visit: Reader) -> Response:
    where, votes = load_project(visit.db, project), votes_of(visit.db, project)
    compared = comparisons_of(votes)
    return page(visit, "agreement.html", project=where, questions=by_question(votes.rows, groups=groups_of(votes)),
                raters=by_person(visit.db, project, votes), left=left_preferred(compared), longer=longer_preferred(compared),
                wins=win_rates(compared))


@router.get("/projects/{project}/adjudicate")
def disagreements(project: str, visit: Reader) -> Response:
    where = load_project(visit.db, project)
    found = collected.disagreements(visit.db, project)
    return page(visit, "adjudicate.html", project=where, found=found[:SHOWN], count=len(found),
                open=sum(not each.adjudicated for each in found), may=visit.person.can("adjudicate"))


@router.post("/items/{item}/adjudicate")
def adjudicate(item: str, visit: Adjudicator, form: Checked) -> Response:
    return RedirectResponse(f"/lease/{queue.adjudicate(visit.db, item, visit.name).lease.id}", 303)
