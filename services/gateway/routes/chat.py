"""Chats: Ollama's /api/chat and OpenAI's /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.dependencies import AdmissionDep, BodyDep, RoutesDep, StopwatchDep
from services.gateway.dialects import ollama, openai
from services.gateway.dialects.durations import keep_alive_ms
from services.gateway.routes.loading import load_or_unload
from services.protocol.errors import BadRequest

router = APIRouter()


@router.post("/v1/chat/completions")
async def openai_chat(stopwatch: StopwatchDep, raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = openai.decode_chat(raw)
    if not body.messages:
        raise BadRequest("[] is too short - 'messages'")
    if not body.model:
        raise BadRequest("model is required")
    ticket = admission.ticket(await routes.resolve(body.model))
    request = openai.chat_request(body, ticket)
    generation = await admission.admit(request, keep_alive_ms=keep_alive_ms(body.keep_alive), priority=body.wanted_priority)
    reply = openai.ChatReply(
        body.model, stopwatch, id=request.id, n=request.n, stream=body.streamed, include_usage=body.include_usage
    )
    return admission.response(generation, reply)


@router.post("/api/chat")
async def ollama_chat(stopwatch: StopwatchDep, raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = ollama.decode_chat(raw)
    if not body.asked:
        raise BadRequest("model is required")
    ticket = admission.ticket(await routes.resolve(body.asked))
    keep_alive = keep_alive_ms(body.keep_alive)
    if not body.messages:
        return await load_or_unload(ticket, admission, stopwatch, ollama.idle_chat, keep_alive_ms=keep_alive)
    generation = await admission.admit(ollama.chat_request(body, ticket), keep_alive_ms=keep_alive)
    reply = ollama.ChatReply(body.asked, stopwatch, stream=body.streamed)
    return admission.response(generation, reply)
