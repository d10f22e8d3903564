"""OpenAI's /v1/embeddings; /v1/rerank in its manner."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from services.gateway.dialects.bodies import BodyDecoder, InvalidField
from services.gateway.dialects.embedding import embed_request, numbers
from services.gateway.dialects.openai.errors import error_body
from services.gateway.dialects.openai.replies import JSON
from services.gateway.dialects.rerank import RerankBody, Result, ranked
from services.gateway.ticket import Ticket
from services.protocol.errors import CorralError
from services.protocol.messages import Embedded, EmbedRequest, Event, Finished

_FORMATS = ("float", "base64")
_MAX_TOKEN_ID = 2**31 - 1

_encode = msgspec.json.Encoder().encode


class EmbeddingsBody(msgspec.Struct):
    """`input`: a text, token ids, or a list of either."""

    model: str | None = None
    input: Any = None
    dimensions: int | None = None
    encoding_format: str | None = None
    keep_alive: Any = None

    @property
    def as_base64(self) -> bool:
        return self.encoding_format == "base64"


class _Embedding(msgspec.Struct):
    object: str
    embedding: str | list[float]
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class _Embeddings(msgspec.Struct):
    object: str
    data: list[msgspec.Raw]
    model: str
    usage: _Usage


class _Ranking(msgspec.Struct):
    id: str
    object: str
    model: str
    results: list[Result]
    usage: _Usage


decode_embeddings = BodyDecoder(EmbeddingsBody)


def embeddings_request(body: EmbeddingsBody, ticket: Ticket) -> EmbedRequest:
    """Raises UnsupportedCapability and InvalidField."""
    if (body.encoding_format or "float") not in _FORMATS:
        raise InvalidField(
            f"Invalid value for 'encoding_format' = {body.encoding_format}. Supported values: ['float', 'base64'].",
            field="encoding_format",
        )
    # Too long an input is cut off, as Ollama does it; OpenAI itself refuses.
    return embed_request(ticket, _inputs(body.input), dimensions=body.dimensions)


def _inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    match value:
        case None | []:
            raise InvalidField("invalid input", field="input")
        case str(text):
            return (text,)
        case [int(), *_]:
            return (_tokens(value),)
        case [*entries]:
            return tuple(entry if isinstance(entry, str) else _tokens(entry) for entry in entries)
        case _:
            raise InvalidField("invalid input type", field="input")


def _tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InvalidField("invalid input type", field="input")
    if not all(0 <= token <= _MAX_TOKEN_ID for token in value):
        raise InvalidField("input: holds a number that is no token id", field="input")
    return tuple(value)


class _WholeReply:
    """One body at the end."""

    stream = False
    content_type = JSON

    def render_error(self, error: CorralError) -> bytes:
        return error_body(error)


class EmbeddingsReply(_WholeReply):
    """`model` is the name as the caller wrote it."""

    def __init__(self, model: str, *, as_base64: bool) -> None:
        self._model = model
        self._as_base64 = as_base64
        self._data: dict[int, msgspec.Raw] = {}

    def render(self, event: Event) -> bytes:
        match event:
            case Embedded():
                # Now, not at the end: a thousand vectors at once would hold up everybody else's answers.
                self._data[event.index] = msgspec.Raw(_encode(self._embedding(event)))
            case Finished():
                data = [self._data[index] for index in sorted(self._data)]
                return _encode(_Embeddings("list", data, self._model, _usage(event)))
        return b""

    def _embedding(self, event: Embedded) -> _Embedding:
        vector = base64.b64encode(event.vector).decode() if self._as_base64 else numbers(event.vector)
        return _Embedding("embedding", vector, event.index)


class RerankReply(_WholeReply):
    """`id` is the request's."""

    def __init__(self, body: RerankBody, *, id: str) -> None:
        self._body = body
        self._id = id
        self._scores: dict[int, float] = {}

    def render(self, event: Event) -> bytes:
        match event:
            case Embedded():
                self._scores[event.index] = numbers(event.vector)[0]
            case Finished():
                results = ranked(self._body, self._scores)
                return _encode(_Ranking(f"rerank-{self._id}", "list", self._body.model or "", results, _usage(event)))
        return b""


def _usage(event: Finished) -> _Usage:
    return _Usage(event.usage.prompt_tokens, event.usage.prompt_tokens)
