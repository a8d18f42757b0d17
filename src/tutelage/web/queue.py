"""What an annotator does: see the next items, judge, skip, undo, keep a draft.

Every route works as a plain form.  A script that asks for JSON gets the next items as pieces of the same HTML.
"""

from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.datastructures import FormData
from starlette.responses import Response

from tutelage.core.errors import UserError
from tutelage.store import queue
from tutelage.store.answers import Answers
from tutelage.store.feedback import Project, load_project
from tutelage.store.queue import Handed, Outcome
from tutelage.web.auth import Annotator, Checked, Visit, text
from tutelage.web.faults import in_words
from tutelage.web.forms import LETTERS, fields_of, own_keys, values_of
from tutelage.web.page import html, page
from tutelage.web.texts import catalogue, of_language

router = APIRouter(include_in_schema=False)
MOST_COUNTED = 100  # items left in a batch: beyond that nobody counts, and the database need not either
AHEAD = 3  # the item on the screen and two more
SKIPS = ("unclear", "expertise", "upsetting", "broken", "other")
SCRIPT_WORDS = "js."  # the keys of the catalogue that the scripts need


@router.get("/annotate/{project}")
def annotate(project: str, visit: Annotator) -> Response:
    where = load_project(visit.db, project)
    offer = queue.next_items(visit.db, visit.name, project)
    if not offer.handed:
        return page(visit, "done.html", project=where, reason=offer.reason, judged=_judged(visit),
                    undo=bool(queue.recent(visit.db, visit.name, project, limit=1)))
    first = offer.handed[0]
    if first.item.kind == "chat":
        return RedirectResponse(f"/chat/{first.lease.id}", 303)
    return _screen(visit, where, first, left=offer.left_today)


def _screen(visit: Visit, project: Project, handed: Handed, *, left: int | None = None, fault: str = "",
            given: dict[str, Any] | None = None, status: int = 200) -> Response:
    return page(visit, "annotate.html", status=status, **screen_values(visit, project, handed, left=left),
                card=card(visit, handed, fault=fault, given=given), single=handed.lease.purpose != "judge")


def screen_values(visit: Visit, project: Project, handed: Handed, *, left: int | None = None) -> dict[str, Any]:
    """What the page around an item shows."""
    words = {key.removeprefix(SCRIPT_WORDS): value for key, value in catalogue(visit.lang).items()
             if key.startswith(SCRIPT_WORDS)}
    return {"project": project, "rubric": handed.rubric, "words": words, "left": left, "judged": _judged(visit),
            "batch": _batch(visit, handed),
            "guidelines": of_language(handed.rubric.guidelines, visit.lang, visit.t("guidelines.none"))}


def _batch(visit: Visit, handed: Handed) -> str:
    """How many items of this one's batch are left for this person; nothing for what stands outside the queue."""
    if handed.lease.purpose != "judge":
        return ""
    count = queue.left_in_batch(visit.db, visit.name, handed.lease.project, handed.item.batch, most=MOST_COUNTED)
    return visit.t("annotate.batch", count=count if count < MOST_COUNTED else f"{count}+")


def _judged(visit: Visit) -> int:
    return queue.judged_today(visit.db, visit.name)


def card(visit: Visit, handed: Handed, *, fault: str = "", given: dict[str, Any] | None = None) -> str:
    """One item as HTML: what to read, and the form."""
    fields = [] if handed.item.kind == "chat" else fields_of(handed, t=visit.t, lang=visit.lang, given=given)
    turns = handed.item.prompt.messages if handed.item.prompt else ()
    last = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=-1)
    return html(visit, "card.html", handed=handed, fields=fields, letters=LETTERS, skips=SKIPS, turns=turns, last=last,
                fault=fault, quick=own_keys(fields), key=f"{handed.lease.id}.{handed.lease.round}")


@router.get("/annotate/{project}/next")
def following(project: str, visit: Annotator) -> Response:
    """The items in this person's hands, new ones too, for a script that shows them without a wait."""
    offer = queue.next_items(visit.db, visit.name, project, count=AHEAD)
    return JSONResponse({
        "items": [{"lease": each.lease.id, "round": each.lease.round, "html": card(visit, each)} for each in offer.handed],
        "reason": offer.reason, "left": offer.left_today, "judged": _judged(visit),
        "batch": _batch(visit, offer.handed[0]) if offer.handed else ""})


@router.get("/lease/{lease}")
def one(lease: str, visit: Annotator) -> Response:
    """One item of one's own: an adjudication, a turn of a chat, or what was undone."""
    handed = queue.handed(visit.db, lease, visit.name)
    if handed.item.kind == "chat":
        return RedirectResponse(f"/chat/{lease}", 303)
    if handed.lease.state != "open":
        return RedirectResponse(_onward(handed), 303)
    return _screen(visit, load_project(visit.db, handed.lease.project), handed)


@router.post("/lease/{lease}")
def submit(lease: str, visit: Annotator, form: Checked) -> Response:
    handed = queue.handed(visit.db, lease, visit.name)
    if handed.item.kind == "chat":  # it is ended, not sent
        return RedirectResponse(f"/chat/{lease}", 303)
    given: dict[str, Any] = {}
    try:
        given = values_of(form, handed)
        outcome = queue.submit(visit.db, lease, visit.name, key=text(form, "key"),
                               answers=Answers(values=given, seconds=_seconds(form)))
    except UserError as error:
        if visit.by_script:
            raise
        where = load_project(visit.db, handed.lease.project)
        return _screen(visit, where, handed, fault=in_words(str(error), visit.t), given=given, status=400)
    if visit.by_script:
        return JSONResponse({"status": outcome.status, "duplicate": outcome.duplicate, "reveal": reveal(visit, handed, outcome)})
    if outcome.status == "stored":
        return RedirectResponse(_onward(handed), 303)
    return page(visit, "late.html", project=handed.lease.project, status_word=outcome.status)


def reveal(visit: Visit, handed: Handed, outcome: Outcome) -> list[str]:
    """After the vote, where the project tells: which model said what, and how long it was."""
    return [visit.t("reveal.one", letter=LETTERS[at], policy=policy or "?", count=len(handed.shown[at].text))
            for at, policy in enumerate(outcome.reveal)]


def _seconds(form: FormData) -> float | None:
    """Active time; what is no number of seconds was not measured."""
    try:
        seconds = float(text(form, "seconds"))
    except ValueError:
        return None
    return round(seconds, 1) if 0 < seconds <= 86400 else None


def _onward(handed: Handed) -> str:
    if handed.lease.purpose == "adjudicate":
        return f"/projects/{handed.lease.project}/adjudicate"
    if handed.lease.purpose == "turn" and (chat := queue.chat_of(handed.item.id)):
        return f"/chat/{chat}"
    return f"/annotate/{handed.lease.project}"


@router.post("/lease/{lease}/skip")
def skip(lease: str, visit: Annotator, form: Checked) -> Response:
    handed = queue.handed(visit.db, lease, visit.name)
    reason = text(form, "skip_reason")[:200]
    note = text(form, "skip_note").strip()[:2000]
    done = queue.skip(visit.db, lease, visit.name, reason=f"{reason}: {note}" if note else reason)
    return JSONResponse({"skipped": done}) if visit.by_script else RedirectResponse(_onward(handed), 303)


@router.post("/lease/{lease}/draft")
def draft(lease: str, visit: Annotator, form: Checked) -> Response:
    handed = queue.handed(visit.db, lease, visit.name)
    queue.save_draft(visit.db, lease, visit.name, values_of(form, handed))
    return JSONResponse({"kept": True})


@router.post("/annotate/{project}/undo")
def undo(project: str, visit: Annotator, form: Checked) -> Response:
    """Take back the newest judgement or skip, or the one that is named."""
    load_project(visit.db, project)
    lease = text(form, "lease")
    if not lease:
        recent = queue.recent(visit.db, visit.name, project, limit=1)
        if not recent:
            raise HTTPException(400, visit.t("undo.nothing"))
        lease = recent[0].id
    handed = queue.undo(visit.db, lease, visit.name)
    if visit.by_script:
        return JSONResponse({"lease": lease, "round": handed.lease.round, "html": card(visit, handed)})
    return RedirectResponse(f"/lease/{lease}", 303)


