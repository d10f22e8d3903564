"""A gateway's reply stream: workers append events, the gateway reads and trims them.

Key `<namespace>:replies:<gateway>`: a Redis stream whose entries have one field, `r`, a StepReply. Only the gateway creates the stream and
extends its expiry, together with its lease (`Gateways.renew`). Writers do not create it, so nothing piles up for a dead gateway.
"""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from services.protocol.connection import Command, read_stream, redis_answers, write_all_allowing_oom
from services.protocol.messages import StepReply
from services.protocol.wire import Decoder, encode

#: Approximate limits of a reply stream. A gateway that stalls until more is written loses the oldest entries, and sees a gap in `seq`.
#: Redis limits streams by entries, so a writer divides STREAM_BYTES by the size of its entry; at least _MIN_ENTRIES are kept.
STREAM_LIMIT = 100_000
STREAM_BYTES = 64 << 20
_MIN_ENTRIES = 16

#: A reader trims the stream after it has read this much.
TRIM_ENTRIES = 256
TRIM_BYTES = 1 << 20

_decode = Decoder(StepReply)


class ReplyWriter:
    """Raises Unavailable if Redis does not answer."""

    def __init__(self, redis: Redis, *, namespace: str = "corral") -> None:
        self._redis = redis
        self._namespace = namespace

    async def publish(self, replies: Mapping[str, StepReply]) -> set[str]:
        """Appends one entry per gateway, in one round trip. Returns the gateways whose stream does not exist."""
        commands = [self._append(gateway, encode(reply)) for gateway, reply in replies.items()]
        async with redis_answers():
            entries = await write_all_allowing_oom(self._redis, commands)
        return {gateway for gateway, entry in zip(replies, entries, strict=True) if entry is None}

    def _append(self, gateway: str, entry: bytes) -> Command:
        most = min(STREAM_LIMIT, max(_MIN_ENTRIES, STREAM_BYTES // len(entry)))
        return ("XADD", f"{self._namespace}:replies:{gateway}", "NOMKSTREAM", "MAXLEN", "~", most, "*", "r", entry)


class ReplyReader:
    """The only reader of a gateway's stream. Raises Unavailable if Redis does not answer; the next call continues from the last entry read."""

    def __init__(self, redis: Redis, gateway: str, *, namespace: str = "corral") -> None:
        self._redis = redis
        self._key = f"{namespace}:replies:{gateway}"
        self._last = b"0-0"
        self._untrimmed = 0
        self._untrimmed_bytes = 0

    def restart(self) -> None:
        """Reads from the start, because the stream was created again."""
        self._last = b"0-0"

    async def read(self, *, timeout_s: float) -> list[StepReply]:
        """The next entries, oldest first. Blocks until there are some; empty after `timeout_s`. Entries that do not decode are skipped."""
        if self._untrimmed >= TRIM_ENTRIES or self._untrimmed_bytes >= TRIM_BYTES:
            async with redis_answers():
                await self._redis.xtrim(self._key, minid=self._last, approximate=True)
            self._untrimmed = self._untrimmed_bytes = 0
        entries = await read_stream(self._redis, self._key, self._last, timeout_s=timeout_s)
        if not entries:
            return []
        self._last = entries[-1][0]
        self._untrimmed += len(entries)
        data = [fields[b"r"] for _, fields in entries if b"r" in fields]
        self._untrimmed_bytes += sum(map(len, data))
        replies = map(_decode.known, data)
        return [reply for reply in replies if reply]

    async def close(self) -> None:
        async with redis_answers():
            await self._redis.delete(self._key)
