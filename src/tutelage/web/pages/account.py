"""One's own account: password, what one does not wish to see, API tokens."""

from fastapi import APIRouter
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from tutelage.store import signin
from tutelage.store.accounts import change_person
from tutelage.store.rubrics import HARMS, list_rubrics
from tutelage.web.auth import Checked, SignedIn, Visit, begin, limit, text
from tutelage.web.page import page
from tutelage.web.texts import harm_word

router = APIRouter(include_in_schema=False)
SCOPE_NEEDS = {"read": "read", "judge": "annotate", "ask": "administer", "admin": "administer"}  # scope -> what the role may


@router.get("/account")
def account(visit: SignedIn) -> Response:
    return _page(visit)


def _page(visit: Visit, *, secret: str = "") -> Response:
    known = (each for rubric in list_rubrics(visit.db) for each in rubric.categories)
    categories = sorted({*HARMS, *visit.person.opt_outs, *known})
    scopes = [scope for scope, action in SCOPE_NEEDS.items() if visit.person.can(action)]
    return page(visit, "account.html", tokens=[each for each in signin.list_tokens(visit.db, visit.name) if not each.revoked],
                scopes=scopes, categories=categories, secret=secret, harm=lambda name: harm_word(name, visit.lang))


@router.post("/account/password")
def password(visit: SignedIn, form: Checked) -> Response:
    """A new password ends all sessions; this browser gets a new one."""
    if visit.person.has_password:
        limit(visit, "password", tries=10)
        signin.check_password(visit.db, visit.name, text(form, "old"))
    signin.set_password(visit.db, visit.name, text(form, "password"), actor=visit.name)
    return begin(visit, visit.person, lambda: RedirectResponse("/account", 303))


@router.post("/account/opt-outs")
def opt_outs(visit: SignedIn, form: Checked) -> Response:
    change_person(visit.db, visit.name, actor=visit.name, opt_outs=tuple(str(each) for each in form.getlist("category")))
    return RedirectResponse("/account", 303)


@router.post("/account/tokens")
def make_token(visit: SignedIn, form: Checked) -> Response:
    token = signin.make_token(visit.db, visit.name, title=text(form, "title"), actor=visit.name,
                              scopes=[str(each) for each in form.getlist("scope")])
    return _page(visit, secret=token.secret)


@router.post("/account/tokens/{token}/revoke")
def revoke(token: str, visit: SignedIn, form: Checked) -> Response:
    signin.revoke_token(visit.db, token, name=visit.name, actor=visit.name)
    return RedirectResponse("/account", 303)
