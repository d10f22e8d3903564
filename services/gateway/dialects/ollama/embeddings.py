"""Ollama's /api/embed and the older /api/embeddings, and /api/rerank in the same style."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.dialects import embedding
from services.gateway.dialects.bodies import BodyDecoder, check_limit
from services.gateway.dialects.embedding import checked_text, numbers
from services.gateway.dialects.limits import INPUTS, Name, Text
from services.gateway.dialects.ollama.errors import error_body
from services.gateway.dialects.ollama.replies import JSON
from services.gateway.dialects.rerank import RerankBody, Result, ranked
from services.gateway.requests.stopwatch import Stopwatch
from services.gateway.requests.ticket import Ticket
from services.protocol.errors import BadRequest, CorralError
from services.protocol.messages import Embedded, EmbedRequest, Event, Finished, Overflow, Started

_encode = msgspec.json.Encoder().encode


class EmbedBody(msgspec.Struct):
    """Ollama's `options` field is ignored: it only affects loading, which the deployment decides."""

    model: Name | None = None
    input: Any = None
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: Any = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The inputs; empty if the request only loads the model. Raises BadRequest."""
        match self.input:
            case None | "":
                return ()
            case str(text):
                return (checked_text(text),)
            case list(texts) if all(isinstance(text, str) for text in texts):
                check_limit(INPUTS, len(texts), field="input")
                return tuple(map(checked_text, texts))
        raise BadRequest("invalid input type")


class LegacyEmbedBody(msgspec.Struct):
    model: Name | None = None
    prompt: Text | None = None
    keep_alive: Any = None


class _Embeddings(msgspec.Struct, omit_defaults=True):
    """Durations are in nanoseconds. Zero fields are omitted, as with Go's omitempty."""

    model: str
    embeddings: list[msgspec.Raw]
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0


class _LegacyEmbedding(msgspec.Struct):
    embedding: list[float]


class _Ranking(msgspec.Struct):
    model: str
    results: list[Result]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


decode_embed = BodyDecoder(EmbedBody)
decode_legacy_embed = BodyDecoder(LegacyEmbedBody)


def embed_request(body: EmbedBody, ticket: Ticket) -> EmbedRequest:
    """Raises UnsupportedCapability and BadRequest."""
    overflow: Overflow = "refuse" if body.truncate is False else "truncate"
    return embedding.embed_request(ticket, body.texts, dimensions=body.dimensions, overflow=overflow)


def legacy_embed_request(body: LegacyEmbedBody, ticket: Ticket) -> EmbedRequest:
    """The vectors aren't normalized. Raises UnsupportedCapability."""
    return embedding.embed_request(ticket, (body.prompt,) if body.prompt else (), normalize=False)


class _WholeReply:
    """A reply with a single JSON body once the request has finished."""

    stream = False
    content_type = JSON

    def render_error(self, error: CorralError) -> bytes:
        return error_body(error)


class EmbedReply(_WholeReply):
    """`model` is the name that the caller sent."""

    def __init__(self, model: str, stopwatch: Stopwatch) -> None:
        self._model = model
        self._stopwatch = stopwatch
        self._load_ns = 0
        self._vectors: dict[int, msgspec.Raw] = {}

    def render(self, event: Event) -> bytes:
        match event:
            case Started():
                self._load_ns = self._stopwatch.elapsed_ns()
            case Embedded():
                # Encode each vector as it arrives: encoding a thousand at the end would block all other answers.
                self._vectors[event.index] = msgspec.Raw(_encode(numbers(event.vector)))
            case Finished():
                return _encode(self._whole(event))
        return b""

    def _whole(self, event: Finished) -> _Embeddings:
        whole = _Embeddings(self._model, [self._vectors[index] for index in sorted(self._vectors)])
        if self._vectors:
            whole.total_duration = self._stopwatch.elapsed_ns()
            whole.load_duration = self._load_ns
            whole.prompt_eval_count = event.usage.prompt_tokens
        return whole


class LegacyEmbedReply(_WholeReply):
    def __init__(self) -> None:
        self._vector: list[float] = []

    def render(self, event: Event) -> bytes:
        if isinstance(event, Embedded):
            self._vector = numbers(event.vector)
        return _encode(_LegacyEmbedding(self._vector)) if isinstance(event, Finished) else b""


class RerankReply(_WholeReply):
    def __init__(self, body: RerankBody, stopwatch: Stopwatch) -> None:
        self._body = body
        self._stopwatch = stopwatch
        self._load_ns = 0
        self._scores: dict[int, float] = {}

    def render(self, event: Event) -> bytes:
        match event:
            case Started():
                self._load_ns = self._stopwatch.elapsed_ns()
            case Embedded():
                self._scores[event.index] = numbers(event.vector)[0]
            case Finished():
                return _encode(self._whole(event))
        return b""

    def _whole(self, event: Finished) -> _Ranking:
        return _Ranking(
            self._body.model or "",
            ranked(self._body, self._scores),
            self._stopwatch.elapsed_ns(),
            self._load_ns,
            event.usage.prompt_tokens,
        )


def no_embeddings(model: str) -> bytes:
    """The response to a request without input."""
    return _encode(_Embeddings(model, []))


def no_legacy_embedding() -> bytes:
    return _encode(_LegacyEmbedding([]))
