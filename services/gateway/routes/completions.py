"""Text completions: Ollama's /api/generate and OpenAI's /v1/completions."""

from __future__ import annotations

from starlette.types import ASGIApp

from services.gateway.dialects import ollama, openai
from services.gateway.dialects.durations import keep_alive_ms
from services.gateway.inference_call import InferenceCall, post
from services.gateway.requests.ticket import Target
from services.gateway.routes.loading import load_or_unload
from services.gateway.routes_view import RoutesView
from services.protocol.errors import ModelNotFound


async def openai_completion(call: InferenceCall) -> ASGIApp:
    body = openai.decode_completion(call.body)
    target = await _resolve(call.routes, body.model or "")
    request = openai.completion_request(body, call.ticket(target))
    reply = openai.CompletionReply(
        target.asked,
        call.stopwatch,
        id=request.id,
        n=request.n,
        stream=body.streamed,
        include_usage=body.include_usage,
        echo=body.echoed,
    )
    keep_alive = keep_alive_ms(body.keep_alive)
    return await call.answer(target, request, reply, keep_alive_ms=keep_alive, priority=body.requested_priority)


async def ollama_generate(call: InferenceCall) -> ASGIApp:
    body = ollama.decode_generate(call.body)
    ticket = call.ticket(await _resolve(call.routes, body.asked))
    keep_alive, context = keep_alive_ms(body.keep_alive), ollama.requested_context(body, ticket.target)
    if not body.prompt:
        return await load_or_unload(call, ticket, ollama.idle_generate, keep_alive_ms=keep_alive, context_tokens=context)
    request = ollama.generate_request(body, ticket)
    reply = ollama.GenerateReply(body.asked, call.stopwatch, stream=body.streamed, return_context=not body.raw)
    return await call.answer(ticket.target, request, reply, keep_alive_ms=keep_alive, context_tokens=context)


async def _resolve(routes: RoutesView, asked: str) -> Target:
    """As with Ollama, an empty model name is "not found" here, while the chat routes answer that a model is required."""
    if not asked:
        raise ModelNotFound("model '' not found")
    return await routes.resolve(asked)


routes = [
    post("/v1/completions", openai_completion),
    post("/api/generate", ollama_generate),
]
