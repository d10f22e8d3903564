"""Lists models, and which of them are loaded. Answered from the routes snapshot, so it works even if the registry is down."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata

import msgspec
from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from services.gateway.dependencies import CallerDep, QueueDep, RoutesDep
from services.gateway.dialects import ollama, openai

router = APIRouter()

#: The newest Ollama version that doesn't promise routes which don't exist here: 0.13.3 added /v1/responses, which codex calls
#: from that version on, and 0.14.0 added /v1/messages. Clients also compare this with the version that a feature needs.
OLLAMA_VERSION = "0.13.2"

_VERSION = msgspec.json.encode({"version": OLLAMA_VERSION, "corral": metadata.version("corral")})


@router.get("/")
async def heartbeat() -> Response:
    """Clients check for exactly this text."""
    return PlainTextResponse("Ollama is running")


@router.get("/api/version")
async def version() -> Response:
    return Response(_VERSION, media_type=ollama.JSON)


@router.get("/api/tags")
async def tags(caller: CallerDep, routes: RoutesDep) -> Response:
    return Response(ollama.tags_body(routes.current), media_type=ollama.JSON)


@router.get("/api/ps")
async def ps(caller: CallerDep, routes: RoutesDep, queue: QueueDep) -> Response:
    snapshot, demands, workers = routes.current, await queue.demand(), await queue.workers()
    return Response(ollama.ps_body(snapshot, demands, workers, now=datetime.now(UTC)), media_type=ollama.JSON)


@router.get("/v1/models")
async def models(caller: CallerDep, routes: RoutesDep) -> Response:
    return Response(openai.models_body(routes.current), media_type=openai.JSON)


@router.get("/v1/models/{name:path}")
async def model(name: str, caller: CallerDep, routes: RoutesDep) -> Response:
    target = await routes.resolve(name)
    return Response(openai.model_body(routes.current.tags[target.name.key]), media_type=openai.JSON)
