"""The first page: what there is to do, and how one is doing oneself (for one's own eyes)."""

from statistics import median

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.responses import Response

from tutelage.stats.raters import gold_accuracy
from tutelage.store import collected, queue
from tutelage.store.feedback import list_projects
from tutelage.web.auth import Annotator, SignedIn
from tutelage.web.page import page

router = APIRouter(include_in_schema=False)


@router.get("/")
def home(visit: SignedIn) -> Response:
    projects = list_projects(visit.db)
    if not visit.person.can("read"):
        projects = [project for project in projects if project.settings.open]
    return page(visit, "home.html", projects=projects, judged=queue.judged_today(visit.db, visit.name))


@router.get("/mine/{project}")
def mine(project: str, visit: Annotator) -> Response:
    """One's own figures: never live, never beside an item, so that nobody learns to guess the majority."""
    checks = [each for each in collected.gold_checks(visit.db, project) if each.person == visit.name]
    own = [each for each in collected.collected(visit.db, project) if each.person == visit.name]
    times = [each.seconds for each in own if each.seconds]
    right = sum(each.right for each in checks)
    return page(visit, "mine.html", project=project, judged=len(own), median_seconds=median(times) if times else None,
                gold=gold_accuracy(right, len(checks)) if checks else None)


@router.get("/health", include_in_schema=False)
def health() -> Response:
    return JSONResponse({"ok": True})
