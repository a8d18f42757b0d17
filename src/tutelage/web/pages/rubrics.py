"""Rubrics: read one, and save a changed one as its next version."""

import json

from fastapi import APIRouter
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from tutelage.core.errors import UserError
from tutelage.store.rubrics import QUESTION_KINDS, as_rubric, list_rubrics, load_rubric, save_rubric
from tutelage.web.auth import Admin, Checked, Reader, text
from tutelage.web.page import page

router = APIRouter(include_in_schema=False)


@router.get("/rubrics")
def rubrics(visit: Reader) -> Response:
    return page(visit, "rubrics.html", rubrics=list_rubrics(visit.db))


@router.get("/rubrics/{ref}")
def rubric(ref: str, visit: Reader) -> Response:
    shown = load_rubric(visit.db, ref)
    body = {key: value for key, value in shown.to_dict().items() if key != "version"}
    return page(visit, "rubric.html", rubric=shown, body=json.dumps(body, ensure_ascii=False, indent=2), kinds=QUESTION_KINDS)


@router.post("/rubrics")
def save(visit: Admin, form: Checked) -> Response:
    try:
        values = json.loads(text(form, "body"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the rubric is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError("a rubric is a JSON object with a name and questions")
    return RedirectResponse(f"/rubrics/{save_rubric(visit.db, as_rubric(values), actor=visit.name).ref}", 303)
