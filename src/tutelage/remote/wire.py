"""Requests to an OpenAI-compatible address: the key, tries and waits, server-sent events, and errors in plain words.

What is tried again: no answer in time, a connection that breaks, 408, 429 and 5xx, after a pause that doubles, or the one
that the server asks for (`retry-after-ms`, `retry-after`).  An address that cannot be reached and never could is not: it is
wrong, or its server is not running.
"""

import email.utils
import functools
import json
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from tutelage.core.errors import UserError

NO_WAY = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
LIKELY = "is it the address of an OpenAI-compatible API? It usually ends in /v1"


class Refused(UserError):
    """The server understood and said no.  `says` is its own text, `param` and `code` as it gave them or ""."""

    def __init__(self, text: str, *, status: int, says: str, param: str = "", code: str = ""):
        super().__init__(text)
        self.status, self.says, self.param, self.code = status, says, param, code


class Broken(UserError):
    """The connection ended in the middle of a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, and how often to try again."""

    timeout: float = 600.0  # seconds without a byte; an answer that is not streamed comes in one piece
    connect: float = 10.0  # seconds
    retries: int = 5  # tries after the first
    pause: float = 0.5  # seconds before the first of them, then twice as long each time
    longest: float = 120.0  # seconds; a server that asks for more is an error

    def before(self, attempt: int, spread: float) -> float:
        """Seconds before try `attempt` (from 1).  `spread` in [0, 1) parts requests that were refused together.

        >>> Patience().before(1, 0.0), Patience().before(3, 0.5)
        (0.5, 2.5)
        """
        return min(self.pause * 2 ** (attempt - 1) * (1 + spread / 2), self.longest)


class Wire:
    """One address.  Safe to use from several threads."""

    def __init__(self, base: str, *, key: str = "", connections: int = 8, patience: Patience | None = None,
                 sleep: Callable[[float], None] = time.sleep):
        key = key.strip()
        if not (key.isascii() and key.isprintable()) or " " in key:  # not shown: it may be most of a key
            raise UserError("the API key holds characters that no key has; give it again (OPENAI_API_KEY), without spaces")
        try:
            httpx.URL(base)
        except httpx.InvalidURL as error:
            raise UserError(f"the address {base!r} cannot be read: {error}") from error
        self.base, self.patience, self._key, self._sleep = base, patience or Patience(), key, sleep
        self._reached = False  # has this address ever answered?
        self._client = httpx.Client(
            headers={"authorization": f"Bearer {key}"} if key else {},
            verify=_certificates(),
            timeout=httpx.Timeout(self.patience.timeout, connect=self.patience.connect, pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        return self._json(self._send("GET", path))

    def post(self, path: str, body: Mapping[str, Any], *, spread: float = 0.0) -> Any:
        """The JSON of the answer."""
        return self._json(self._send("POST", path, body, spread=spread))

    def events(self, path: str, body: Mapping[str, Any], *, spread: float = 0.0) -> Iterator[dict[str, Any]]:
        """The JSON of each server-sent event up to `[DONE]` or the end.  Broken for a connection that ends before its time.

        A server that answers with one JSON document instead gives that one.
        """
        response = self._send("POST", path, body, spread=spread, stream=True)
        try:
            if "json" in response.headers.get("content-type", ""):
                response.read()
                yield self._json(response)
                return
            for data in events(lines(response.iter_bytes())):
                if data.strip() == "[DONE]":
                    return
                yield self._parsed(data)
        except httpx.RequestError as error:
            raise Broken(f"the connection to {self.base} broke in the middle of an answer ({self._clean(error)})") from error
        finally:
            response.close()

    # -- one request ---------------------------------------------------------------------------------------------

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, spread: float = 0.0,
              stream: bool = False) -> httpx.Response:
        """The response with status 2xx, tried again as `patience` says; unread where `stream`."""
        for attempt in range(1, self.patience.retries + 2):
            asked = None
            try:
                response = self._client.send(self._client.build_request(method, self.base + path, json=body), stream=True)
                self._reached = True
                if response.is_success:
                    return response if stream else self._read(response)
                refusal = self._refusal(self._read(response))
                if not _passes(refusal):
                    raise refusal
                trouble, asked = refusal, _wait_of(response.headers)
            except httpx.RequestError as error:
                trouble = self._broken(error)
                if isinstance(error, NO_WAY) and not self._reached:
                    raise trouble from error
            if attempt <= self.patience.retries:
                self._sleep(self._pause(attempt, spread, asked, trouble))
        raise UserError(f"{trouble}; gave up after {attempt} tries") from trouble

    def _read(self, response: httpx.Response) -> httpx.Response:
        try:
            response.read()
        finally:
            response.close()
        return response

    def _pause(self, attempt: int, spread: float, asked: float | None, trouble: UserError) -> float:
        if asked is None:
            return self.patience.before(attempt, spread)
        if asked > self.patience.longest:
            raise UserError(f"{trouble}; it asks to wait {asked:.0f} s, and we wait {self.patience.longest:.0f} s at most: "
                            "run the same command later") from trouble
        return asked

    # -- what went wrong, in words -------------------------------------------------------------------------------

    def _broken(self, error: httpx.RequestError) -> UserError:
        why = self._clean(error) or type(error).__name__
        if isinstance(error, NO_WAY):
            return UserError(f"cannot reach {self.base} ({why}); is the server running, and are host and port right?")
        if isinstance(error, httpx.TimeoutException):
            return UserError(f"{self.base} did not answer within {self.patience.timeout:g} s")
        return UserError(f"the connection to {self.base} broke ({why})")

    def _refusal(self, response: httpx.Response) -> Refused:
        says, param, code = _complaint(_loads(response.text))
        status, says = response.status_code, self._clean(says or " ".join(response.text.split()))[:500]
        if status in (401, 403):
            what = "does not accept the API key" if self._key else "wants an API key"
            text = f"{self.base} {what} ({status}: {says}); set OPENAI_API_KEY to a key that is valid there"
        elif response.is_redirect:
            there = self._clean(response.headers.get("location", ""))
            text = f"{self.base} has moved to {there}; give that address (a key is not sent on to another)"
        else:
            text = f"{self.base} refused ({status}): {says}"
        return Refused(text, status=status, says=says, param=param, code=code)

    def _json(self, response: httpx.Response) -> Any:
        return self._parsed(response.text)

    def _parsed(self, text: str) -> dict[str, Any]:
        found = _loads(text)
        if not isinstance(found, dict):
            raise UserError(f"{self.base} answered with what is no JSON object: {self._clean(text)[:120]!r}; {LIKELY}")
        if found.get("error"):  # some send errors with status 200, and in a stream there is no other way
            raise UserError(f"{self.base} broke off its answer: {self._clean(_complaint(found)[0])[:500]}")
        return found

    def _clean(self, text: object) -> str:
        """Without the key, whoever repeats it."""
        return str(text).replace(self._key, "***") if self._key else str(text)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Those that httpx trusts; reading them takes longer than a short answer."""
    return httpx.create_ssl_context()


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _complaint(found: Any) -> tuple[str, str, str]:
    """Message, parameter and code of {"error": {...}}, {"error": "text"}, {"message": ...} or {"detail": ...}."""
    if not isinstance(found, dict):
        return "", "", ""
    inner = found.get("error", found)
    if not isinstance(inner, dict):
        return str(inner), "", ""
    message = inner.get("message") or inner.get("detail") or inner
    code = inner.get("code") if isinstance(inner.get("code"), str) else inner.get("type")
    return (message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)[:500],
            str(inner.get("param") or ""), str(code or ""))


def _passes(refusal: Refused) -> bool:
    """Whether waiting may help.  A quota that is used up is a 429 that does not pass."""
    return refusal.status in (408, 429) and refusal.code != "insufficient_quota" or refusal.status >= 500


def _wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date.

    >>> _wait_of({"retry-after": "3"}), _wait_of({"retry-after-ms": "250"}), _wait_of({"retry-after": "soon"})
    (3.0, 0.25, None)
    """
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(float(headers[name]) / scale, 0.0)
        except (KeyError, ValueError):
            continue
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError):
        return None


# -- server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) ---------------------------


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a stream of bytes, ended by line feeds alone: httpx's `iter_lines` also cuts at U+2028, which JSON may hold."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r").decode("utf-8", "replace") for line in whole)


def events(lines: Iterable[str]) -> Iterator[str]:
    """The data of each event.  Comments (`: keepalive`) and other fields are passed over; an event that is cut off is dropped.

    >>> list(events([": keepalive", "", "data: a", "", "event: x", "data: b", "data:c", "", "data: cut"]))
    ['a', 'b\\nc']
    """
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
