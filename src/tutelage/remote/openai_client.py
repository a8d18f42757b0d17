"""Any OpenAI-compatible address as an `Engine`: prompts in, responses out, many requests at once.

Each response is a request of its own (n = 1) with a seed of its own, so that what is asked for does not depend on which
prompts rode along, and servers that know no `n` do as well.  Whether the same seed gives the same text is the server's
promise, not ours.  Left out: token ids and log-probs (`None`), reasoning that a server sends beside the answer.
"""

import contextlib
import difflib
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json, sha256_bytes
from tutelage.core.words import Message, Prompt, Response, Sampling
from tutelage.remote.address import read_address
from tutelage.remote.pool import as_finished
from tutelage.remote.wire import LIKELY, Broken, Patience, Refused, Wire

CHAT = "/chat/completions"
FINISH = {  # theirs -> ours; what is not here is an error
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "length": "length",
    "content_filter": "error",
}
NO_ROOM = ("context_length_exceeded", "exceed_context_size", "maximum context length", "available context size")
FILTERED = ("content_filter", "content_policy_violation")
SEEDS = 2**31  # llama.cpp and others keep a seed in 32 bits


class OpenAIEngine:
    """An `Engine` (core/protocols.py) over an address.  Safe to use from several threads."""

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        at_once: int = 8,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """address: "http://host:8000/v1#model"; without #model, the only one that it lists.  key: default OPENAI_API_KEY of the
        environment; it is sent to the address and goes nowhere else.  at_once: requests under way at one time."""
        if at_once < 1:
            raise UserError(f"at_once must be at least 1; got {at_once}")
        place = read_address(address)
        self.address, self.at_once = place.base, at_once
        self._wire = Wire(place.base, key=os.environ.get("OPENAI_API_KEY", "") if key is None else key, connections=at_once,
                          patience=patience, sleep=sleep)
        self.model = place.model or self._only_model()
        self.policy = f"{self.model}@{place.host}"  # two checkpoints are often served under one name, at two addresses
        self._limit = "max_tokens"  # see `_ask`
        self._seeds = True

    def respond(self, requests: Iterable[tuple[Prompt, Sampling]]) -> Iterator[Response]:
        """Responses as they finish.  `finish` is "stop", "length", or "error": the prompt is longer than the model's context,
        or the server's filter held the answer back."""
        jobs = ((prompt, sampling, index) for prompt, sampling in requests for index in range(sampling.n))
        return as_finished(lambda job: self._answer(*job), jobs, threads=self.at_once)

    def stream(self, prompt: Prompt, sampling: Sampling, *, index: int = 0) -> Generator[str, None, Response]:
        """One answer in pieces as they come; the generator's value (`StopIteration.value`) is the whole Response.

        UserError where the connection breaks in the middle: the pieces so far are no answer.
        """
        if prompt.tools:  # calls come in fragments; nobody reads along
            response = self._answer(prompt, sampling, index)
            yield response.text
            return response
        text, finish = "", None
        try:
            with contextlib.closing(self._ask(self._wire.events, prompt, sampling, index, stream=True)) as events:
                for event in events:
                    piece, ended = _first_choice(event) or ("", None)  # the chunk with the usage has none
                    text, finish = text + piece, ended or finish
                    if piece:
                        yield piece
        except Refused as refusal:
            return self._no_answer(refusal, prompt, sampling, index)
        except Broken as broken:
            if finish is None:
                raise UserError(f"{broken}, after {len(text)} characters; ask again") from broken
        if finish is None:
            raise UserError(f"{self.address} ended its answer in the middle, after {len(text)} characters; ask again")
        return self._response(prompt, sampling, index, text, finish)

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[list[float]]:
        raise UserError(f"{self.policy} is an address, and an address gives no log-probs of given texts; use the model's files "
                        "instead (a folder, a run or hf:NAME)")

    def models(self) -> list[str]:
        """Names of the models that the address lists."""
        listed = self._wire.get("/models").get("data")
        return [str(each.get("id")) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []

    def close(self) -> None:
        self._wire.close()

    # -- one answer ----------------------------------------------------------------------------------------------

    def _answer(self, prompt: Prompt, sampling: Sampling, index: int) -> Response:
        try:
            (found,) = self._ask(self._post, prompt, sampling, index)
        except Refused as refusal:
            return self._no_answer(refusal, prompt, sampling, index)
        choice = _first_choice(found)
        if choice is None:
            raise UserError(f"{self.address} answered without choices (its fields: {', '.join(found)}); {LIKELY}")
        return self._response(prompt, sampling, index, *choice)

    def _post(self, path: str, body: dict[str, Any], *, spread: float) -> Iterator[dict[str, Any]]:
        yield self._wire.post(path, body, spread=spread)

    def _ask(self, send: Callable[..., Iterator[dict]], prompt: Prompt, sampling: Sampling, index: int,
             **extra: Any) -> Iterator[dict[str, Any]]:
        """What `send` gives.  A server that refuses `max_tokens` gets `max_completion_tokens` from then on, and one that
        refuses `seed` gets none.  Not the newer name first: older servers ignore it, and answer without a limit."""
        seed = seed_of(sampling, prompt.id, index)
        while True:
            limit, seeds = self._limit, self._seeds  # other threads may change them meanwhile
            body = {"model": self.model, "messages": to_messages(prompt.messages), limit: sampling.max_tokens,
                    **_options(sampling), **({"seed": seed} if seeds else {}), **extra}
            if prompt.tools:
                body["tools"] = [_tool(tool) for tool in prompt.tools]
            try:
                yield from send(CHAT, body, spread=seed / SEEDS)
                return
            except Refused as refusal:
                if _prompt_at_fault(refusal):
                    raise
                if limit == "max_tokens" and _names(refusal, "max_tokens", "max_completion_tokens"):
                    self._limit = "max_completion_tokens"
                elif seeds and _names(refusal, "seed", '"seed"'):
                    self._seeds = False
                elif refusal.status == 404 or refusal.code == "model_not_found":
                    raise self._no_such_model(refusal) from refusal
                else:
                    raise

    def _no_answer(self, refusal: Refused, prompt: Prompt, sampling: Sampling, index: int) -> Response:
        """The response where the prompt is at fault; else the refusal is raised."""
        if not _prompt_at_fault(refusal):
            raise refusal
        return self._response(prompt, sampling, index, "", None)

    def _response(self, prompt: Prompt, sampling: Sampling, index: int, text: str, finish: str | None) -> Response:
        # JSON can write half a surrogate pair, and a stream can part one; no file and no hash takes a half.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for stop in sampling.stop:  # most servers leave it out, some do not
            text = text.split(stop, 1)[0]
        return Response(prompt_id=prompt.id, index=index, text=text, policy=self.policy, sampling=sampling,
                        finish=FINISH.get(finish or "", "error"))

    # -- models --------------------------------------------------------------------------------------------------

    def _only_model(self) -> str:
        try:
            found = self.models()
        except Refused as refusal:
            if refusal.status != 404:
                raise
            found = []
        if len(found) == 1:
            return found[0]
        raise UserError(f"{self.address} lists {len(found)} models{': ' + ', '.join(found) if found else ''}; say which one: "
                        f'"{self.address}#NAME"')

    def _no_such_model(self, refusal: Refused) -> UserError:
        try:
            found = self.models()
        except UserError:
            found = []
        if not found:
            return UserError(f"{refusal}; {LIKELY}")
        if self.model in found:  # so something else was not found
            return UserError(str(refusal))
        likely = difflib.get_close_matches(self.model, found, n=20, cutoff=0.0)  # the nearest first
        return UserError(f"{self.address} has no model {self.model!r}; it lists {', '.join(likely)}"
                         + (f" and {len(found) - 20} more" if len(found) > 20 else ""))


def seed_of(sampling: Sampling, prompt_id: str, index: int) -> int:
    """The seed of one response, in [0, 2**31): of (seed, prompt id, index, step) alone, as on this machine.

    >>> seed_of(Sampling(seed=1), "p", 0) == seed_of(Sampling(seed=1, n=4), "p", 0) != seed_of(Sampling(seed=1), "p", 1)
    True
    """
    key = canonical_json([sampling.seed, prompt_id, index, sampling.step])
    return int(sha256_bytes(key.encode("utf-8"))[:16], 16) % SEEDS


def to_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the API wants them: a tool call has an id, and the tool's answer names it.  Ours come in order."""
    out, open_calls, made = [], [], 0
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.role == "tool":
            row["tool_call_id"] = open_calls.pop(0) if open_calls else "call_unknown"
        elif message.name:
            row["name"] = message.name
        if message.tool_calls:
            open_calls = [f"call_{made + at}" for at in range(len(message.tool_calls))]
            made += len(open_calls)
            row["tool_calls"] = [_call(call, call_id) for call, call_id in zip(message.tool_calls, open_calls, strict=True)]
        out.append(row)
    return out


def _call(call: dict[str, Any], call_id: str) -> dict[str, Any]:
    function = call.get("function", call)
    given = function.get("arguments", {})
    return {"id": call_id, "type": "function", "function": {
        "name": function.get("name", ""), "arguments": given if isinstance(given, str) else canonical_json(given)}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return tool if "function" in tool else {"type": "function", "function": tool}


def _options(sampling: Sampling) -> dict[str, Any]:
    """What differs from the API's defaults: a strict server has nothing to refuse that was not asked for.  `top_k` is no part
    of the API; vLLM, llama.cpp and others know it."""
    out: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_p < 1:
        out["top_p"] = sampling.top_p
    if sampling.top_k:
        out["top_k"] = sampling.top_k
    if sampling.stop:
        out["stop"] = list(sampling.stop)
    return out


def _first_choice(found: dict[str, Any]) -> tuple[str, str | None] | None:
    """Text and finish of the first choice of an answer, or of a piece of one."""
    choices = found.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return None
    message, finish = choice.get("delta") or choice.get("message"), choice.get("finish_reason")
    return _text(message if isinstance(message, dict) else {}), str(finish) if finish else None


def _text(message: dict[str, Any]) -> str:
    """Text of a message or of a piece of one; its refusal where it has no text; tool calls follow as JSON."""
    content = message.get("content")
    if isinstance(content, list):  # parts
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    text = content or message.get("refusal") or ""
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    return f"{text}\n{canonical_json(calls)}".lstrip("\n") if calls else str(text)


def _names(refusal: Refused, param: str, word: str) -> bool:
    """Whether a refusal is about `param`: it says so, or its text holds `word`."""
    return refusal.status in (400, 422) and (refusal.param == param or word in refusal.says)


def _prompt_at_fault(refusal: Refused) -> bool:
    """Whether the prompt is at fault and not the request: it is too long, or the server's filter stopped it."""
    said = f"{refusal.code} {refusal.says}"
    return refusal.status in (400, 413, 422) and any(word in said for word in (*NO_ROOM, *FILTERED))
