"""Token log probabilities in the form that both dialects use."""

from __future__ import annotations

import msgspec

from services.protocol.messages import ChosenLogprob, TokenLogprob

#: OpenAI's value for a nearly impossible token; JSON has no infinity.
MIN_LOGPROB = -9999.0


class TopEntry(msgspec.Struct):
    """If the token is part of a character, `token` has replacement characters; `bytes` is always exact."""

    token: str
    logprob: float
    bytes: list[int]


class TokenEntry(TopEntry):
    """`top_logprobs` is sorted by likelihood, highest first."""

    top_logprobs: tuple[TopEntry, ...] = ()


def token_entry(chosen: ChosenLogprob) -> TokenEntry:
    top = tuple(_top_entry(likely) for likely in chosen.top)
    return TokenEntry(text_of(chosen.token), finite(chosen.logprob), list(chosen.token), top)


def text_of(token: bytes) -> str:
    return token.decode("utf-8", errors="replace")


def finite(logprob: float) -> float:
    return max(MIN_LOGPROB, logprob)


def _top_entry(likely: TokenLogprob) -> TopEntry:
    return TopEntry(text_of(likely.token), finite(likely.logprob), list(likely.token))
