"""A stand-in for the registry's HTTP API: fixed answers over real HTTP, and a record of the requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

TOKEN = "registry-token-of-the-tests"

PULL_LINES = [
    {"status": "pulling manifest"},
    {"status": "pulling 74701a8c35f6", "digest": "sha256:74701a8c35f6", "total": 100, "completed": 100},
    {"status": "verifying sha256 digest"},
    {"status": "writing manifest"},
    {"status": "success"},
]

SHOWN = {
    "name": "smollm2:135m",
    "modified_at": "2026-08-21T18:48:22.123456-07:00",
    "digest": "a" * 64,
    "details": {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    },
    "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
    "template": "{% for m in messages %}{% endfor %}",
    "system": "You are helpful.",
    "license": "Apache-2.0",
    "parameters": {"temperature": 0.2, "stop": ["<|im_start|>", "<|im_end|>"]},
    "capabilities": ["completion", "chat"],
}


class StandInRegistry:
    def __init__(self) -> None:
        self.url = ""
        self.forget()
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/{path:path}", self._answer, methods=["GET", "POST", "DELETE"])

    def forget(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.before_success: Callable[[], Any] | None = None
        #: How many of the next pulls break off after their second line.
        self.breaks = 0

    async def _answer(self, path: str, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "token", "code": "unauthenticated"}, 401)
        raw = await request.body()
        body: dict[str, Any] = json.loads(raw) if raw else {}
        self.asked.append((request.method, request.scope["raw_path"].decode(), body or dict(request.query_params)))
        match request.method, path:
            case "POST", "registry/v1/pull":
                return await self._pull(body)
            case "DELETE", "registry/v1/models" if body["model"] == "missing":
                return JSONResponse({"error": "model 'missing' not found", "code": "model_not_found"}, 404)
            case "DELETE", "registry/v1/models":
                return Response()
            case "GET", "registry/v1/models/show":
                return JSONResponse(SHOWN)
            case "POST", "registry/v1/keys":
                return JSONResponse({"name": body["name"], "secret": "corral-x"}, 201)
            case "GET", "registry/v1/nodes":
                return JSONResponse({"nodes": []})
        return JSONResponse({"error": "no such thing", "code": "not_found"}, 404)

    async def _pull(self, body: dict[str, Any]) -> Response:
        if body["model"] == "unknown" and not body["stream"]:
            return JSONResponse({"error": "pull model manifest: file does not exist", "code": "internal_error"}, 500)
        if self.before_success:
            await self.before_success()
        if not body["stream"]:
            return JSONResponse({"status": "success"})
        return StreamingResponse(self._lines(), media_type="application/x-ndjson")

    def _lines(self) -> Iterator[str]:
        for number, line in enumerate(PULL_LINES):
            if number == 2 and self.breaks:
                self.breaks -= 1
                raise ConnectionResetError
            yield json.dumps(line) + "\n"
