"""A small OpenAI-compatible server for the tests: loopback only, and it does what a script says, request by request."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model"}, {"id": "large", "object": "model"}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server does with one request."""

    body: Any = None  # sent as JSON; text and bytes as they are
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunks: tuple[bytes, ...] | None = None  # instead of a body: a stream
    cut: bool = False  # close the connection where the rest should come


def answer(text: str | None = "hello", *, finish: str | None = "stop", **message: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return Reply(body={"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 3}})


def error(status: int, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    return Reply(status=status, body={"error": {"message": message, **more}}, headers=headers or {})


def event(delta: dict | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """One server-sent event of a chat completion; without a delta, one without choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": choices, **more}, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Stub:
    """`script(body, number)` says what to do with the chat request `number` (from 0)."""

    def __init__(self, script: Callable[[dict, int], Reply], *, models: Reply | None = None):
        self.script, self.models = script, models or Reply(body=MODELS)
        self.bodies: list[dict] = []  # of chat requests, as they came
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0  # chat requests under way, and the most at one time
        self.address = ""
        self._lock = threading.Lock()

    def reply(self, path: str, headers: dict[str, str], body: dict | None) -> Reply:
        if path == "/v1/models":
            return self.models
        if path != "/v1/chat/completions" or body is None:
            return Reply(status=404, body={"detail": "Not Found"})
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.script(body, number)
        finally:
            with self._lock:
                self.now -= 1


@contextmanager
def serving(script: Callable[[dict, int], Reply] = lambda body, number: answer(), **options: Any) -> Iterator[Stub]:
    with on_loopback(Stub(script, **options)) as stub:
        yield stub


@contextmanager
def on_loopback(stub: Any) -> Iterator[Any]:
    """Serve whatever has `reply(path, headers, body)`; its `address` is set."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._write(stub.reply(self.path, dict(self.headers), None))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._write(stub.reply(self.path, headers, body))

        def _write(self, reply: Reply) -> None:
            data = reply.body if isinstance(reply.body, bytes) else (
                reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
            kind = "application/json" if reply.chunks is None else "text/event-stream"
            self.send_response(reply.status)
            for name, value in {"content-type": kind, **reply.headers}.items():
                self.send_header(name, value)
            if reply.chunks is None:
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if reply.cut else data)
            else:
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for chunk in reply.chunks:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                if not reply.cut:
                    self.wfile.write(b"0\r\n\r\n")
            if reply.cut:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
