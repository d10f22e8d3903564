"""Ollama's /api/embed and the older /api/embeddings; /api/rerank in their manner."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.dialects import embedding
from services.gateway.dialects.bodies import BodyDecoder
from services.gateway.dialects.embedding import numbers
from services.gateway.dialects.ollama.errors import error_body
from services.gateway.dialects.ollama.replies import JSON
from services.gateway.dialects.rerank import RerankBody, Result, ranked
from services.gateway.stopwatch import Stopwatch
from services.gateway.ticket import Ticket
from services.protocol.errors import BadRequest, CorralError
from services.protocol.messages import Embedded, EmbedRequest, Event, Finished, Overflow, Started

_encode = msgspec.json.Encoder().encode


class EmbedBody(msgspec.Struct):
    """`options` are those of loading, which the deployment decides."""

    model: str | None = None
    input: Any = None
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: Any = None

    @property
    def texts(self) -> tuple[str, ...]:
        """An empty text alone asks for nothing but that the model be loaded. Raises BadRequest."""
        match self.input:
            case None | "":
                return ()
            case str(text):
                return (text,)
            case list(texts) if all(isinstance(text, str) for text in texts):
                return tuple(texts)
        raise BadRequest("invalid input type")


class LegacyEmbedBody(msgspec.Struct):
    model: str | None = None
    prompt: str | None = None
    keep_alive: Any = None


class _Embeddings(msgspec.Struct, omit_defaults=True):
    """Durations in nanoseconds. What is zero is left out, as Go's omitempty does."""

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
    """Raises UnsupportedCapability. These vectors keep their length."""
    return embedding.embed_request(ticket, (body.prompt,) if body.prompt else (), normalize=False)


class _WholeReply:
    """One body at the end."""

    stream = False
    content_type = JSON

    def render_error(self, error: CorralError) -> bytes:
        return error_body(error)


class EmbedReply(_WholeReply):
    """`model` is the name as the caller wrote it."""

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
                # Now, not at the end: a thousand vectors at once would hold up everybody else's answers.
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
    """What is answered to no input."""
    return _encode(_Embeddings(model, []))


def no_legacy_embedding() -> bytes:
    return _encode(_LegacyEmbedding([]))
