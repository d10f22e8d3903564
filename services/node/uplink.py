"""The agent's connection to Redis, besides Celery's: an event loop in its own thread, which job threads call into."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from redis.asyncio import Redis

from services.process.loops import vital_thread
from services.protocol.connection import connect

T = TypeVar("T")


class Uplink:
    """Runs coroutines on its event loop. Only these may use `redis`."""

    def __init__(self, redis_url: str) -> None:
        self.redis: Redis = connect(redis_url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=vital_thread, args=("uplink", self._loop.run_forever), name="uplink", daemon=True
        )
        self._thread.start()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        """Runs the coroutine and waits for it. Returns its result, or raises its error."""
        return self.spawn(function(*args)).result()

    def close(self) -> None:
        self.call(self.redis.aclose)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
