"""People: invite, change, one-time links."""

from fastapi import APIRouter
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData
from starlette.responses import Response

from tutelage.core.errors import UserError
from tutelage.store import signin
from tutelage.store.accounts import ROLES, change_person, create_person, list_people, load_person
from tutelage.web.auth import Admin, Checked, Visit, text
from tutelage.web.page import page

router = APIRouter(include_in_schema=False)
LINK_DAYS = 7


@router.get("/people")
def people(visit: Admin) -> Response:
    return _page(visit)


def _page(visit: Visit, *, link: str = "", whose: str = "") -> Response:
    return page(visit, "people.html", people=list_people(visit.db), roles=ROLES, link=link, whose=whose, days=LINK_DAYS)


@router.post("/people")
def invite(visit: Admin, form: Checked) -> Response:
    """A new account, and the link by which its owner comes in."""
    name = text(form, "name").strip()
    create_person(visit.db, name, text(form, "role"), actor=visit.name, **_told(form))
    return _link(visit, name)


@router.post("/people/{name}/link")
def link(name: str, visit: Admin, form: Checked) -> Response:
    return _link(visit, name)


def _link(visit: Visit, name: str) -> Response:
    secret = signin.make_link(visit.db, name, actor=visit.name, seconds=LINK_DAYS * 86400.0)
    return _page(visit, link=str(visit.request.url_for("link", secret=secret)), whose=name)


@router.get("/people/{name}")
def person(name: str, visit: Admin) -> Response:
    return page(visit, "person.html", whom=load_person(visit.db, name), roles=ROLES)


@router.post("/people/{name}")
def change(name: str, visit: Admin, form: Checked) -> Response:
    change_person(visit.db, name, actor=visit.name, role=text(form, "role"), active=text(form, "active") == "yes",
                  **_told(form))
    return RedirectResponse("/people", 303)


def _told(form: FormData) -> dict:
    limit = text(form, "daily_limit").strip() or "0"
    if not limit.isdecimal():
        raise UserError(f"the daily limit is a whole number, 0 for none; got {limit[:40]!r}")
    listed = {name: tuple(filter(None, (each.strip() for each in text(form, name).split(","))))
              for name in ("skills", "languages")}
    return {"title": text(form, "title").strip(), "daily_limit": int(limit), **listed}
