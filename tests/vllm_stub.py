"""A server with the endpoints of vLLM that rollouts use: it holds a model of its own, read from disk, and draws token by token."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from openai_stub import Reply, on_loopback
from transformers import AutoModelForCausalLM


class VLLMStub:
    """`deaf`: paths that are not there.  `stale`: weights are taken, and forgotten.  `raw`: log-probs before the temperature."""

    def __init__(self, model: Path, *, deaf: tuple[str, ...] = (), stale: bool = False, raw: bool = False,
                 change: Callable[[dict], None] = lambda choice: None):
        self.model, self.deaf, self.stale, self.raw, self.change = read(model), deaf, stale, raw, change
        self.told: list[tuple[str, dict]] = []  # what came besides requests for answers
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        self.address = ""
        self._lock = threading.Lock()

    def reply(self, path: str, headers: dict[str, str], body: dict | None) -> Reply:
        self.keys.add({name.lower(): value for name, value in headers.items()}.get("authorization"))
        if path in self.deaf:
            return Reply(status=404, body={"detail": "Not Found"})
        if path == "/v1/models":
            return Reply(body={"data": [{"id": "served"}]})
        with self._lock:
            if path == "/v1/completions":
                self.bodies.append(body)
                return Reply(body={"choices": [self.complete(body)]})
            self.told.append((path, body))
            if path == "/collective_rpc" and not self.stale:
                assert body["method"] == "reload_weights"
                self.model = read(Path(body["kwargs"]["weights_path"]))
            return Reply(body={"results": [None]} if path == "/collective_rpc" else {"success": True})

    @torch.no_grad()
    def complete(self, body: dict) -> dict:
        rng = torch.Generator().manual_seed(body["seed"])
        ids, found, logps, why = list(body["prompt"]), [], [], "length"
        while len(found) < body["max_tokens"] and why == "length":
            logit_V = self.model(torch.tensor([ids])).logits[0, -1].float()
            drawn_V = torch.log_softmax(logit_V / body["temperature"], -1)
            token = int(torch.multinomial(drawn_V.exp(), 1, generator=rng))
            logps.append(float((torch.log_softmax(logit_V, -1) if self.raw else drawn_V)[token]))
            ids.append(token)
            found.append(token)
            why = "stop" if token in body["stop_token_ids"] else "length"
        choice = {"index": 0, "text": "", "token_ids": found, "logprobs": {"token_logprobs": logps}, "finish_reason": why}
        self.change(choice)
        return choice


def read(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@contextmanager
def serving(model: Path, **options: Any) -> Iterator[VLLMStub]:
    with on_loopback(VLLMStub(model, **options)) as stub:
        yield stub
