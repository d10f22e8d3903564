"""Turns a request into the token ids of its inputs, with the special tokens that the model was trained with. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right

from services.protocol.errors import BadRequest, ContextLengthExceeded, UnsupportedCapability
from services.protocol.messages import EmbedRequest, Overflow, RerankRequest
from services.worker.chat.literals import ControlTexts
from services.worker.engine.embedder import Embedder

#: Starts with the text of Ollama's message, because clients look for it.
_TOO_LONG = (
    "the input length exceeds the context length: an input has {length} tokens, and the context holds {limit}. Shorten it, let it be "
    "truncated (truncate: true), or let the model have a longer context (corral deploy MODEL --context TOKENS)"
)

_PLACE = re.compile(r"\{(query|document)\}")


class InputBuilder:
    """Builds inputs of at least one token and at most the embedder's context."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._limit = embedder.context_tokens
        self._closing = self._closing_tokens()
        self._control = ControlTexts(embedder.control_texts)

    def build(self, request: EmbedRequest | RerankRequest) -> list[list[int]]:
        """Raises UnsupportedCapability if the model is of the other kind, ContextLengthExceeded, and BadRequest for unknown
        token ids, on which llama.cpp fails."""
        ranks = self._embedder.pooling == "rank"
        match request:
            case EmbedRequest() if not ranks:
                return [self._input(given, request.overflow) for given in request.inputs]
            case RerankRequest() if ranks:
                return [self._pair(request.query, document, request.overflow) for document in request.documents]
            case EmbedRequest():
                raise UnsupportedCapability("the model ranks documents and does not make embeddings")
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
            raise BadRequest("input: an array of tokens is empty", field="input")
        if not all(0 <= token < self._embedder.num_vocab for token in given):
            raise BadRequest("input: contains token ids that the model does not have", field="input")
        return list(given)

    def _pair(self, query: str, document: str, overflow: Overflow) -> list[int]:
        if self._embedder.framing.rerank_template is not None:
            return self._templated(self._embedder.framing.rerank_template, query, document, overflow)
        before, closing = self._before_document(query), self._after_document()
        ids = [*before, *self._embedder.tokenize(document, framed=False, special=False), *closing]
        if len(before) + len(closing) >= self._limit:
            raise self._too_long(len(ids))
        return self._fitted(ids, overflow, closing=len(closing))

    def _before_document(self, query: str) -> list[int]:
        """[BOS] query [EOS] [SEP], as in llama-server (format_prompt_rerank). A special token is left out if the vocabulary
        does not add it."""
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
        """[EOS], or the [SEP] that ends a pair in BERT. llama-server omits this [SEP], but the models are trained with it."""
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
            filled = _filled(template, self._control.marked({"query": query, "document": document[:characters]}))
            segments = self._control.segments(filled)
            return [id for each in segments for id in self._embedder.tokenize(each.text, framed=False, special=each.special)]

        ids = tokens(len(document))
        if len(ids) > self._limit and overflow == "truncate":
            fitting = bisect_right(range(1, len(document) + 1), self._limit, key=lambda characters: len(tokens(characters)))
            ids = tokens(fitting)
        return self._fitted(ids, "refuse", closing=0)

    def _fitted(self, ids: list[int], overflow: Overflow, *, closing: int) -> list[int]:
        """Cuts the end of an input that is too long, but keeps its last `closing` tokens."""
        if len(ids) <= self._limit:
            return ids
        if overflow == "refuse" or closing >= self._limit:
            raise self._too_long(len(ids))
        return [*ids[: self._limit - closing], *ids[len(ids) - closing :]]

    def _too_long(self, length: int) -> ContextLengthExceeded:
        return ContextLengthExceeded(_TOO_LONG.format(length=length, limit=self._limit))

    def _closing_tokens(self) -> int:
        """How many tokens the tokenizer adds after a text, found by comparing an empty text with another one."""
        empty = self._embedder.tokenize("", framed=True, special=False)
        probe = self._embedder.tokenize("a", framed=True, special=False)
        opening = next((at for at, (one, other) in enumerate(zip(empty, probe, strict=False)) if one != other), len(empty))
        return len(empty) - opening


def _filled(template: str, parts: dict[str, str]) -> str:
    """Fills the template in one pass, so that a `{document}` in the query is not replaced."""
    return _PLACE.sub(lambda place: parts[place[1]], template)
