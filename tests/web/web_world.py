"""What the tests of the web app build their small world from."""

from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from tutelage.core.words import Message, Prompt, Response
from tutelage.store import signin
from tutelage.store.feedback import Item, Settings
from tutelage.web.auth import COOKIE

PLAIN = Settings(overlap=2, overlap_share=1.0, gold_share=0.0)


def prompt_of(text, *before):
    return Prompt(messages=(*before, Message(role="user", text=text)))


def item_of(texts, *, text="What is a kite?", kind="", **more):
    prompt = prompt_of(text)
    kind = kind or {1: "single", 2: "pair"}.get(len(texts), "set")
    return Item(
        kind=kind,
        prompt=prompt,
        responses=tuple(
            Response(prompt_id=prompt.id, text=each, policy=f"secret-model-{at}", index=at) for at, each in enumerate(texts)
        ),
        **more,
    )


def pairs(count, name="q"):
    return [item_of([f"left answer {at}", f"right answer {at}"], text=f"{name} {at}?") for at in range(count)]


def routes(app):
    """(method, path) of every route, with its names in braces."""

    def walk(parts):
        for route in parts:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            if isinstance(route, APIRoute) or (inner is None and hasattr(route, "methods")):
                yield from ((method, route.path) for method in route.methods)
            elif inner is not None:
                yield from walk(inner.routes)

    return sorted({(method, path) for method, path in walk(app.routes) if method in ("GET", "POST")})


class Browser(TestClient):
    """A client with somebody's session; `submit` adds the CSRF word as a page's form does."""

    def sign_in(self, db, name):
        session = signin.open_session(db, name)
        self.cookies.set(COOKIE, session.secret)
        self.csrf = session.csrf
        return self

    def submit(self, path, data=None, **more):
        return self.post(path, data={"csrf": self.csrf, **(data or {})}, **more)
