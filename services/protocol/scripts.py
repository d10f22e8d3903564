"""Lua scripts, and the calls that many tasks make to them at once.

The driver takes a connection from its pool for each command and waits for the answer before it gives it back. Here a call that
comes while others are under way waits for them and then goes out with all that came meanwhile: one write, one read, one connection.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ResponseError

from services.protocol.connection import AnswerTimeout

Argument = str | bytes | int | float


@dataclass(frozen=True)
class _Call:
    script: str
    arguments: tuple[Argument, ...]
    answer: asyncio.Future[Any]


class Scripts:
    """`sources` are Lua, by name. Calls are carried out in the order in which they are made. One that is cancelled before it went out is not made; later,
    Redis may carry it out. Where a connection breaks, the driver's own retries repeat what was on it."""

    def __init__(self, redis: Redis, sources: Mapping[str, str]) -> None:
        self._redis = redis
        self._sources = sources
        self._digests = {name: _digest(source) for name, source in sources.items()}
        self._waiting: list[_Call] = []
        self._carrying: asyncio.Task[None] | None = None

    async def call(self, script: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Raises RedisError and OSError."""
        call = _Call(script, (len(keys), *keys, *args), asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._carrying is None:
            self._carrying = asyncio.create_task(self._carry())
        return await call.answer

    async def _carry(self) -> None:
        """Until nothing waits."""
        try:
            while self._waiting:
                calls = [call for call in self._waiting if not call.answer.done()]
                self._waiting.clear()
                if calls:
                    await self._carry_out(calls)
        finally:
            self._carrying = None

    async def _carry_out(self, calls: list[_Call]) -> None:
        answers: list[Any]
        try:
            async with AnswerTimeout():  # a caller's own does not end the wait here
                answers = await self._answers(calls)
        except Exception as error:  # noqa: BLE001 whatever it is, it is the callers' to hear: nothing else ends their wait
            answers = [error] * len(calls)
        for call, answer in zip(calls, answers, strict=True):
            if call.answer.done():
                continue
            if isinstance(answer, Exception):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)

    async def _answers(self, calls: list[_Call]) -> list[Any]:
        answers = await self._evaluate(calls)
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            for script in {calls[place].script for place in unknown}:
                await self._redis.script_load(self._sources[script])
            again = await self._evaluate([calls[place] for place in unknown])
            for place, answer in zip(unknown, again, strict=True):
                answers[place] = answer
        return answers

    async def _evaluate(self, calls: list[_Call]) -> list[Any]:
        pool = self._redis.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        commands = connection.pack_commands([("EVALSHA", self._digests[call.script], *call.arguments) for call in calls])

        async def exchange() -> list[Any]:
            await connection.send_packed_command(commands)
            return [await _answer(connection) for _ in calls]

        try:
            answers: list[Any] = await connection.retry.call_with_retry(exchange, lambda error: connection.disconnect())
            return answers
        finally:
            await pool.release(connection)


def _digest(source: str) -> str:
    """As Redis names a script."""
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
