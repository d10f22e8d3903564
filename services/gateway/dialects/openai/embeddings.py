"""OpenAI's /v1/embeddings, and /v1/rerank in the same style."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from services.gateway.dialects.bodies import BodyDecoder, InvalidField, check_limit, token_ids
from services.gateway.dialects.embedding import checked_text, embed_request, numbers
from services.gateway.dialects.limits import INPUTS, Name
from services.gateway.dialects.openai.errors import error_body
from services.gateway.dialects.openai.replies import JSON
from services.gateway.dialects.rerank import RerankBody, Result, ranked
from services.gateway.requests.ticket import Ticket
from services.protocol.errors import CorralError
from services.protocol.messages import Embedded, EmbedRequest, Event, Finished

_FORMATS = ("float", "base64")

_encode = msgspec.json.Encoder().encode


class EmbeddingsBody(msgspec.Struct):
    """`input` is a text, a list of token ids, or a list of either."""

    model: Name | None = None
    input: Any = None
    dimensions: int | None = None
    encoding_format: Name | None = None
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
    # An input that is too long is cut off, as with Ollama; OpenAI refuses it.
    return embed_request(ticket, _inputs(body.input), dimensions=body.dimensions)


def _inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    match value:
        case None | []:
            raise InvalidField("invalid input", field="input")
        case str(text):
            return (checked_text(text),)
        case [int(), *_]:
            return (_tokens(value),)
        case [*entries]:
            check_limit(INPUTS, len(entries), field="input")
            return tuple(checked_text(entry) if isinstance(entry, str) else _tokens(entry) for entry in entries)
        case _:
            raise InvalidField("invalid input type", field="input")


def _tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise InvalidField("invalid input type", field="input")
    return token_ids(value, field="input")


class _WholeReply:
    """A reply with a single JSON body once the request has finished."""

    stream = False
    content_type = JSON

    def render_error(self, error: CorralError) -> bytes:
        return error_body(error)


class EmbeddingsReply(_WholeReply):
    """`model` is the name that the caller sent."""

    def __init__(self, model: str, *, as_base64: bool) -> None:
        self._model = model
        self._as_base64 = as_base64
        self._data: dict[int, msgspec.Raw] = {}

    def render(self, event: Event) -> bytes:
        match event:
            case Embedded():
                # Encode each vector as it arrives: encoding a thousand at the end would block all other answers.
                self._data[event.index] = msgspec.Raw(_encode(self._embedding(event)))
            case Finished():
                data = [self._data[index] for index in sorted(self._data)]
                return _encode(_Embeddings("list", data, self._model, _usage(event)))
        return b""

    def _embedding(self, event: Embedded) -> _Embedding:
        vector = base64.b64encode(event.vector).decode() if self._as_base64 else numbers(event.vector)
        return _Embedding("embedding", vector, event.index)


class RerankReply(_WholeReply):
    """`id` is the request's id."""

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
