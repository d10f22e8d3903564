"""Vectors and rankings: Ollama's /api/embed and /api/embeddings, OpenAI's /v1/embeddings, and a rerank beside each."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.dependencies import AdmissionDep, BodyDep, RoutesDep, StopwatchDep
from services.gateway.dialects import ollama, openai, rerank
from services.gateway.dialects.durations import keep_alive_ms
from services.gateway.snapshot import RoutesView
from services.gateway.ticket import Target
from services.protocol.errors import ModelNotFound

router = APIRouter()


@router.post("/v1/embeddings")
async def openai_embeddings(raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = openai.decode_embeddings(raw)
    target = await _resolve(routes, body.model)
    request = openai.embeddings_request(body, admission.ticket(target))
    generation = await admission.admit(request, keep_alive_ms=keep_alive_ms(body.keep_alive))
    reply = openai.EmbeddingsReply(target.asked, as_base64=body.as_base64)
    return admission.response(generation, reply)


@router.post("/api/embed")
async def ollama_embed(stopwatch: StopwatchDep, raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = ollama.decode_embed(raw)
    target = await _resolve(routes, body.model)
    request = ollama.embed_request(body, admission.ticket(target))
    keep_alive = keep_alive_ms(body.keep_alive)
    if not request.inputs and keep_alive == 0:
        await admission.unload(target)
        return Response(ollama.no_embeddings(target.asked), media_type=ollama.JSON)
    generation = await admission.admit(request, keep_alive_ms=keep_alive)
    return admission.response(generation, ollama.EmbedReply(target.asked, stopwatch))


@router.post("/api/embeddings")
async def ollama_legacy_embed(raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = ollama.decode_legacy_embed(raw)
    target = await _resolve(routes, body.model)
    request = ollama.legacy_embed_request(body, admission.ticket(target))
    keep_alive = keep_alive_ms(body.keep_alive)
    if not request.inputs and keep_alive == 0:
        await admission.unload(target)
        return Response(ollama.no_legacy_embedding(), media_type=ollama.JSON)
    generation = await admission.admit(request, keep_alive_ms=keep_alive)
    return admission.response(generation, ollama.LegacyEmbedReply())


@router.post("/v1/rerank")
async def openai_rerank(raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = rerank.decode_rerank(raw)
    request = rerank.rerank_request(body, admission.ticket(await _resolve(routes, body.model)))
    generation = await admission.admit(request, keep_alive_ms=keep_alive_ms(body.keep_alive))
    return admission.response(generation, openai.RerankReply(body, id=request.id))


@router.post("/api/rerank")
async def ollama_rerank(stopwatch: StopwatchDep, raw: BodyDep, routes: RoutesDep, admission: AdmissionDep) -> Response:
    body = rerank.decode_rerank(raw)
    request = rerank.rerank_request(body, admission.ticket(await _resolve(routes, body.model)))
    generation = await admission.admit(request, keep_alive_ms=keep_alive_ms(body.keep_alive))
    return admission.response(generation, ollama.RerankReply(body, stopwatch))


async def _resolve(routes: RoutesView, asked: str | None) -> Target:
    """Ollama words it differently here than for its chats."""
    unknown = ModelNotFound(f'model "{asked or ""}" not found, try pulling it first')
    if not asked:
        raise unknown
    try:
        return await routes.resolve(asked)
    except ModelNotFound:
        raise unknown from None
