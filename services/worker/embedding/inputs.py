"""From a request to the token ids of each of its inputs, framed as the model was trained. Pure: a vocabulary in, ids out."""

from __future__ import annotations

import re
from bisect import bisect_right

from services.protocol.errors import BadRequest, ContextLengthExceeded, UnsupportedCapability
from services.protocol.messages import EmbedRequest, Overflow, RerankRequest
from services.worker.engine.embedder import Embedder, Pooling

#: Ollama's words, which clients look for.
_TOO_LONG = "the input length exceeds the context length"

_PLACE = re.compile(r"\{(query|document)\}")


class InputBuilder:
    """An input has at least one token and at most as many as the embedder's context."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._limit = embedder.context_tokens
        self._closing = self._closing_tokens()

    def build(self, request: EmbedRequest | RerankRequest) -> list[list[int]]:
        """Raises UnsupportedCapability for what the model was not made for, ContextLengthExceeded, and BadRequest for token ids
        that the model does not have, which llama.cpp takes badly."""
        ranks = self._embedder.pooling is Pooling.RANK
        match request:
            case EmbedRequest() if not ranks:
                return [self._input(given, request.overflow) for given in request.inputs]
            case RerankRequest() if ranks:
                return [self._pair(request.query, document, request.overflow) for document in request.documents]
            case EmbedRequest():
                raise UnsupportedCapability("the model ranks documents and makes no embeddings")
            case RerankRequest():
                raise UnsupportedCapability("the model makes embeddings and does not rank documents")

    def _input(self, given: str | tuple[int, ...], overflow: Overflow) -> list[int]:
        if isinstance(given, tuple):
            return self._fitted(self._checked(given), overflow, closing=0)
        ids = self._embedder.tokenize(given, framed=True, special=True)
        ids = ids or self._embedder.tokenize("\n", framed=False, special=False)
        return self._fitted(ids, overflow, closing=self._closing)

    def _checked(self, given: tuple[int, ...]) -> list[int]:
        if not given:
            raise BadRequest("input: an array of tokens is empty")
        if not all(0 <= token < self._embedder.num_vocab for token in given):
            raise BadRequest("input: holds token ids that the model does not have")
        return list(given)

    def _pair(self, query: str, document: str, overflow: Overflow) -> list[int]:
        if self._embedder.framing.rerank_template is not None:
            return self._templated(self._embedder.framing.rerank_template, query, document, overflow)
        before, closing = self._before_document(query), self._after_document()
        ids = [*before, *self._embedder.tokenize(document, framed=False, special=False), *closing]
        if len(before) + len(closing) >= self._limit:
            raise ContextLengthExceeded(_TOO_LONG)
        return self._fitted(ids, overflow, closing=len(closing))

    def _before_document(self, query: str) -> list[int]:
        """As llama-server frames a pair (format_prompt_rerank): [BOS] query [EOS] [SEP], each where the vocabulary adds it."""
        framing = self._embedder.framing
        ids = self._embedder.tokenize(query, framed=False, special=False)
        if framing.add_bos and framing.bos is not None:
            ids.insert(0, framing.bos)
        if framing.add_eos:
            ids += self._end_of_text()
        if framing.add_sep and framing.sep is not None:
            ids.append(framing.sep)
        return ids

    def _after_document(self) -> list[int]:
        """llama-server leaves out the [SEP] with which BERT closes a pair too; a model that was trained with one wants it."""
        framing = self._embedder.framing
        if framing.add_eos:
            return self._end_of_text()
        return [framing.sep] if framing.add_sep and framing.sep is not None else []

    def _end_of_text(self) -> list[int]:
        framing = self._embedder.framing
        token = framing.sep if framing.eos is None else framing.eos
        return [] if token is None else [token]

    def _templated(self, template: str, query: str, document: str, overflow: Overflow) -> list[int]:
        def tokens(characters: int) -> list[int]:
            parts = {"query": query, "document": document[:characters]}
            return self._embedder.tokenize(_filled(template, parts), framed=False, special=True)

        ids = tokens(len(document))
        if len(ids) > self._limit and overflow == "truncate":
            fitting = bisect_right(range(1, len(document) + 1), self._limit, key=lambda characters: len(tokens(characters)))
            ids = tokens(fitting)
        return self._fitted(ids, "refuse", closing=0)

    def _fitted(self, ids: list[int], overflow: Overflow, *, closing: int) -> list[int]:
        """Cuts the end of what is too long, but keeps the last `closing` tokens."""
        if len(ids) <= self._limit:
            return ids
        if overflow == "refuse" or closing >= self._limit:
            raise ContextLengthExceeded(_TOO_LONG)
        return [*ids[: self._limit - closing], *ids[len(ids) - closing :]]

    def _closing_tokens(self) -> int:
        """How many tokens the vocabulary puts behind a text: those of an empty one that do not open another."""
        empty = self._embedder.tokenize("", framed=True, special=False)
        probe = self._embedder.tokenize("a", framed=True, special=False)
        opening = next((at for at, (one, other) in enumerate(zip(empty, probe, strict=False)) if one != other), len(empty))
        return len(empty) - opening


def _filled(template: str, parts: dict[str, str]) -> str:
    """In one pass: what stands in a query is never taken for a place to fill."""
    return _PLACE.sub(lambda place: parts[place[1]], template)
