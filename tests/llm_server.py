"""A local server that speaks chat completions and does as it is told: answers, waits, refuses, talks nonsense."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One response of the server."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    finish: str = "stop"
    raw: bytes | None = None
    """The body, whatever it is; shorter than announced with ``cut``."""
    cut: bool = False
    """Close the connection in the middle of the body."""


Script = Callable[[str, int], Answer]
"""Given the question and how often it has been asked before."""


@dataclass
class LlmServer:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    """The Authorization header of every request."""
    most: int = 0
    """The most requests that were under way at the same time."""

    @property
    def asked(self) -> int:
        return len(self.requests)


@contextmanager
def serving(script: Script) -> Iterator[LlmServer]:
    lock, under_way = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][0]["content"]
            with lock:
                before = sum(each["messages"][0]["content"] == question for each in server.requests)
                server.requests.append(body)
                server.keys.append(self.headers.get("Authorization"))
                under_way[0] += 1
                server.most = max(server.most, under_way[0])
            answer = script(question, before)
            time.sleep(answer.wait)
            with lock:
                under_way[0] -= 1
            self._send(answer)

        def _send(self, answer: Answer) -> None:
            data = answer.raw if answer.raw is not None else _completion(answer)
            try:
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if answer.cut else data)
            except OSError:  # nobody waits any more
                pass
            if answer.cut:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            pass

    http = Server(("127.0.0.1", 0), Handler)
    server = LlmServer(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _completion(answer: Answer) -> bytes:
    if answer.status != 200:
        return json.dumps({"error": {"message": answer.text, "type": "error"}}).encode()
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    made = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(made).encode()
