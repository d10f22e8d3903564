"""LiteLLM's proxy in front of a backend that answers at once, for comparison with the gateway.

It is installed in a separate environment in the user's cache, because it pins versions of packages that the platform also uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import uvloop

from comparison.processes import child, free_port

VERSION = "1.106.2"
ENVIRONMENT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "corral-bench" / f"litellm-{VERSION}"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def fetch() -> None:
    """Installs it if it is missing, which takes a minute or two."""
    if (ENVIRONMENT / "installed").exists():
        return
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    wanted = f"litellm[proxy]=={VERSION}"
    subprocess.run([ENVIRONMENT / "bin" / "pip", "install", "--quiet", wanted], check=True, timeout=900)
    (ENVIRONMENT / "installed").touch()


@contextlib.contextmanager
def proxy(tokens: int) -> Iterator[tuple[int, int]]:
    """Yields its port and its process id. The model `m` answers with this many tokens."""
    backend_port, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "config.yaml"
        backend = {"model": "openai/m", "api_base": f"http://127.0.0.1:{backend_port}/v1", "api_key": "none"}
        config.write_text(json.dumps({"model_list": [{"model_name": "m", "litellm_params": backend}]}))  # JSON is valid YAML
        command = [str(ENVIRONMENT / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        serving = [sys.executable, "-m", "load.litellm", str(backend_port), str(tokens)]
        settings = {
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        own = {"PYTHONPATH": str(Path(__file__).parents[1])}
        with (
            child(serving, log=folder / "backend.log", environment=own),
            child(command, log=folder / "proxy.log", environment=settings) as process,
        ):
            yield port, process.pid


class Backend(asyncio.Protocol):
    """Answers every request with the same chat completion, whole or streamed as requested, without parsing more of it."""

    def __init__(self, tokens: int) -> None:
        self._whole = _response("application/json", json.dumps(_completion(tokens)).encode())
        self._stream = _response("text/event-stream", b"".join(_chunks(tokens)))
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._received = b""
            self._transport.write(self._stream if b'"stream":true' in body.replace(b" ", b"") else self._whole)


def _response(kind: str, body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _completion(tokens: int) -> dict[str, object]:
    message = {"role": "assistant", "content": " word" * tokens}
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def _chunks(tokens: int) -> Iterator[bytes]:
    for number in range(tokens + 1):
        last = number == tokens
        choice = {"index": 0, "delta": {} if last else {"content": " word"}, "finish_reason": "stop" if last else None}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\n".encode()
    yield b"data: [DONE]\n\n"


async def _serve(port: int, tokens: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Backend(tokens), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
