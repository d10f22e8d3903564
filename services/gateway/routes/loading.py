"""Requests that want nothing generated: Ollama's clients bring a model up, or send it away, by leaving the prompt out."""

from __future__ import annotations

from starlette.responses import Response

from services.gateway.admission import Admission
from services.gateway.dialects import ollama
from services.gateway.stopwatch import Stopwatch
from services.gateway.ticket import Ticket


async def load_or_unload(
    ticket: Ticket, admission: Admission, stopwatch: Stopwatch, idle: ollama.IdleAnswer, *, keep_alive_ms: int | None
) -> Response:
    """A keep_alive of 0 unloads; anything else answers when the model is up."""
    target = ticket.target
    if keep_alive_ms == 0:
        await admission.unload(target)
        return Response(idle(target.asked, stopwatch, "unload"), media_type=ollama.JSON)
    generation = await admission.admit(ollama.load_request(ticket), keep_alive_ms=keep_alive_ms)
    return admission.response(generation, ollama.LoadReply(target.asked, stopwatch, idle))
