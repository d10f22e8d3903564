"""Requests that generate nothing: an Ollama client loads or unloads a model by a request without a prompt."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp

from services.gateway.dialects import ollama
from services.gateway.inference_call import InferenceCall
from services.gateway.requests.ticket import Ticket


async def load_or_unload(
    call: InferenceCall,
    ticket: Ticket,
    idle: ollama.IdleAnswer,
    *,
    keep_alive_ms: int | None,
    context_tokens: int,
) -> ASGIApp:
    """A keep_alive of 0 unloads; anything else is answered when the model is loaded."""
    target = ticket.target
    if keep_alive_ms == 0:
        await call.unload(target)
        return Response(idle(target.asked, call.stopwatch, "unload"), media_type=ollama.JSON)
    reply = ollama.LoadReply(target.asked, call.stopwatch, idle)
    request = ollama.load_request(ticket)
    return await call.answer(target, request, reply, keep_alive_ms=keep_alive_ms, context_tokens=context_tokens)
