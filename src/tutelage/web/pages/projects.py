"""Projects: how far they are, how they hand out their items, new items, exports."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.datastructures import FormData
from starlette.responses import Response

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt
from tutelage.core.words import Response as Answer
from tutelage.remote.address import read_address
from tutelage.store import collected, ledger
from tutelage.store.chat_settings import ChatSettings
from tutelage.store.db import Database
from tutelage.store.feedback import (
    Item,
    Settings,
    add_items,
    change_project,
    create_project,
    iter_items,
    list_projects,
    load_project,
)
from tutelage.store.rubrics import list_rubrics
from tutelage.web.auth import Admin, Checked, Reader, text
from tutelage.web.page import page

router = APIRouter(include_in_schema=False)
EXPORTS = ("judgements", "items", "written")
OPEN_KINDS = ("chat", "prompt")  # items that may begin with nothing
MOST_OPEN = 1000  # of them, made at once
S = TypeVar("S")


@router.get("/projects")
def projects(visit: Reader) -> Response:
    return page(visit, "projects.html", rubrics=list_rubrics(visit.db), settings=_shown(Settings()),
                projects=[(project, collected.progress(visit.db, project.name)) for project in list_projects(visit.db)])


@router.post("/projects")
def create(visit: Admin, form: Checked) -> Response:
    name = text(form, "name").strip()
    create_project(visit.db, name, rubric=text(form, "rubric"), title=text(form, "title").strip(), settings=_filled(Settings(), form),
                   actor=visit.name)
    return RedirectResponse(f"/projects/{name}", 303)


@router.get("/projects/{project}")
def project(project: str, visit: Reader) -> Response:
    where = load_project(visit.db, project)
    return page(visit, "project.html", project=where, progress=collected.progress(visit.db, project),
                settings=_shown(where.settings), chat=_shown(where.settings.chat or NO_CHAT), rubrics=list_rubrics(visit.db),
                exports=EXPORTS, open_kinds=OPEN_KINDS, most_open=MOST_OPEN)


@router.post("/projects/{project}")
def change(project: str, visit: Admin, form: Checked) -> Response:
    settings = _filled(load_project(visit.db, project).settings, form)
    change_project(visit.db, project, title=text(form, "title").strip(), rubric=text(form, "rubric"), settings=settings,
                   actor=visit.name)
    return RedirectResponse(f"/projects/{project}", 303)


@router.post("/projects/{project}/chat")
def change_chat(project: str, visit: Admin, form: Checked) -> Response:
    """Who answers in this project's chats; without an address nobody does."""
    chat = _filled(NO_CHAT, form) if text(form, "a").strip() else None
    for address, _ in chat.engines if chat else ():
        read_address(address)
    settings = replace(load_project(visit.db, project).settings, chat=chat)
    change_project(visit.db, project, settings=settings, actor=visit.name)
    return RedirectResponse(f"/projects/{project}#chat", 303)


NO_CHAT = ChatSettings(a="http://127.0.0.1:8000/v1#model")  # what the form begins with, where nothing is set


def _shown(settings: Settings | ChatSettings) -> list[tuple[str, Any]]:
    return [(each.name, "" if settings is NO_CHAT and each.name == "a" else getattr(settings, each.name))
            for each in fields(settings) if each.name != "chat"]


def _filled(before: S, form: FormData) -> S:
    """Settings with what a form says.  UserError names the one that is no number."""
    values: dict[str, Any] = {}
    for name, old in ((name, getattr(before, name)) for name, _ in _shown(before)):
        given = text(form, name).strip()
        if isinstance(old, bool):
            values[name] = given == "yes"
        elif isinstance(old, str):
            values[name] = given
        elif given:
            try:
                values[name] = type(old)(given)
            except (ValueError, OverflowError) as error:
                raise UserError(f"{name} is a number, such as {old}; got {given[:40]!r}") from error
    return replace(before, **values)


@router.post("/projects/{project}/open")
def add_open(project: str, visit: Admin, form: Checked) -> Response:
    """Conversations to be had and prompts to be written: so many of them, or one for each line that says what to try."""
    kind, count = text(form, "kind"), text(form, "count").strip() or "0"
    tasks = [line.strip() for line in text(form, "tasks").split("\n") if line.strip()]
    if kind not in OPEN_KINDS:
        raise UserError(f"items that begin with nothing are of kind {' or '.join(OPEN_KINDS)}; got {kind[:40]!r}")
    if not count.isdecimal() or len(count) > 9 or not 0 < int(count) + len(tasks) <= MOST_OPEN:
        raise UserError(f"1 to {MOST_OPEN} items at once; got {count[:40]!r} and {len(tasks)} lines")
    if kind == "prompt" and tasks:
        raise UserError("lines that say what to try are for conversations; give the number of prompts to be written")
    # each with an id of its own: items that say the same would be one
    items = [Item(kind=kind, id=secrets.token_hex(16)) for _ in range(int(count))]
    items += [Item(kind=kind, prompt=Prompt(messages=(Message(role="user", text=line),))) for line in tasks]
    add_items(visit.db, project, items, actor=visit.name)
    return RedirectResponse(f"/projects/{project}", 303)


@router.post("/projects/{project}/items")
def add(project: str, visit: Admin, form: Checked) -> Response:
    """Items as JSON lines; `tutelage feedback ask` reads every other format."""
    load_project(visit.db, project)
    rows = [line for line in text(form, "rows").split("\n") if line.strip()]
    if not rows:
        raise UserError('no items: give a line of JSON each, such as {"prompt": "...", "responses": ["...", "..."]}')
    add_items(visit.db, project, [as_item(row, number) for number, row in enumerate(rows, start=1)], actor=visit.name)
    return RedirectResponse(f"/projects/{project}", 303)


def as_item(row: str | dict[str, Any], number: int) -> Item:
    """An Item's own JSON form, or a short one: a prompt as text or messages, responses as texts or {text, policy}.

    >>> as_item('{"prompt": "Hi", "responses": ["a", "b"]}', 1).kind
    'pair'
    """
    try:
        values = json.loads(row) if isinstance(row, str) else dict(row)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        prompt, given = _prompt(values.pop("prompt", None)), values.pop("responses", None) or []
        if not isinstance(given, list):
            raise ValueError("responses is a list")
        answers = tuple(_answer(each, at, prompt) for at, each in enumerate(given))
        usual = {0: "demonstration" if prompt else "prompt", 1: "single", 2: "pair"}.get(len(answers), "set")
        kind = values.pop("kind", None) or usual
        return Item.from_dict({**values, "kind": kind, "prompt": prompt, "responses": answers})
    except UserError as error:
        raise UserError(f"item {number}: {error}") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"item {number}: {str(error)[:300]}; wanted {{\"prompt\": ..., \"responses\": [...]}}") from error


def _prompt(value: Any) -> Prompt | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [{"role": "user", "text": value}]
    if isinstance(value, list):
        value = {"messages": [{"role": turn["role"], "text": turn.get("text", turn.get("content"))} for turn in value]}
    return Prompt.from_dict(value)


def _answer(value: Any, at: int, prompt: Prompt | None) -> Answer:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value.get("text"), str):
        raise ValueError("a response needs a text")
    return Answer.from_dict({"prompt_id": prompt.id if prompt else "", "index": at, **value})


@router.get("/projects/{project}/export/{what}.jsonl")
def export(project: str, what: str, visit: Reader) -> Response:
    """JSON lines, streamed; the log keeps who took what."""
    load_project(visit.db, project)
    if what not in EXPORTS:
        raise UserError(f"there is no export {what[:40]!r}; there are {', '.join(EXPORTS)}")
    upto = ledger.last_seq(visit.db)
    ledger.note(visit.db, kind="export", actor=visit.name, subject=project, content={"what": what, "upto": upto})
    return StreamingResponse(lines(visit.db, project, what, upto), media_type="application/x-ndjson",
                             headers={"content-disposition": f'attachment; filename="{project}-{what}.jsonl"'})


def lines(db: Database, project: str, what: str, upto: int) -> Iterator[str]:
    """One record a line, as of row `upto` of the log."""
    if what == "judgements":
        rows: Iterator[Any] = (each.to_dict() for each in collected.judgements(db, project, upto=upto))
    elif what == "items":
        rows = (each.to_dict() for each in iter_items(db, project))
    else:
        rows = ({**each._asdict(), "prompt": each.prompt and each.prompt.to_dict()}
                for each in collected.written(db, project, upto=upto))
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"
