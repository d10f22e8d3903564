"""Reranking, which neither OpenAI nor Ollama has: the body and the results as Jina's and Cohere's clients know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.gateway.dialects.bodies import BodyDecoder, InvalidField
from services.gateway.ticket import Ticket
from services.protocol.messages import RerankRequest


class _Text(msgspec.Struct):
    text: str


class RerankBody(msgspec.Struct):
    """`top_n`: so many of the best, all where it is absent or not positive. `truncate` false refuses what is longer than the
    model's context, whose end is cut off otherwise."""

    model: str | None = None
    query: str | None = None
    documents: list[str | _Text] | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    truncate: bool | None = None
    keep_alive: Any = None


class Result(msgspec.Struct, omit_defaults=True):
    """`index` is the document's place in the request, `relevance_score` the classifier's output as it is: higher is better."""

    index: int
    relevance_score: float
    document: _Text | None = None


decode_rerank = BodyDecoder(RerankBody)


def rerank_request(body: RerankBody, ticket: Ticket) -> RerankRequest:
    """Raises UnsupportedCapability and InvalidField."""
    ticket.target.require("rerank")
    if not body.query:
        raise InvalidField("query: is required", field="query")
    if not body.documents:
        raise InvalidField("documents: at least one is required", field="documents")
    return RerankRequest(
        id=ticket.id,
        version=ticket.target.version.digest,
        gateway=ticket.gateway,
        caller=ticket.caller,
        query=body.query,
        documents=tuple(_text(document) for document in body.documents),
        overflow="refuse" if body.truncate is False else "truncate",
    )


def ranked(body: RerankBody, scores: Mapping[int, float]) -> list[Result]:
    """The best first; what scores the same in the request's order. `scores` has one for each document."""
    documents = body.documents or []
    best = sorted(scores, key=lambda index: (-scores[index], index))
    if body.top_n is not None and body.top_n > 0:
        best = best[: body.top_n]
    return [Result(index, scores[index], _Text(_text(documents[index])) if body.return_documents else None) for index in best]


def _text(document: str | _Text) -> str:
    return document if isinstance(document, str) else document.text
