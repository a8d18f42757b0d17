"""The REST API, for programs: `Authorization: Bearer TOKEN`.  Its description (OpenAPI) is at /api/v1/openapi.json.

A token acts as the person who made it, within its scopes and never beyond the role: read (projects, progress, judgements),
ask (items), judge (next, submit, skip, undo), admin (projects, people, rubrics, audit).
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from tutelage.core.config import bind
from tutelage.store import collected, ledger, queue, signin
from tutelage.store.accounts import create_person
from tutelage.store.answers import Answers
from tutelage.store.db import Database
from tutelage.store.feedback import Project, Settings, add_items, create_project, list_projects, load_project
from tutelage.store.queue import Handed
from tutelage.store.rubrics import as_rubric, list_rubrics, load_rubric, save_rubric
from tutelage.web.auth import SignedIn, bearer, database
from tutelage.web.pages.projects import EXPORTS, as_item, lines

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": what} for status, what in {
        400: "Refused, with what was wrong", 401: "No token, or not one with this scope", 403: "Not in this person's role",
        404: "Not there, or not yours", 429: "Too many calls with this token; the header Retry-After says how long to wait"}.items()}
router = APIRouter(prefix="/api/v1", responses=ERRORS)
Db = Annotated[Database, Depends(database)]
ToRead, ToAsk = bearer("read", "read"), bearer("ask", "administer")
ToJudge, ToAdmin = bearer("judge", "annotate"), bearer("admin", "administer")


class NewProject(BaseModel):
    name: str
    rubric: str = Field(description='"helpful@3", or a name for its newest version')
    title: str = ""
    settings: dict[str, Any] = Field(default={}, description="overlap, overlap_share, gold_share, lease_seconds, ...")


class NewItems(BaseModel):
    items: list[dict[str, Any]] = Field(description='{"prompt": text or messages, "responses": [text or {text, policy}], ...}')


class Judged(BaseModel):
    key: str = Field(description="the client's mark of this submission: the same key again is stored once")
    values: dict[str, Any] = Field(description="question -> value, in the order shown")
    seconds: float | None = Field(default=None, description="active time")


class Skipped(BaseModel):
    reason: str


class NewPerson(BaseModel):
    name: str
    role: Literal["reader", "annotator", "adjudicator", "admin"]
    title: str = ""
    skills: list[str] = []
    languages: list[str] = []


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request, visit: SignedIn) -> Response:
    return JSONResponse(request.app.openapi())


@router.get("/projects")
def projects(db: Db, person: ToRead) -> list[dict[str, Any]]:
    return [_project(each) for each in list_projects(db)]


@router.post("/projects", status_code=201)
def new_project(db: Db, person: ToAdmin, body: NewProject) -> dict[str, Any]:
    settings = bind(Settings, body.settings, where="settings")
    return _project(create_project(db, body.name, rubric=body.rubric, title=body.title, settings=settings, actor=person.name))


@router.get("/projects/{project}/progress")
def progress(db: Db, person: ToRead, project: str) -> dict[str, Any]:
    found = collected.progress(db, project)
    return {**found._asdict(), "people": {name: each._asdict() for name, each in found.people.items()},
            "batches": {str(batch): each._asdict() for batch, each in found.batches.items()}}


@router.get("/projects/{project}/export/{what}", response_class=StreamingResponse)
def export(db: Db, person: ToRead, project: str, what: Literal["judgements", "items", "written"],
           upto: Annotated[int | None, Query(ge=0, le=2**62, description="a row of the log: the same export again")] = None,
           ) -> Response:
    """JSON lines as of a row of the log; the header x-upto names it."""
    load_project(db, project)
    assert what in EXPORTS
    upto = ledger.last_seq(db) if upto is None else upto
    ledger.note(db, kind="export", actor=person.name, subject=project, content={"what": what, "upto": upto})
    return StreamingResponse(lines(db, project, what, upto), media_type="application/x-ndjson", headers={"x-upto": str(upto)})


@router.post("/projects/{project}/items", status_code=201)
def new_items(db: Db, person: ToAsk, project: str, body: NewItems) -> dict[str, int]:
    """Items that are there already are counted and left alone: sending the same again is harmless."""
    return add_items(db, project, [as_item(row, number) for number, row in enumerate(body.items, start=1)],
                     actor=person.name)._asdict()


@router.get("/projects/{project}/next")
def next_items(db: Db, person: ToJudge, project: str, count: Annotated[int, Query(ge=1, le=20)] = 1) -> dict[str, Any]:
    """Items leased to this person, blind: no model is named, and the responses stand in the order drawn for this person."""
    offer = queue.next_items(db, person.name, project, count=count)
    return {"items": [_handed(each) for each in offer.handed], "reason": offer.reason, "left_today": offer.left_today}


@router.post("/leases/{lease}")
def submit(db: Db, person: ToJudge, lease: str, body: Judged) -> dict[str, Any]:
    out = queue.submit(db, lease, person.name, key=body.key, answers=Answers(values=body.values, seconds=body.seconds))
    return {"status": out.status, "submission": out.submission, "duplicate": out.duplicate, "reveal": list(out.reveal)}


@router.post("/leases/{lease}/skip")
def skip(db: Db, person: ToJudge, lease: str, body: Skipped) -> dict[str, bool]:
    return {"skipped": queue.skip(db, lease, person.name, reason=body.reason)}


@router.post("/leases/{lease}/undo")
def undo(db: Db, person: ToJudge, lease: str) -> dict[str, Any]:
    return _handed(queue.undo(db, lease, person.name))


@router.get("/rubrics")
def rubrics(db: Db, person: ToRead) -> list[dict[str, Any]]:
    return [each.to_dict() for each in list_rubrics(db)]


@router.get("/rubrics/{ref}")
def rubric(db: Db, person: ToRead, ref: str) -> dict[str, Any]:
    return load_rubric(db, ref).to_dict()


@router.post("/rubrics", status_code=201)
def new_rubric(db: Db, person: ToAdmin, body: dict[str, Any]) -> dict[str, Any]:
    return save_rubric(db, as_rubric(body), actor=person.name).to_dict()


@router.post("/people", status_code=201)
def new_person(db: Db, person: ToAdmin, body: NewPerson, request: Request) -> dict[str, Any]:
    """An account and the one-time link by which its owner comes in."""
    made = create_person(db, body.name, body.role, title=body.title, skills=body.skills, languages=body.languages,
                         actor=person.name)
    secret = signin.make_link(db, made.name, actor=person.name)
    return {"name": made.name, "role": made.role, "link": str(request.url_for("link", secret=secret))}


@router.get("/audit")
def audit(db: Db, person: ToAdmin, after: Annotated[int, Query(ge=0, le=2**62)] = 0,
          limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
    return [asdict(each) for each in ledger.audit(db, after=after, limit=limit)]


def _project(project: Project) -> dict[str, Any]:
    return asdict(project)


def _handed(handed: Handed) -> dict[str, Any]:
    item = handed.item
    return {"lease": handed.lease.id, "expires": handed.lease.expires, "kind": item.kind, "rubric": handed.rubric.to_dict(),
            "messages": [turn.to_dict() for turn in item.prompt.messages] if item.prompt else [],
            "responses": [each.text for each in handed.shown], "draft": handed.draft}
