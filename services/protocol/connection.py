"""The connection to Redis, and the conversion of the driver's errors into ours.

- Unavailable: a temporary condition, so callers may retry. Redis cannot be reached, does not answer in time, is loading its data,
  is busy with a script, is read-only during a failover, or cannot write its append-only file.
- QueueMemoryFull: `maxmemory` is used up. A subclass of Unavailable.
- RedisRefused: a bug or a wrong setting, such as a wrong type under a key, an error in a script or a wrong password. It is logged with
  its traceback.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.maint_notifications import MaintNotificationsConfig

from services.protocol.errors import CorralError, QueueMemoryFull, RedisRefused, Unavailable

log = logging.getLogger(__name__)


def connect(url: str) -> Redis:
    """`url` is redis://, rediss:// or unix://. The client returns bytes, not strings."""
    return Redis.from_url(
        url,
        # The driver implements its timeout with asyncio.wait_for, which in Python 3.11 swallows a cancellation that arrives together
        # with an answer (CPython issue 86296): 294 of 300 were lost. `AnswerTimeout` sets the timeout instead.
        socket_timeout=None,
        socket_connect_timeout=5,
        health_check_interval=15,
        protocol=3,
        # If these are enabled, the pool does not notice that a Redis restart closed its connections.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )


MEMORY_FULL = "the queue's memory is full"

Command = tuple[str | bytes | int, ...]

#: The operating system's messages for: no space left, quota exceeded, file too large.
_DISK_FULL = frozenset(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))
_SYSTEM_ERRORS = frozenset(map(os.strerror, errno.errorcode))

#: Runs one command. The flag `allow-oom` lets it write even if all of `maxmemory` is used.
_ALLOW_OOM = "#!lua flags=allow-oom\nreturn redis.call(unpack(ARGV))"

#: How long one command may take until Redis counts as unavailable.
ANSWER_TIMEOUT_S = 5.0

#: The longest time that one command blocks. Below ANSWER_TIMEOUT_S, so that a command that times out means that Redis hangs.
MAX_BLOCK_S = 1.0


#: ANSWER_TIMEOUT_S is counted in this many timer steps. If the process itself is suspended, that costs one step, not the whole timeout.
_STEPS = 5


@asynccontextmanager
async def redis_answers() -> AsyncIterator[None]:
    """Converts the driver's errors: raises Unavailable, QueueMemoryFull or RedisRefused. The driver's message is left out, because it may
    contain the URL or the value of a key."""
    try:
        async with AnswerTimeout():
            yield
    except (RedisError, OSError) as error:
        raise as_ours(error) from error


class AnswerTimeout:
    """Raises the built-in TimeoutError after ANSWER_TIMEOUT_S. Time for which this process is suspended counts as one step at most (`_STEPS`).

    A class and not a generator-based context manager, because every Redis command enters one and a generator costs more.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        self._left = _STEPS

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._timer = self._loop.call_later(ANSWER_TIMEOUT_S / _STEPS, self._step)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, traceback)

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._limit.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_later(ANSWER_TIMEOUT_S / _STEPS, self._step)


def as_ours(error: RedisError | OSError) -> CorralError:
    match error:
        case OutOfMemoryError():
            return QueueMemoryFull(MEMORY_FULL)
        case BusyLoadingError():
            return Unavailable("Redis is loading its data")
        case ReadOnlyError():
            return Unavailable("Redis is read-only")
        case ClusterDownError() | ResponseError() if _word(error) in ("MASTERDOWN", "CLUSTERDOWN", "BUSY", "UNBLOCKED"):
            return Unavailable(f"Redis is busy ({_word(error)})")
        case ResponseError() if _word(error) == "MISCONF":
            return Unavailable(_disk_fault(str(error)))
        case AuthenticationError() | AuthorizationError():
            return _refused("Redis refuses this service's password")
        case ConnectionError() | TimeoutError() | OSError():
            return Unavailable(f"Redis does not answer ({type(error).__name__})")
    return _refused(f"Redis refuses a command ({_word(error) or type(error).__name__})")


def _disk_fault(text: str) -> str:
    """`text` ends with the operating system's message, as in "Errors writing to the AOF file: No space left on device"."""
    reason = text.rpartition(": ")[2]
    if reason in _DISK_FULL:
        return "the queue's disk is full"
    return (
        f"the queue's disk cannot be written ({reason})" if reason in _SYSTEM_ERRORS else "the queue's disk cannot be written"
    )


def _refused(message: str) -> RedisRefused:
    log.exception("%s", message)
    return RedisRefused(message)


def _word(error: Exception) -> str:
    """The upper-case error code at the start of a Redis error, such as `MISCONF`; empty if there is none."""
    first = str(error).partition(" ")[0]
    return first if first.isalpha() and first.isupper() else ""


async def write_allowing_oom(redis: Redis, *command: str | bytes | int) -> Any:
    """Runs a command even if Redis's memory is full, and returns its answer. For writes that requests in flight, leases and jobs need.
    Raises the driver's errors."""
    return (await write_all_allowing_oom(redis, [command]))[0]


async def write_all_allowing_oom(redis: Redis, commands: Sequence[Command]) -> list[Any]:
    """Like `write_allowing_oom`, for several commands: one round trip, and one more for each command that met a full memory."""
    async with redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        answers = await pipe.execute(raise_on_error=False)
    for place, answer in enumerate(answers):
        if isinstance(answer, OutOfMemoryError):
            answers[place] = await redis.eval(_ALLOW_OOM, 0, *commands[place])
        elif isinstance(answer, Exception):
            raise answer
    return answers


async def wait_for_answer(command: Callable[[float], Awaitable[Any]], *, timeout_s: float) -> Any:
    """Repeats a blocking command, for at most MAX_BLOCK_S each time, until it returns something or `timeout_s` is over. The command is
    called with the seconds to block."""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        async with redis_answers():
            answer = await command(min(max(left_s, 0.001), MAX_BLOCK_S))
        if answer or left_s <= MAX_BLOCK_S:
            return answer


async def read_stream(redis: Redis, key: str, after: bytes, *, timeout_s: float) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of a stream after the id `after`, oldest first. Blocks until there are some; empty after `timeout_s`."""
    answer = await wait_for_answer(
        lambda wait_s: redis.xread({key: after}, count=256, block=math.ceil(wait_s * 1000)), timeout_s=timeout_s
    )
    # In RESP3 the answer is {key: [entries]}, with the one key that was read.
    return next(iter(answer.values()))[0] if answer else []
