"""A live chat: the person types a turn, one or two engines answer, the answers are judged at once, and it goes on.

A plain form: every turn is in the database before the next page is shown.  Asking the engines waits in threads of its own,
so that slow ones keep nobody else's page waiting.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from tutelage.core.words import Message, Prompt
from tutelage.data.records import group_of
from tutelage.store import ledger, queue
from tutelage.store.answers import Answers
from tutelage.store.chats import Conversation, conversation, task
from tutelage.store.feedback import Project, chance, load_project
from tutelage.store.queue import Handed
from tutelage.web import speakers
from tutelage.web.auth import Annotator, Checked, Visit, limit, text
from tutelage.web.forms import LETTERS
from tutelage.web.page import page
from tutelage.web.queue import SKIPS, card, screen_values

router = APIRouter(include_in_schema=False)
WAITING = ThreadPoolExecutor(max_workers=64, thread_name_prefix="chat")  # turns that wait for engines at one time
TURNS_A_MINUTE = 30  # of one person


@router.get("/chat/{lease}")
def chat(lease: str, visit: Annotator, take: str = "") -> Response:
    """The conversation so far; `take`: with the task as the first turn."""
    mine = _mine(visit, lease)
    if mine is None or mine.lease.state == "skipped":
        return RedirectResponse("/", 303) if mine is None else RedirectResponse(f"/annotate/{mine.lease.project}", 303)
    talk = conversation(visit.db, mine)
    draft = mine.draft or {}
    typed = draft.get("turn", "") if draft.get("number") == talk.turns else ""
    return _page(visit, mine, talk, typed=task(mine.item.prompt) if take and not talk.turns else typed)


def _mine(visit: Visit, lease: str) -> Handed | None:
    """A chat of this person's own; somebody else's is not found.  None: what it names is no chat."""
    found = queue.handed(visit.db, lease, visit.name)
    return found if found.item.kind == "chat" else None


def _page(visit: Visit, mine: Handed, talk: Conversation, *, typed: str = "", fault: str = "", status: int = 200) -> Response:
    where = load_project(visit.db, mine.lease.project)
    more: dict[str, Any] = screen_values(visit, where, mine) | {
        "card": card(visit, talk.last) if talk.last and talk.waits else "", "single": True}
    settings = where.settings.chat
    ended = mine.lease.state != "open"
    return page(visit, "chat.html", status=status, **more, mine=mine, talk=talk, typed=typed, fault=fault, task=task(mine.item.prompt),
                skips=SKIPS, ready=settings is not None, room=settings is not None and talk.turns < settings.turns, ended=ended,
                letters=LETTERS, names=_names(where, talk) if ended else ())


def _names(where: Project, talk: Conversation) -> tuple[str, ...]:
    """After the end, where the project tells: which model stood behind which letter."""
    return tuple(each.policy for each in talk.last.shown) if talk.last and where.settings.reveal else ()


@router.post("/chat/{lease}")
async def turn(lease: str, visit: Annotator, form: Checked) -> Response:
    said = partial(_turn, visit, lease, text(form, "turn"), text(form, "number"))
    return await asyncio.get_running_loop().run_in_executor(WAITING, said)


def _turn(visit: Visit, lease: str, said: str, number: str) -> Response:
    """Ask the engines and keep their answers.  What was typed is kept first, and stays in the form when an answer does not come."""
    mine = _mine(visit, lease)
    here = RedirectResponse(f"/chat/{lease}", 303)
    if mine is None or mine.lease.state != "open":
        return here
    where, talk = load_project(visit.db, mine.lease.project), conversation(visit.db, mine)
    chat = where.settings.chat
    if talk.waits or number != str(talk.turns):
        return here  # sent twice, or from an older page: what there is is shown
    if not said.strip():
        return _page(visit, mine, talk, fault=visit.t("chat.empty"), status=400)
    queue.save_draft(visit.db, lease, visit.name, {"turn": said, "number": talk.turns})
    if chat is None or talk.turns >= chat.turns:
        return here  # the page says so
    limit(visit, "chat", tries=TURNS_A_MINUTE)
    messages = (*talk.messages, Message(role="user", text=said))
    prompt = Prompt(messages=messages, group=group_of(messages), source=f"human:{visit.name}")
    try:
        responses = speakers.answers(chat, prompt, seed=int(chance("chat", lease, talk.turns) * 2**31))
    except speakers.Silent as silent:
        ledger.note(visit.db, kind="chat-failed", actor=visit.name, subject=where.name, content={"told": silent.told[:2000]})
        return _page(visit, mine, talk, typed=said, fault=visit.t(f"chat.{silent.kind}"), status=400)
    queue.add_turn(visit.db, where.name, visit.name, prompt=prompt, responses=responses, kind="pair" if chat.b else "single",
                   chat=mine, number=talk.turns)
    queue.renew(visit.db, lease, visit.name)
    return here


@router.post("/chat/{lease}/end")
def end(lease: str, visit: Annotator, form: Checked) -> Response:
    """The conversation is over: its turns have been judged one by one, and the item is done."""
    mine = _mine(visit, lease)
    if mine is None:
        return RedirectResponse("/", 303)
    talk = conversation(visit.db, mine)
    if mine.lease.state == "open" and (talk.waits or not talk.turns):
        return RedirectResponse(f"/chat/{lease}", 303)
    outcome = queue.submit(visit.db, lease, visit.name, key=f"{lease}.{mine.lease.round}", answers=Answers())
    told = load_project(visit.db, mine.lease.project).settings.reveal and outcome.status == "stored"
    return RedirectResponse(f"/chat/{lease}" if told else f"/annotate/{mine.lease.project}", 303)
