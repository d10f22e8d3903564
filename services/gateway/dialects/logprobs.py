"""A token's log probability as both dialects write it."""

from __future__ import annotations

import msgspec

from services.protocol.messages import ChosenLogprob, TokenLogprob

#: OpenAI's for what is next to impossible; JSON has no infinity.
LEAST = -9999.0


class TopEntry(msgspec.Struct):
    """`token` has replacement characters where the bytes are a part of a character, `bytes` has them all."""

    token: str
    logprob: float
    bytes: list[int]


class TokenEntry(TopEntry):
    """`top_logprobs` with the likeliest first."""

    top_logprobs: tuple[TopEntry, ...] = ()


def token_entry(chosen: ChosenLogprob) -> TokenEntry:
    top = tuple(_top_entry(likely) for likely in chosen.top)
    return TokenEntry(text_of(chosen.token), finite(chosen.logprob), list(chosen.token), top)


def text_of(token: bytes) -> str:
    return token.decode("utf-8", errors="replace")


def finite(logprob: float) -> float:
    return max(LEAST, logprob)


def _top_entry(likely: TokenLogprob) -> TopEntry:
    return TopEntry(text_of(likely.token), finite(likely.logprob), list(likely.token))
