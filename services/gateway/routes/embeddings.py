"""Embeddings and reranking: Ollama's /api/embed and /api/embeddings, OpenAI's /v1/embeddings, and a rerank route in each
style."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp

from services.gateway.dialects import ollama, openai, rerank
from services.gateway.dialects.durations import keep_alive_ms
from services.gateway.inference_call import InferenceCall, post
from services.gateway.requests.ticket import Target
from services.gateway.routes_view import RoutesView
from services.protocol.errors import ModelNotFound


async def openai_embeddings(call: InferenceCall) -> ASGIApp:
    body = openai.decode_embeddings(call.body)
    target = await _resolve(call.routes, body.model)
    request = openai.embeddings_request(body, call.ticket(target))
    reply = openai.EmbeddingsReply(target.asked, as_base64=body.as_base64)
    return await call.answer(target, request, reply, keep_alive_ms=keep_alive_ms(body.keep_alive))


async def ollama_embed(call: InferenceCall) -> ASGIApp:
    body = ollama.decode_embed(call.body)
    target = await _resolve(call.routes, body.model)
    request = ollama.embed_request(body, call.ticket(target))
    keep_alive = keep_alive_ms(body.keep_alive)
    if not request.inputs and keep_alive == 0:
        await call.unload(target)
        return Response(ollama.no_embeddings(target.asked), media_type=ollama.JSON)
    return await call.answer(target, request, ollama.EmbedReply(target.asked, call.stopwatch), keep_alive_ms=keep_alive)


async def ollama_legacy_embed(call: InferenceCall) -> ASGIApp:
    body = ollama.decode_legacy_embed(call.body)
    target = await _resolve(call.routes, body.model)
    request = ollama.legacy_embed_request(body, call.ticket(target))
    keep_alive = keep_alive_ms(body.keep_alive)
    if not request.inputs and keep_alive == 0:
        await call.unload(target)
        return Response(ollama.no_legacy_embedding(), media_type=ollama.JSON)
    return await call.answer(target, request, ollama.LegacyEmbedReply(), keep_alive_ms=keep_alive)


async def openai_rerank(call: InferenceCall) -> ASGIApp:
    body = rerank.decode_rerank(call.body)
    target = await _resolve(call.routes, body.model)
    request = rerank.rerank_request(body, call.ticket(target))
    reply = openai.RerankReply(body, id=request.id)
    return await call.answer(target, request, reply, keep_alive_ms=keep_alive_ms(body.keep_alive))


async def ollama_rerank(call: InferenceCall) -> ASGIApp:
    body = rerank.decode_rerank(call.body)
    target = await _resolve(call.routes, body.model)
    request = rerank.rerank_request(body, call.ticket(target))
    reply = ollama.RerankReply(body, call.stopwatch)
    return await call.answer(target, request, reply, keep_alive_ms=keep_alive_ms(body.keep_alive))


async def _resolve(routes: RoutesView, asked: str | None) -> Target:
    """Ollama words a missing model differently for embeddings than for chats."""
    unknown = ModelNotFound(f'model "{asked or ""}" not found, try pulling it first')
    if not asked:
        raise unknown
    try:
        return await routes.resolve(asked)
    except ModelNotFound:
        raise unknown from None


routes = [
    post("/v1/embeddings", openai_embeddings),
    post("/api/embed", ollama_embed),
    post("/api/embeddings", ollama_legacy_embed),
    post("/v1/rerank", openai_rerank),
    post("/api/rerank", ollama_rerank),
]
