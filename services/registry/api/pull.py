"""POST /pull: pulls a model to a node and streams the progress. DELETE /pull: cancels it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, StringConstraints

from services.protocol.connection import redis_answers
from services.protocol.errors import BadRequest, Conflict, CorralError
from services.protocol.jobs import PULL_CANCELLED, JobCancellations, JobEvents, JobFailed
from services.registry.api.dependencies import AppState, AppStateDep
from services.registry.database import pulls
from services.registry.database.pulls import Line

router = APIRouter()

#: A model name, or a path on a node (4,096 is Linux's limit). No NUL, which PostgreSQL cannot store.
_Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=4_096, pattern=r"^[^\x00]*$")]


class PullBody(BaseModel):
    """Old Ollama clients send `name` instead of `model`."""

    model: _Name = ""
    name: _Name = ""
    named: _Name | None = Field(default=None, alias="as")
    stream: bool = True


@router.post("/pull")
async def pull(body: PullBody, state: AppStateDep) -> Response:
    model = body.model or body.name
    if not model:
        raise BadRequest("model is required")
    pull_request = pulls.pull_request(model, body.named or None)
    lines = await _lines(state, pull_request, model)
    if body.stream:
        return StreamingResponse(_ndjson(lines), media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"})
    last: Line = {}
    async for line in lines:
        last = line
    return JSONResponse(last)


class CancelBody(BaseModel):
    model: _Name


@router.delete("/pull")
async def cancel(body: CancelBody, state: AppStateDep) -> dict[str, int]:
    """Ends the pulls of a name or source. Their jobs fail at once; the nodes notice within about a second."""
    async with state.database.transaction() as session:
        found = [(row.id, row.node_name) for row in await pulls.running(session, body.model)]
    cancellations, events = JobCancellations(state.redis), JobEvents(state.redis)
    for job, node in found:
        await cancellations.add(job)
        await events.publish(JobFailed(job, node, Conflict.code, PULL_CANCELLED))
    return {"cancelled": len(found)}


async def _lines(state: AppState, pull_request: pulls.PullRequest, model: str) -> AsyncIterator[Line]:
    """Starts the pull before the response starts, so that a refusal gets its HTTP status. The pull continues if the client
    leaves."""
    async with redis_answers():
        await state.redis.ping()  # fails if Redis cannot write, since the job could not be sent then
    try:
        async with state.database.transaction() as session:
            version = await pulls.existing(session, pull_request, model)
            job = None if version else (await pulls.start(session, pull_request)).id
    except pulls.UnknownSource as error:
        return _raising(error)
    if version:
        return _each(list(pulls.existing_lines(version)))
    await state.queue.signal()
    return pulls.watch(state.database, state.watchers, str(job))


async def _each(lines: list[Line]) -> AsyncIterator[Line]:
    for line in lines:
        yield line


async def _raising(error: CorralError) -> AsyncIterator[Line]:
    """Like Ollama, which reports an unknown model within the stream."""
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
