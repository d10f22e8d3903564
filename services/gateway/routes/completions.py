"""Completions of a text: Ollama's /api/generate and OpenAI's /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.dependencies import AdmissionDep, BodyDep, RoutesDep, StopwatchDep
from services.gateway.dialects import ollama, openai
from services.gateway.dialects.durations import keep_alive_ms
from services.gateway.routes.loading import load_or_unload
from services.gateway.snapshot import RoutesView
from services.gateway.ticket import Target
from services.protocol.errors import ModelNotFound

router = APIRouter()


@router.post("/v1/completions")
async def openai_completion(stopwatch: StopwatchDep, raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = openai.decode_completion(raw)
    target = await _resolve(routes, body.model or "")
    request = openai.completion_request(body, admission.ticket(target))
    generation = await admission.admit(request, keep_alive_ms=keep_alive_ms(body.keep_alive), priority=body.wanted_priority)
    reply = openai.CompletionReply(
        target.asked,
        stopwatch,
        id=request.id,
        n=request.n,
        stream=body.streamed,
        include_usage=body.include_usage,
        echo=body.echoed,
    )
    return admission.response(generation, reply)


@router.post("/api/generate")
async def ollama_generate(stopwatch: StopwatchDep, raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = ollama.decode_generate(raw)
    ticket = admission.ticket(await _resolve(routes, body.asked))
    keep_alive = keep_alive_ms(body.keep_alive)
    if not body.prompt:
        return await load_or_unload(ticket, admission, stopwatch, ollama.idle_generate, keep_alive_ms=keep_alive)
    generation = await admission.admit(ollama.generate_request(body, ticket), keep_alive_ms=keep_alive)
    reply = ollama.GenerateReply(body.asked, stopwatch, stream=body.streamed, return_context=not body.raw)
    return admission.response(generation, reply)


async def _resolve(routes: RoutesView, asked: str) -> Target:
    """Without a name these routes know no model, where the chats say that one is required."""
    if not asked:
        raise ModelNotFound("model '' not found")
    return await routes.resolve(asked)
