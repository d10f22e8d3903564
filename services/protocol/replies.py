"""The reply stream of a gateway: workers append one entry per engine step, the gateway reads and trims.

Key `<prefix>:replies:<gateway>`: a Redis stream whose entries have one field, `r`, a StepReply. The gateway alone creates it
and keeps its expiry ahead; a writer never does, so that nothing piles up for a gateway that is gone.
"""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from services.protocol.connection import read_stream, redis_answers
from services.protocol.messages import StepReply
from services.protocol.wire import Decoder, encode

#: Entries. A gateway that stalls for as long as workers need to write so many loses the oldest, and sees the gap in `seq`.
STREAM_LIMIT = 100_000

#: Entries that a reader leaves behind before it trims them.
TRIM_EVERY = 256

_decode = Decoder(StepReply)


class ReplyWriter:
    """Raises Unavailable when Redis does not answer."""

    def __init__(self, redis: Redis, *, prefix: str = "corral") -> None:
        self._redis = redis
        self._prefix = prefix

    async def publish(self, replies: Mapping[str, StepReply]) -> set[str]:
        """Appends one entry per gateway, in one round trip. Returns the gateways whose stream is gone."""
        async with redis_answers(), self._redis.pipeline(transaction=False) as pipe:
            for gateway, reply in replies.items():
                pipe.xadd(
                    f"{self._prefix}:replies:{gateway}",
                    {"r": encode(reply)},
                    maxlen=STREAM_LIMIT,
                    approximate=True,
                    nomkstream=True,
                )
            entries = await pipe.execute()
        return {gateway for gateway, entry in zip(replies, entries, strict=True) if entry is None}


class ReplyReader:
    """The one reader of a gateway's stream. Raises Unavailable when Redis does not answer; call again to go on reading."""

    def __init__(self, redis: Redis, gateway: str, *, prefix: str = "corral") -> None:
        self._redis = redis
        self._key = f"{prefix}:replies:{gateway}"
        self._last = b"0-0"
        self._untrimmed = 0

    async def keep(self, *, lease_ms: int) -> bool:
        """Lets the stream live for another `lease_ms`. False where it did not exist and was created: what workers wrote is lost."""
        async with redis_answers():
            if await self._redis.pexpire(self._key, lease_ms):
                return True
            self._last = b"0-0"
            async with self._redis.pipeline() as pipe:
                pipe.xadd(self._key, {"hello": b""})
                pipe.xtrim(self._key, maxlen=0, approximate=False)
                pipe.pexpire(self._key, lease_ms)
                await pipe.execute()
            return False

    async def read(self, *, timeout_s: float) -> list[StepReply]:
        """The next entries, oldest first; blocks until there are some, empty after `timeout_s`."""
        if self._untrimmed >= TRIM_EVERY:
            async with redis_answers():
                await self._redis.xtrim(self._key, minid=self._last, approximate=True)
            self._untrimmed = 0
        entries = await read_stream(self._redis, self._key, self._last, timeout_s=timeout_s)
        if not entries:
            return []
        self._last = entries[-1][0]
        self._untrimmed += len(entries)
        replies = (_decode.known(fields[b"r"]) for _, fields in entries if b"r" in fields)
        return [reply for reply in replies if reply]

    async def close(self) -> None:
        async with redis_answers():
            await self._redis.delete(self._key)
