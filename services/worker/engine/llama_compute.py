"""LlamaCompute: `llama_decode`, with as many threads as there are cores that other processes leave free."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from llama_cpp import llama_cpp

from services.protocol.engine import EngineSettings
from services.worker.engine.cores import core_times, num_threads
from services.worker.engine.thread_count import ThreadCount

log = logging.getLogger(__name__)

#: How often the number of threads is adjusted. Not shorter, because the kernel counts idle time in hundredths of a second.
WINDOW_S = 0.15

#: After a pause this long, a model starts with all cores again.
PAUSE_S = 1.0

#: Range from which a worker draws how long a core must be free before it uses it (see ThreadCount).
PATIENCE_S = (0.8, 1.4)


class LlamaCompute:
    """Decodes on one context. If the settings set a number of threads, it never changes."""

    def __init__(self, context: Any, settings: EngineSettings) -> None:
        self._context = context
        self._adapts = not settings.threads
        self._count = ThreadCount(num_threads(settings.threads), patience_s=random.uniform(*PATIENCE_S))
        self._before = core_times()
        self._ended_s = self._before.clock_s

    @property
    def threads(self) -> int:
        """Number of threads that will compute the next batch. Safe from any thread."""
        return self._count.now

    def decode(self, batch: Any) -> int:
        """Adjusts the number of threads, then returns the result code of `llama_decode`."""
        if self._adapts:
            self._adapt()
        outcome: int = llama_cpp.llama_decode(self._context, batch)
        self._ended_s = time.monotonic()
        return outcome

    def _adapt(self) -> None:
        now_s = time.monotonic()
        paused = now_s - self._ended_s > PAUSE_S
        if not paused and now_s - self._before.clock_s < WINDOW_S:
            return
        before, self._before = self._before, core_times()
        if paused:
            self._count.restart()
        else:
            self._count.observe(self._before.since(before), seconds=self._before.clock_s - before.clock_s)
        self._set(self._count.now)

    def _set(self, threads: int) -> None:
        if threads != llama_cpp.llama_n_threads(self._context):
            log.debug("threads: %d", threads)
            llama_cpp.llama_set_n_threads(self._context, threads, threads)
