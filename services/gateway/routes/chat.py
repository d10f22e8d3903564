"""Chats: Ollama's /api/chat and OpenAI's /v1/chat/completions."""

from __future__ import annotations

from starlette.types import ASGIApp

from services.gateway.dialects import ollama, openai
from services.gateway.dialects.dialogue import requires_call
from services.gateway.dialects.durations import keep_alive_ms
from services.gateway.inference_call import InferenceCall, post
from services.gateway.routes.loading import load_or_unload
from services.protocol.errors import BadRequest


async def openai_chat(call: InferenceCall) -> ASGIApp:
    body = openai.decode_chat(call.body)
    if not body.messages:
        raise BadRequest("[] is too short - 'messages'", field="messages")
    if not body.model:
        raise BadRequest("model is required", field="model")
    ticket = call.ticket(await call.routes.resolve(body.model))
    request = openai.chat_request(body, ticket)
    reply = openai.ChatReply(
        body.model, call.stopwatch, id=request.id, n=request.n, stream=body.streamed, include_usage=body.include_usage
    )
    keep_alive = keep_alive_ms(body.keep_alive)
    return await call.answer(ticket.target, request, reply, keep_alive_ms=keep_alive, priority=body.requested_priority)


async def ollama_chat(call: InferenceCall) -> ASGIApp:
    body = ollama.decode_chat(call.body)
    if not body.asked:
        raise BadRequest("model is required")
    ticket = call.ticket(await call.routes.resolve(body.asked))
    keep_alive, context = keep_alive_ms(body.keep_alive), ollama.requested_context(body, ticket.target)
    if not body.messages:
        return await load_or_unload(call, ticket, ollama.idle_chat, keep_alive_ms=keep_alive, context_tokens=context)
    request = ollama.chat_request(body, ticket)
    reply = ollama.ChatReply(body.asked, call.stopwatch, stream=body.streamed, calls_only=requires_call(request.prompt))
    return await call.answer(ticket.target, request, reply, keep_alive_ms=keep_alive, context_tokens=context)


routes = [
    post("/v1/chat/completions", openai_chat),
    post("/api/chat", ollama_chat),
]
