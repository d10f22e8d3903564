"""Log probabilities in OpenAI's two forms: one for chats, and the older one for completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import msgspec

from services.gateway.dialects.logprobs import TokenEntry, finite
from services.protocol.messages import ChosenLogprob


class ChatLogprobs(msgspec.Struct):
    content: list[TokenEntry]
    refusal: None = None


class TextLogprobs(msgspec.Struct):
    """Four lists of the same length, one entry per token.

    `text_offset` is the token's position in the text, in characters. `top_logprobs` always includes the chosen token. A token
    that is part of a character is written as `bytes:\\xe2\\x82`.
    """

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextOffsets:
    """Tracks each token's character offset in the text of one choice."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def of(self, token: bytes) -> int:
        """The offset of the next token."""
        begins = self._characters
        self._characters += len(self._decoder.decode(token))
        return begins


def text_logprobs(chosen: Iterable[ChosenLogprob], offsets: TextOffsets) -> TextLogprobs:
    logprobs = TextLogprobs([], [], [], [])
    for token in chosen:
        logprobs.tokens.append(_name(token.token))
        logprobs.token_logprobs.append(finite(token.logprob))
        top = {_name(likely.token): finite(likely.logprob) for likely in token.top}
        logprobs.top_logprobs.append(top | {_name(token.token): finite(token.logprob)})
        logprobs.text_offset.append(offsets.of(token.token))
    return logprobs


def _name(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
