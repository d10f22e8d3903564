"""The rerank body and results, in the form that Jina's and Cohere's clients use; OpenAI and Ollama have no rerank API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from services.gateway.dialects.bodies import BodyDecoder, InvalidField
from services.gateway.dialects.limits import INPUTS, Name, Text
from services.gateway.requests.ticket import Ticket
from services.protocol.messages import RerankRequest


class _Text(msgspec.Struct):
    text: Text


class RerankBody(msgspec.Struct):
    """`top_n` limits the results to the best ones; absent or not positive, all are returned.

    Texts longer than the model's context are cut off at the end, or refused if `truncate` is false.
    """

    model: Name | None = None
    query: Text | None = None
    documents: Annotated[list[Text | _Text], INPUTS.length] | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    truncate: bool | None = None
    keep_alive: Any = None


class Result(msgspec.Struct, omit_defaults=True):
    """`index` is the document's position in the request. `relevance_score` is the classifier's raw output: higher is better."""

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
    """Results sorted by score, best first, ties in request order. `scores` must have one entry per document."""
    documents = body.documents or []
    best = sorted(scores, key=lambda index: (-scores[index], index))
    if body.top_n is not None and body.top_n > 0:
        best = best[: body.top_n]
    return [Result(index, scores[index], _Text(_text(documents[index])) if body.return_documents else None) for index in best]


def _text(document: str | _Text) -> str:
    return document if isinstance(document, str) else document.text
