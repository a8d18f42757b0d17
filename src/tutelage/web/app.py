"""The app: routes, headers that keep strangers' text harmless, and what an error looks like.

Content-Security-Policy allows this site's own files and nothing inline, so a script that slipped into a page would not run,
and no page loads anything from another machine.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from tutelage import __version__
from tutelage.core.errors import UserError
from tutelage.store.db import Database, open_database
from tutelage.web import api, queue, texts
from tutelage.web.assets import assets
from tutelage.web.auth import Visit, posted, visit
from tutelage.web.faults import in_words
from tutelage.web.page import page
from tutelage.web.pages import account, agreement, audit, chat, home, people, projects, rubrics, signin

DATABASE = "TUTELAGE_DATABASE"  # environment variable that tells workers what to open
MOST_BODY = 34_000_000  # bytes; one answer may be 8 million characters
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                               "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
}
Scope, Message = MutableMapping[str, Any], MutableMapping[str, Any]


def create_app(db: Database) -> FastAPI:
    """The whole app over an open database."""
    app = FastAPI(title="Tutelage", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
                  description="Items, judgements and projects, for programs. Sign in with a token of the page Account.")
    app.state.db = db
    for part in (signin, home, account, queue, chat, projects, people, rubrics, agreement, audit, api):
        app.include_router(part.router)
    app.add_api_route("/static/{digest}/{name}", _static, include_in_schema=False)
    app.add_api_route("/favicon.ico", lambda: _static("", "icon.svg"), include_in_schema=False)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Guard)
    return app


def from_environment() -> FastAPI:
    """What each of several workers makes for itself."""
    return create_app(open_database(os.environ[DATABASE]))


class Guard:
    """Around every answer: the headers above, `no-store` for what is not static, and limits on what may be sent."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen, began = 0, False

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MOST_BODY:
                raise HTTPException(413, f"at most {MOST_BODY} bytes may be sent at once")
            return message

        async def headed(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                names = {name for name, _ in message["headers"]}
                more = dict(HEADERS) if b"cache-control" in names else {**HEADERS, "cache-control": "no-store"}
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in more.items())]
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST_BODY:
            await JSONResponse(_error(413, "this is too much to be sent at once"), 413)(scope, receive, headed)
            return
        if "\0" in scope["path"]:  # no id holds one, and PostgreSQL refuses to look for it
            await JSONResponse(_error(404, "there is nothing here"), 404)(scope, receive, headed)
            return
        await self.app(scope, limited, headed)


def _static(digest: str, name: str) -> Response:
    asset = assets().get(name)
    if asset is None:
        raise HTTPException(404, "there is no such file")
    return Response(asset.body, media_type=asset.type, headers={"cache-control": "public, max-age=31536000, immutable"})


# -- errors -----------------------------------------------------------------------------------------------------------


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"status": status, "message": message}}


def _for_program(request: Request) -> bool:
    return request.url.path.startswith("/api/") or request.headers.get("accept", "").startswith("application/json")


def _user_error(request: Request, error: UserError) -> Response:
    """Something that whoever asked can mend.  What is not there, or not theirs, is not found."""
    missing = str(error).startswith(("no project is", "no person is", "no rubric is", "no item ", "no such lease"))
    return _answer(request, 404 if missing else 400, str(error))


async def _http_error(request: Request, error: StarletteHTTPException) -> Response:
    if error.status_code == 401 and not _for_program(request):
        if request.method == "GET":
            return RedirectResponse(f"/signin?next={quote(_path(request))}", 303)
        # The session ended while somebody was at work: what was sent comes back after signing in.
        form = await posted(request)
        return signin.sign_in_page(_visit(request), path=request.url.path, kept=form, status=401)
    return _answer(request, error.status_code, str(error.detail), error.headers)


def _invalid(request: Request, error: RequestValidationError) -> Response:
    said = "; ".join(f"{'.'.join(str(each) for each in one['loc'])}: {one['msg']}" for one in error.errors()[:5])
    return _answer(request, 422, said)


def _answer(request: Request, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse(_error(status, message), status, headers)
    seen = _visit(request)
    message = in_words(message, seen.t)
    if _for_program(request):
        return JSONResponse(_error(status, message), status, headers)
    known = f"error.{status}" if f"error.{status}" in texts.catalogue("en") else "error.400"
    return page(seen, "error.html", status=status, headers=headers, heading=seen.t(known), message=message)


def _visit(request: Request) -> Visit:
    return visit(request)


def _path(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")
