"""Signing in by password or one-time link, signing out, language and theme.

A form that was sent after its session had ended is carried through the sign-in as hidden fields, and then offered to be sent.
"""

import json

from fastapi import APIRouter, HTTPException
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData
from starlette.responses import Response

from tutelage.core.errors import UserError
from tutelage.store import signin
from tutelage.web.auth import COOKIE, THEMES, AnyVisit, Checked, Form, SignedIn, Visit, begin, inside, limit, set_cookie, text
from tutelage.web.faults import in_words
from tutelage.web.page import page
from tutelage.web.texts import LANGUAGES

router = APIRouter(include_in_schema=False)
MOST_KEPT = 200_000  # characters of a form that are carried through a sign-in


@router.get("/signin")
def ask(visit: AnyVisit, next: str = "/") -> Response:
    if visit.session:
        return RedirectResponse(inside(next), 303)
    return sign_in_page(visit, path=next)


def sign_in_page(visit: Visit, *, path: str = "/", kept: FormData | None = None, status: int = 200) -> Response:
    return page(visit, "signin.html", status=status, next=inside(path), kept=_packed(kept) if kept else "", fault="")


def _packed(form: FormData) -> str:
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str) and name not in ("csrf", "kept")]
    packed = json.dumps(fields)
    return packed if len(packed) <= MOST_KEPT else ""


def _unpacked(packed: str) -> list[tuple[str, str]]:
    """The fields again; what is no such list is none."""
    try:
        fields = json.loads(packed) if packed else []
    except (ValueError, RecursionError):
        return []
    right = isinstance(fields, list) and all(
        isinstance(each, list) and len(each) == 2 and all(isinstance(part, str) for part in each) for each in fields)
    return [(name, value) for name, value in fields] if right else []


@router.post("/signin")
def password(visit: AnyVisit, form: Form) -> Response:
    path, kept = inside(text(form, "next", "/")), text(form, "kept")
    try:
        limit(visit, "signin")
        person = signin.check_password(visit.db, text(form, "name").strip(), text(form, "password"))
    except UserError as error:
        return page(visit, "signin.html", status=401, next=path, kept=kept, fault=in_words(str(error), visit.t))
    fields = _unpacked(kept)
    return begin(visit, person, (lambda: page(visit, "send.html", path=path, fields=fields)) if fields
                 else lambda: RedirectResponse(path, 303))


@router.get("/link/{secret}")
def link(secret: str, visit: AnyVisit) -> Response:
    """A page with a button: programs that look at links before people do must not use them up."""
    return page(visit, "link.html", secret=secret, fault="")


@router.post("/link/{secret}")
def use_link(secret: str, visit: AnyVisit, form: Form) -> Response:
    try:
        limit(visit, "signin")
        person = signin.use_link(visit.db, secret)
    except UserError as error:
        return page(visit, "link.html", status=401, secret="", fault=in_words(str(error), visit.t))
    return begin(visit, person, lambda: RedirectResponse("/" if person.has_password else "/account#password", 303))


@router.post("/signout")
def sign_out(visit: SignedIn, form: Checked) -> Response:
    signin.close_session(visit.db, visit.request.cookies.get(COOKIE, ""))
    response = RedirectResponse("/signin", 303)
    response.delete_cookie(COOKIE, path="/")
    return response


@router.post("/look")
def look(visit: AnyVisit, form: Form) -> Response:
    """Language and theme: two cookies of no secret."""
    lang, theme = text(form, "lang", visit.lang), text(form, "theme", visit.theme)
    if lang not in LANGUAGES or theme not in THEMES:
        raise HTTPException(400, f"languages: {', '.join(LANGUAGES)}; themes: {', '.join(THEMES)}")
    response = RedirectResponse(inside(text(form, "next", "/")), 303)
    set_cookie(visit, response, "lang", lang)
    set_cookie(visit, response, "theme", theme)
    return response
