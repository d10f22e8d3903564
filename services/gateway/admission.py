"""Lets a request in: gives it an id and a sender's address, estimates its cost, and puts it in its version's queue."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

import msgspec

from services.gateway.dialects import openai
from services.gateway.dialects.reply import Reply
from services.gateway.generation import Generation
from services.gateway.inflight import Inflight
from services.gateway.limits import Limits
from services.gateway.observation import Observation, Observer
from services.gateway.streaming import GenerationResponse
from services.gateway.ticket import Target, Ticket
from services.protocol.errors import CorralError
from services.protocol.messages import EmbedRequest, GenerateRequest, Request, RerankRequest, new_id
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt
from services.protocol.routes import Caller
from services.protocol.waiting import Priority

UPDATES_HEADER = "x-queue-updates"

#: Of a request that does not say how many tokens it wants at most. Settled on what it really took.
EXPECTED_TOKENS = 256
CHARACTERS_PER_TOKEN = 4


class Admission:
    """Of one caller's HTTP request, on the terms that its headers ask for and its key allows."""

    def __init__(
        self, inflight: Inflight, limits: Limits, observer: Observer, caller: Caller, headers: Mapping[str, str]
    ) -> None:
        self._arrived_s = time.monotonic()
        self._model = ""
        self._observation: Observation | None = None
        self._inflight = inflight
        self._limits = limits
        self._observer = observer
        self._caller = caller
        self._headers = headers

    def ticket(self, target: Target) -> Ticket:
        self._model = target.name.display
        return Ticket(new_id(), self._inflight.gateway, self._caller.id, target)

    async def admit(self, request: Request, *, keep_alive_ms: int | None, priority: Priority | None = None) -> Generation:
        """Of the ticket's request. `priority` is what the body asks for. Raises QueueFull, CallerLimited, BadRequest for a header that cannot be read, and
        Unavailable while Redis does not answer."""
        terms = self._limits.terms(self._caller, self._headers, asked=priority)
        observation = self._observer.begin(
            request,
            model=self._model,
            caller=self._caller,
            priority=terms.priority,
            headers=self._headers,
            arrived_s=self._arrived_s,
        )
        request = _prepared(request, observation.traceparent)
        cost = estimated_cost(request)
        try:
            generation = await self._inflight.admit(request, cost=cost, terms=terms, keep_alive_ms=keep_alive_ms)
        except CorralError as error:
            observation.refused(error)
            raise
        observation.admitted()
        self._observation = observation
        return generation

    def response(self, generation: Generation, reply: Reply) -> GenerationResponse:
        """To the request that was admitted, with comments on its place in the queue where the headers ask for them and it is SSE."""
        assert self._observation is not None
        told = reply.content_type == openai.SSE and self._headers.get(UPDATES_HEADER, "").strip().lower() == "true"
        return GenerationResponse(
            generation,
            reply,
            abandon=self._inflight.abandon,
            observation=self._observation,
            place_of=self._inflight.place if told else None,
        )

    async def unload(self, target: Target) -> None:
        """Asks for the version to be unloaded as soon as it is idle."""
        await self._inflight.touch(target.version.digest, keep_alive_ms=0)


def _prepared(request: Request, traceparent: str) -> Request:
    """With a seed, as a worker that goes on with another's answer has to draw as that one would have, and with what the worker's
    span is a part of."""
    if traceparent:
        request = msgspec.structs.replace(request, traceparent=traceparent)
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
