"""Lets a request in: gives it an id and a sender's address, estimates its cost, and puts it in its version's queue."""

from __future__ import annotations

import secrets

import msgspec

from services.gateway.generation import Generation
from services.gateway.inflight import Inflight
from services.gateway.ticket import Target, Ticket
from services.protocol.messages import EmbedRequest, GenerateRequest, Request, RerankRequest, new_id
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt
from services.protocol.routes import Caller

#: Of a request that does not say how many tokens it wants at most. Settled on what it really took.
EXPECTED_TOKENS = 256
CHARACTERS_PER_TOKEN = 4


class Admission:
    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight

    def ticket(self, caller: Caller, target: Target) -> Ticket:
        return Ticket(new_id(), self._inflight.gateway, caller.id, target)

    async def admit(self, request: Request, *, keep_alive_ms: int | None) -> Generation:
        """Raises QueueFull, and Unavailable while Redis does not answer."""
        request = _seeded(request)
        return await self._inflight.admit(request, cost=estimated_cost(request), keep_alive_ms=keep_alive_ms)

    def abandon(self, generation: Generation) -> None:
        """Nobody waits for it any more. Does nothing to one that has ended."""
        self._inflight.abandon(generation)

    async def unload(self, target: Target) -> None:
        """Asks for the version to be unloaded as soon as it is idle."""
        await self._inflight.touch(target.version.digest, keep_alive_ms=0)


def _seeded(request: Request) -> Request:
    """A worker that goes on with another's answer has to draw as that one would have."""
    if not isinstance(request, GenerateRequest) or request.sampling.seed is not None:
        return request
    sampling = msgspec.structs.replace(request.sampling, seed=secrets.randbits(63))
    return msgspec.structs.replace(request, sampling=sampling)


def estimated_cost(request: Request) -> float:
    """Tokens that will be computed, guessed before anything is tokenized. The choices of a request share its prompt."""
    match request:
        case GenerateRequest():
            wanted = request.stopping.max_tokens
            answers = request.n * (EXPECTED_TOKENS if wanted is None else wanted)
            return _characters(request.prompt) / CHARACTERS_PER_TOKEN + len(request.context) + answers
        case EmbedRequest():
            return sum(len(given) / CHARACTERS_PER_TOKEN if isinstance(given, str) else len(given) for given in request.inputs)
        case RerankRequest():
            return sum(len(request.query) + len(document) for document in request.documents) / CHARACTERS_PER_TOKEN


def _characters(prompt: Prompt) -> int:
    if isinstance(prompt, ChatPrompt):
        tools = len(msgspec.json.encode(prompt.tools)) if prompt.tools else 0
        return tools + sum(map(_message_characters, prompt.messages))
    return len(prompt.text) + len(prompt.suffix)


def _message_characters(message: ChatMessage) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning) + calls
