"""Management requests, forwarded to the registry. All but /api/show need an admin key.

After a successful change, the gateway refreshes its routes snapshot before it answers, so that the caller can use the change at
once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from services.gateway.dependencies import AdminDep, BodyDep, CallerDep, RegistryDep, RoutesDep
from services.gateway.dialects import ollama
from services.gateway.registry import RegistryClient, lines_of, read, read_good
from services.gateway.routes_view import RoutesView
from services.protocol.errors import BadRequest, CorralError, Unavailable
from services.protocol.names import ModelName

router = APIRouter()

#: How long a pull waits for a registry that has gone away.
REGISTRY_RETURNS_S = 60.0

_PULL = "/registry/v1/pull"
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@router.post("/api/show")
async def show(caller: CallerDep, raw: BodyDep, routes: RoutesDep, registry: RegistryDep) -> Response:
    body = ollama.decode_named(raw)
    if not body.asked:
        raise BadRequest("model is required")
    target = await routes.resolve(ModelName.parse(body.asked).display)
    answer = await registry.call("GET", "/registry/v1/models/show", params={"name": target.name.display})
    return Response(ollama.show_body(ollama.decode_registry_model(answer)), media_type=ollama.JSON)


@router.post("/api/pull")
async def pull(admin: AdminDep, raw: BodyDep, routes: RoutesDep, registry: RegistryDep) -> Response:
    body = ollama.decode_pull(raw)
    if not body.asked:
        raise BadRequest("invalid model name")
    forwarded = msgspec.json.encode({"model": body.asked, "as": body.as_, "stream": body.streamed})
    upstream = await registry.open("POST", _PULL, content=forwarded)
    if body.streamed and upstream.is_success:
        return StreamingResponse(_progress(_pull_lines(registry, forwarded, upstream), routes), media_type=ollama.NDJSON)
    answer = await read_good(upstream)
    await routes.refresh()
    return Response(answer, media_type=ollama.JSON)


@router.delete("/api/delete")
async def delete(admin: AdminDep, raw: BodyDep, routes: RoutesDep, registry: RegistryDep) -> Response:
    body = ollama.decode_named(raw)
    if not body.asked:
        raise BadRequest('name "" is invalid')
    await registry.call("DELETE", "/registry/v1/models", body={"model": body.asked})
    await routes.refresh()
    return Response()


@router.api_route("/registry/v1/{path:path}", methods=_METHODS)
async def forward(
    path: str, request: Request, admin: AdminDep, raw: BodyDep, routes: RoutesDep, registry: RegistryDep
) -> Response:
    """Forwards any request to the registry's own API unchanged."""
    query = request.scope["query_string"]
    target = request.scope["raw_path"] + (b"?" + query if query else b"")
    upstream = await registry.open(request.method, target.decode("ascii"), content=raw)
    media_type = upstream.headers.get("content-type")
    if media_type == ollama.NDJSON:
        return StreamingResponse(_progress(lines_of(upstream), routes), upstream.status_code, media_type=media_type)
    answer = await read(upstream)
    if request.method != "GET":
        await routes.refresh()
    return Response(answer, upstream.status_code, media_type=media_type)


async def _pull_lines(registry: RegistryClient, forwarded: bytes, upstream: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a pull. If the registry restarts, asks it again: the pull goes on, and its lines begin again."""
    while True:
        try:
            async for line in lines_of(upstream):
                yield line
            return
        except Unavailable:
            upstream = await _pull_again(registry, forwarded)


async def _pull_again(registry: RegistryClient, forwarded: bytes) -> httpx.Response:
    """Raises Unavailable if the registry stays away, and its error if it refuses."""
    deadline = time.monotonic() + REGISTRY_RETURNS_S
    while True:
        await asyncio.sleep(1.0)
        try:
            upstream = await registry.open("POST", _PULL, content=forwarded)
            if upstream.is_success:
                return upstream
            await read_good(upstream)
        except Unavailable:
            if time.monotonic() > deadline:
                raise


async def _progress(lines: AsyncIterator[bytes], routes: RoutesView) -> AsyncIterator[bytes]:
    """Relays the lines of a pull. If the pull breaks off, the last line is the error."""
    try:
        async for line in lines:
            if b'"success"' in line:
                await routes.refresh()
            yield line
    except CorralError as error:
        yield ollama.error_body(error) + b"\n"
