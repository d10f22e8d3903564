"""What models there are, and which of them are loaded: answered from the routes snapshot, with the registry up or down."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata

import msgspec
from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from services.gateway.dependencies import CallerDep, QueueDep, RoutesDep
from services.gateway.dialects import ollama, openai

router = APIRouter()

#: The Ollama whose API this is: its clients refuse servers that are too old for them.
OLLAMA_VERSION = "0.32.15"

_VERSION = msgspec.json.encode({"version": OLLAMA_VERSION, "corral": metadata.version("corral")})


@router.api_route("/", methods=["GET", "HEAD"])
async def heartbeat() -> Response:
    """Clients look for these words."""
    return PlainTextResponse("Ollama is running")


@router.api_route("/api/version", methods=["GET", "HEAD"])
async def version() -> Response:
    return Response(_VERSION, media_type=ollama.JSON)


@router.api_route("/api/tags", methods=["GET", "HEAD"])
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
