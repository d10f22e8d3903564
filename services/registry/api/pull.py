"""POST /pull: fetches a model to a node and says how it goes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, StringConstraints

from services.protocol.errors import BadRequest, CorralError
from services.registry import pulls
from services.registry.api.dependencies import Parts, PartsDep
from services.registry.pulls import Line

router = APIRouter()

_Name = Annotated[str, StringConstraints(strip_whitespace=True)]


class PullBody(BaseModel):
    """`name` is what old clients of Ollama send for `model`."""

    model: _Name = ""
    name: _Name = ""
    named: _Name | None = Field(default=None, alias="as")
    stream: bool = True


@router.post("/pull")
async def pull(body: PullBody, parts: PartsDep) -> Response:
    model = body.model or body.name
    if not model:
        raise BadRequest("model is required")
    wanted = pulls.pull_request(model, body.named or None)
    lines = await _lines(parts, wanted, model)
    if body.stream:
        return StreamingResponse(_ndjson(lines), media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"})
    last: Line = {}
    async for line in lines:
        last = line
    return JSONResponse(last)


async def _lines(parts: Parts, wanted: pulls.PullRequest, model: str) -> AsyncIterator[Line]:
    """Starts the pull before anything is streamed, so that a refusal has its status. It goes on when the client leaves."""
    try:
        async with parts.database.transaction() as session:
            version = await pulls.existing(session, wanted, model)
            job = None if version else (await pulls.start(session, wanted)).id
    except pulls.UnknownSource as error:
        return _raising(error)
    if version:
        return _each(list(pulls.existing_lines(version)))
    await parts.queue.signal()
    return pulls.watch(parts.database, parts.watchers, str(job))


async def _each(lines: list[Line]) -> AsyncIterator[Line]:
    for line in lines:
        yield line


async def _raising(error: CorralError) -> AsyncIterator[Line]:
    """Ollama answers an unknown model within the stream."""
    yield {"status": "pulling manifest"}
    raise error


async def _ndjson(lines: AsyncIterator[Line]) -> AsyncIterator[bytes]:
    try:
        async for line in lines:
            yield _encode(line)
    except CorralError as error:
        yield _encode({"error": error.message})


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
