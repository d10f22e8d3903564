"""A real HTTP server with scripted answers in the format of a Corral gateway."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """`lines` are sent one by one as NDJSON; with `hang` the connection then stays open until the client disconnects, with `breaks` it
    closes before the end of the body. `encoding` is the Content-Encoding header."""

    status: int = 200
    body: Any = None
    lines: list[dict[str, Any]] | None = None
    hang: bool = False
    breaks: bool = False
    encoding: str = ""
    silence_s: float = 0.0  # before the answer


@dataclass
class Gateway:
    """Answers by method and path; the last of several answers is repeated. Records every request body."""

    url: str = ""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    def answer(self, route: str, *answers: Answer) -> None:
        self.answers[route] = list(answers)

    def bodies(self, route: str) -> list[Any]:
        return [body for asked, body in self.requests if asked == route]


@contextmanager
def serve() -> Iterator[Gateway]:
    gateway = Gateway()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(gateway))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    gateway.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield gateway
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(gateway: Gateway) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            route = f"{self.command} {self.path}"
            if route not in gateway.answers:  # most answers do not depend on the query
                route = route.partition("?")[0]
            gateway.requests.append((route, body))
            gateway.headers.append(dict(self.headers))
            answers = gateway.answers.get(route) or [Answer(404, {"error": f"no route {route}"})]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self._send(answer)

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.silence_s)
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/x-ndjson" if answer.lines is not None else "application/json")
            if answer.encoding:
                self.send_header("Content-Encoding", answer.encoding)
            if answer.breaks:
                self.send_header("Content-Length", str(10**6))
            self.end_headers()
            if answer.lines is None:
                self.wfile.write(b"" if answer.body is None else json.dumps(answer.body).encode())
                return
            for line in answer.lines:
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
            if answer.hang:
                self.rfile.read(1)
                gateway.left.set()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


MODEL = {
    "name": "smollm2:135m",
    "model": "smollm2:135m",
    "modified_at": "2020-01-01T00:00:00.123456+00:00",
    "size": 98_373_774,
    "digest": "1a4fe4fc0718" + "0" * 52,
    "details": {"family": "llama", "parameter_size": "134.52M", "quantization_level": "Q4_1"},
}

LOADED = MODEL | {"size": 951_000_000, "size_vram": 0, "context_length": 4096, "expires_at": "2320-01-01T00:00:00Z"}

SHOWN = {
    "details": MODEL["details"],
    "model_info": {
        "general.architecture": "llama",
        "general.parameter_count": 134_515_008,
        "llama.context_length": 8192,
        "llama.embedding_length": 576,
    },
    "parameters": 'stop                           "<|im_end|>"\ntemperature                    0.2',
    "system": "Be brief.\nBe kind.\nBe right.",
    "license": "Apache License",
    "capabilities": ["completion", "chat"],
}

NODE = {
    "name": "vm",
    "state": "ready",
    "last_seen_at": "2020-01-01T00:00:00Z",
    "cpus": 2,
    "memory_total": 2**33,
    "memory_available": 2**32,
    "disk_total": 2**40,
    "disk_free": 2**39,
    "devices": [{"kind": "cuda", "name": "H100", "memory_bytes": 2**36}],
    "replicas": 1,
    "models": 3,
}

KEY = {
    "id": "1",
    "name": "ada",
    "team": "red",
    "admin": True,
    "created_at": "2020-01-01T00:00:00Z",
    "revoked_at": None,
    "prefix": "corral-AbCdE",
    "weight": 1.0,
    "priority": "interactive",
    "max_waiting": None,
}

QUEUE = {
    "model": "smollm2:135m",
    "digest": LOADED["digest"],
    "waiting": 12,
    "by_priority": {"interactive": 0, "normal": 12, "batch": 0},
    "oldest_wait_s": 4.2,
    "drained_per_second": 2.5,
    "running": 8,
    "slots": 8,
    "callers": [{"caller": "ada", "waiting": 12}],
}

PULL: list[dict[str, Any]] = [
    {"status": "pulling manifest"},
    {"status": "pulling 1a4fe4fc0718", "digest": "sha256:1a4fe4fc0718", "total": 2000},
    {"status": "pulling 1a4fe4fc0718", "digest": "sha256:1a4fe4fc0718", "total": 2000, "completed": 2000},
    {"status": "verifying sha256 digest"},
    {"status": "writing manifest"},
    {"status": "success"},
]

TIMINGS = {
    "total_duration": 2_500_000_000,
    "load_duration": 81_200_000,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 50,
    "eval_duration": 2_000_000_000,
}


def generated(*pieces: str) -> list[dict[str, Any]]:
    """The lines of /api/generate."""
    return [{"response": piece, "done": False} for piece in pieces] + [{"response": "", "done": True, **TIMINGS}]


def chatted(*pieces: str) -> list[dict[str, Any]]:
    """The lines of /api/chat."""
    lines = [{"message": {"role": "assistant", "content": piece}, "done": False} for piece in pieces]
    return [*lines, {"message": {"role": "assistant", "content": ""}, "done": True, **TIMINGS}]
