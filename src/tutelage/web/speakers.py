"""The engines of live chats: asked at once, each in a thread of its own, within a time.

What went wrong is told in two ways: whoever chats learns that an answer did not come and of what kind the trouble is; the
engine's own words name its address and model, and are for the log, which admins read.
"""

import contextlib
import os
import queue
import threading
import time
from functools import lru_cache

import httpx

from tutelage.core.errors import UserError
from tutelage.core.words import Prompt, Response, Sampling
from tutelage.remote.openai_client import OpenAIEngine
from tutelage.remote.wire import Patience
from tutelage.store.chat_settings import ChatSettings

MOST_TEXT = 2_000_000  # characters of an answer


class Silent(Exception):
    """An answer did not come.  `kind`: slow, held (by a filter, or too long a conversation) or failed; `told`: for admins."""

    def __init__(self, kind: str, place: int, told: str):
        super().__init__(told)
        self.kind, self.place, self.told = kind, place, told


def answers(chat: ChatSettings, prompt: Prompt, *, seed: int) -> tuple[Response, ...]:
    """One answer of each engine, in the order of the settings.  Silent when one of them gave none: then all are asked again."""
    sampling = Sampling(max_tokens=chat.max_tokens, temperature=chat.temperature, seed=seed)
    ends, done = time.monotonic() + chat.seconds, queue.SimpleQueue()
    for place in range(len(chat.engines)):
        threading.Thread(target=_answer, args=(chat, place, prompt, sampling, ends, done), daemon=True, name=f"chat-{place}").start()
    found: dict[int, Response] = {}
    while len(found) < len(chat.engines):
        try:
            place, response = done.get(timeout=max(ends - time.monotonic(), 0.001))
        except queue.Empty:
            missing = next(each for each in range(len(chat.engines)) if each not in found)
            raise Silent("slow", missing, f"{chat.engines[missing][0]} did not answer within {chat.seconds:g} s") from None
        if isinstance(response, BaseException):
            raise response
        found[place] = response
    return tuple(found[place] for place in sorted(found))


def _answer(chat: ChatSettings, place: int, prompt: Prompt, sampling: Sampling, ends: float, done: queue.SimpleQueue) -> None:
    address, key = chat.engines[place]
    try:
        done.put((place, _whole(_engine(address, _key(key, place), chat.seconds), place, prompt, sampling, ends)))
    except (UserError, httpx.HTTPError) as error:
        done.put((place, Silent("failed", place, f"{address}: {error}")))
    except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread, not swallowed
        done.put((place, error))


def _whole(engine: OpenAIEngine, place: int, prompt: Prompt, sampling: Sampling, ends: float) -> Response:
    """Read in pieces: a server that sends one now and then would pass every other limit of time."""
    length = 0
    with contextlib.closing(engine.stream(prompt, sampling, index=place)) as pieces:
        while True:
            try:
                length += len(next(pieces))
            except StopIteration as end:
                response: Response = end.value
                if response.finish == "error" and not response.text:
                    raise Silent("held", place, f"{engine.policy}: held back by a filter, or too long a conversation") from None
                return response
            if time.monotonic() > ends:
                raise Silent("slow", place, f"{engine.policy} was still answering when its time was over")
            if length > MOST_TEXT:
                raise Silent("failed", place, f"{engine.policy} sent more than {MOST_TEXT} characters")


def _key(name: str, place: int) -> str:
    if name and not os.environ.get(name):
        raise Silent("failed", place, f"the environment variable {name} is not set where the server runs")
    return os.environ[name] if name else ""


@lru_cache(maxsize=32)
def _engine(address: str, key: str, seconds: float) -> OpenAIEngine:
    """Kept, with its connections and with what it learned of its server."""
    patience = Patience(timeout=seconds, connect=min(seconds, 5.0), retries=1, longest=5.0)
    return OpenAIEngine(address, key=key, at_once=64, patience=patience)
