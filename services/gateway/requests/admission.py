"""Admits requests: estimates their cost, puts them in their version's queue, and returns the response to them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from services.gateway.dialects.reply import Reply
from services.gateway.requests.context_wait import ContextWait
from services.gateway.requests.inflight import Inflight
from services.gateway.requests.isolation import Isolation
from services.gateway.requests.limits import Limits
from services.gateway.requests.telemetry import Observer
from services.gateway.requests.ticket import Target
from services.gateway.streaming import AnswerResponse
from services.protocol.errors import CorralError
from services.protocol.messages import EmbedRequest, GenerateRequest, Request, RerankRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt
from services.protocol.routes import Caller
from services.protocol.waiting import Priority

UPDATES_HEADER = "x-queue-updates"

#: The estimate for a request without a limit on its tokens. It is settled on what was computed.
EXPECTED_TOKENS = 256
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Arrival:
    """Who sent a request, with which headers, and when (time.monotonic)."""

    caller: Caller
    headers: Mapping[str, str]
    arrived_s: float


class Admission:
    """On the terms that a request's headers ask for and its key allows."""

    def __init__(
        self, inflight: Inflight, limits: Limits, observer: Observer, contexts: ContextWait, isolation: Isolation
    ) -> None:
        self._inflight = inflight
        self._limits = limits
        self._observer = observer
        self._contexts = contexts
        self._isolation = isolation

    @property
    def gateway(self) -> str:
        return self._inflight.gateway

    async def answer(
        self,
        arrival: Arrival,
        request: Request,
        reply: Reply,
        *,
        model: str,
        keep_alive_ms: int | None,
        priority: Priority | None = None,
        context_tokens: int = 0,
    ) -> AnswerResponse:
        """`model` is the model's name for people; `priority` and `context_tokens` are what the body asks for. Raises QueueFull,
        CallerLimited, BadRequest for a header that cannot be read, and Unavailable while Redis does not answer."""
        caller, headers = arrival.caller, arrival.headers
        terms = self._limits.terms(caller, headers, asked=priority)
        observation = self._observer.begin(
            request, model=model, caller=caller, priority=terms.priority, headers=headers, arrived_s=arrival.arrived_s
        )
        request = self._prepared(request, caller, observation.traceparent)
        try:
            if context_tokens:
                await self._contexts.until_replaced(request.version, context_tokens)
            pending = await self._inflight.admit(
                request,
                cost=estimated_cost(request),
                terms=terms,
                keep_alive_ms=self._limits.keep_alive_ms(caller, keep_alive_ms),
                context_tokens=context_tokens,
                name=model,
            )
        except CorralError as error:
            observation.refused(error)
            raise
        observation.admitted()
        updates = reply.stream and headers.get(UPDATES_HEADER, "").strip().lower() == "true"
        return AnswerResponse(
            pending,
            reply,
            abandon=self._inflight.abandon,
            observation=observation,
            position_of=self._inflight.position if updates else None,
        )

    async def unload(self, target: Target) -> None:
        """Unloads the version as soon as it is idle. Raises Unavailable."""
        await self._inflight.touch(target.version.digest, keep_alive_ms=0)

    def _prepared(self, request: Request, caller: Caller, traceparent: str) -> Request:
        """With the parent of the worker's span, the isolation domain, and a seed: a worker that continues another's answer has to
        draw as that one would have."""
        if not isinstance(request, GenerateRequest):
            return msgspec.structs.replace(request, traceparent=traceparent) if traceparent else request
        sampling = request.sampling
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=secrets.randbits(63))
        domain = self._isolation.domain(caller, request.isolation)
        return msgspec.structs.replace(request, sampling=sampling, isolation=domain, traceparent=traceparent)


def estimated_cost(request: Request) -> float:
    """Tokens that will be computed, guessed before anything is tokenized. The choices of a request share its prompt."""
    match request:
        case GenerateRequest():
            max_tokens = request.stopping.max_tokens
            answers = request.n * (EXPECTED_TOKENS if max_tokens is None else max_tokens)
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
