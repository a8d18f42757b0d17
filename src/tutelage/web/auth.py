"""Who is asking: cookies, sessions, CSRF, roles, rate limits.  What a route needs it names as a dependency.

A session is a cookie that scripts cannot read (HttpOnly, SameSite=Lax).  A form carries the session's CSRF word, a script
sends it as the header x-csrf.  Before there is a session (signing in) the browser's own word on where a form came from is
asked instead: Sec-Fetch-Site, or Origin.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import FormData
from starlette.responses import Response

from tutelage.store import signin
from tutelage.store.accounts import Person
from tutelage.store.db import Database
from tutelage.web.texts import chosen, speaker

COOKIE = "tutelage_session"
THEMES = ("auto", "light", "dark", "contrast")
YEAR = 365 * 86400
TRIES, WINDOW = 30, 60.0  # sign-ins from one address in so many seconds
API_CALLS = 600  # of one token in a minute, at each of the server's processes


@dataclass(slots=True)
class Visit:
    """One request by somebody, perhaps nobody."""

    request: Request
    db: Database
    session: signin.Session | None
    lang: str
    theme: str
    t: Callable[..., str] = field(init=False)

    def __post_init__(self):
        self.t = speaker(self.lang)

    @property
    def person(self) -> Person:
        assert self.session is not None
        return self.session.person

    @property
    def name(self) -> str:
        return self.person.name

    @property
    def csrf(self) -> str:
        return self.session.csrf if self.session else ""

    @property
    def by_script(self) -> bool:
        """A script asks and wants JSON; else a browser that shows pages."""
        return self.request.headers.get("accept", "").startswith("application/json")


def database(request: Request) -> Database:
    return request.app.state.db


def visit(request: Request) -> Visit:
    """Anybody."""
    db, secret = database(request), request.cookies.get(COOKIE, "")
    theme = request.cookies.get("theme", "auto")
    return Visit(request, db, signin.find_session(db, secret) if secret else None,
                 chosen(request.cookies.get("lang"), request.headers.get("accept-language", "")),
                 theme if theme in THEMES else "auto")


AnyVisit = Annotated[Visit, Depends(visit)]


def signed_in(visit: AnyVisit) -> Visit:
    if visit.session is None:
        raise HTTPException(401, "sign in first")
    return visit


def may(action: str) -> Callable[[Visit], Visit]:
    """A dependency: somebody who may annotate, adjudicate, read or administer."""
    def check(visit: Annotated[Visit, Depends(signed_in)]) -> Visit:
        if not visit.person.can(action):
            raise HTTPException(403, f"this needs a role that may {action}; yours is {visit.person.role}")
        return visit
    return check


SignedIn = Annotated[Visit, Depends(signed_in)]
Annotator = Annotated[Visit, Depends(may("annotate"))]
Adjudicator = Annotated[Visit, Depends(may("adjudicate"))]
Reader = Annotated[Visit, Depends(may("read"))]
Admin = Annotated[Visit, Depends(may("administer"))]


async def posted(request: Request) -> FormData:
    """A form that this site's own page sent, from this session's own page."""
    if not same_origin(request):
        raise HTTPException(403, "this form was sent from another site")
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind not in ("application/x-www-form-urlencoded", ""):
        raise HTTPException(415, "send a form")
    return await request.form(max_fields=5000)


Form = Annotated[FormData, Depends(posted)]


def checked_form(visit: AnyVisit, form: Form) -> FormData:
    """As `posted`, and with the session's CSRF word.  Without a session 401: signing in comes first."""
    if visit.session is None:
        raise HTTPException(401, "sign in first")
    given = visit.request.headers.get("x-csrf") or text(form, "csrf")
    if not secrets.compare_digest(given.encode(), visit.csrf.encode()):
        raise HTTPException(403, "this form is from an older session; load the page again")
    return form


Checked = Annotated[FormData, Depends(checked_form)]


def text(form: FormData, name: str, default: str = "") -> str:
    """One field of a form, line ends as they are in files."""
    value = form.get(name, default)
    return value.replace("\r\n", "\n") if isinstance(value, str) else default


def same_origin(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host")


def inside(path: str) -> str:
    """An address on this site to go on to, or the first page: nobody is sent elsewhere by a link."""
    right = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if right and not urlsplit(path).netloc else "/"  # asked last: urlsplit refuses "http://["


def begin(visit: Visit, person: Person, answer: Callable[[], Response]) -> Response:
    """Sign a person in: a fresh session, so that no older cookie counts; `answer` is made within it."""
    visit.session = session = signin.open_session(visit.db, person.name)
    response = answer()
    set_cookie(visit, response, COOKIE, session.secret, http_only=True)
    return response


def set_cookie(visit: Visit, response: Response, name: str, value: str, *, http_only: bool = False) -> None:
    response.set_cookie(name, value, max_age=None if http_only else YEAR, path="/", httponly=http_only, samesite="lax",
                        secure=visit.request.url.scheme == "https")


def limit(visit: Visit, what: str, *, tries: int = TRIES, seconds: float = WINDOW) -> None:
    """429 when this address, or this person, tries too often."""
    who = visit.name if visit.session else visit.request.client.host if visit.request.client else "unknown"
    if not signin.allow(visit.db, f"{what}:{who}", limit=tries, seconds=seconds):
        raise HTTPException(429, "too many tries; wait a minute", headers={"retry-after": str(int(seconds))})


# -- programs -------------------------------------------------------------------------------------------------------

class Calls:
    """How often each token called in this minute.  In memory: counting in the database would make every read a write."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.lock, self.minute, self.counts = clock, threading.Lock(), 0, dict[str, int]()

    def wait(self, token: str) -> int:
        """Count a call.  Seconds until the next one may come; 0: this one may."""
        now = self.clock()
        key = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
        with self.lock:
            if int(now // WINDOW) != self.minute:
                self.minute, self.counts = int(now // WINDOW), {}
            self.counts[key] = count = self.counts.get(key, 0) + 1
        return 0 if count <= API_CALLS else int(WINDOW - now % WINDOW) + 1


CALLS = Calls()
BEARER = HTTPBearer(auto_error=False, description="An API token of yours, from the page Account")


def bearer(scope: str, action: str) -> Any:
    """A dependency for the API: the person behind a token with this scope, whose role may do this."""
    def check(request: Request, token: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> Person:
        if token and (wait := CALLS.wait(token.credentials)):
            raise HTTPException(429, f"more than {API_CALLS} calls in a minute; wait {wait} s", headers={"retry-after": str(wait)})
        person = signin.find_token(database(request), token.credentials, scope=scope) if token else None
        if person is None:
            raise HTTPException(401, f"send an API token with the scope {scope!r} as `Authorization: Bearer ...`",
                                headers={"www-authenticate": "Bearer"})
        if not person.can(action):
            raise HTTPException(403, f"this needs a role that may {action}; yours is {person.role}")
        return person
    return Annotated[Person, Depends(check)]
