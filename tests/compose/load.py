"""Streaming requests without pauses from clients that never retry, so every error counts as a failure."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import openai

#: A request that takes longer counts as failed.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Outcome:
    """`wait_s` is the time to the first piece, `gap_s` the longest time between two pieces. `error` is empty if all tokens
    arrived."""

    started_at: float
    wait_s: float
    gap_s: float
    error: str


class Load:
    """A context manager that generates load; on exit it waits for the last answers. Each entry of `tokens` is a client that
    requests answers of that length; every second client opens a new connection per request."""

    def __init__(self, port: int, key: str, model: str, *, tokens: tuple[int, ...]) -> None:
        self.outcomes: list[Outcome] = []
        self._port, self._key, self._model = port, key, model
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(count, number % 2 == 0), daemon=True)
            for number, count in enumerate(tokens)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=PATIENCE_S)

    @property
    def failures(self) -> Counter[str]:
        return Counter(outcome.error for outcome in self.outcomes if outcome.error)

    @property
    def summary(self) -> str:
        waits, gaps = ([getattr(outcome, name) for outcome in self.outcomes] for name in ("wait_s", "gap_s"))
        failed = sum(self.failures.values())
        return f"{len(self.outcomes)} requests, {failed} failed, longest wait {max(waits):.1f} s, longest gap {max(gaps):.1f} s"

    def _ask(self, tokens: int, keeps_connection: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if keeps_connection else 0)
        with httpx.Client(limits=limits, timeout=PATIENCE_S) as http:
            address = f"http://127.0.0.1:{self._port}/v1"
            client = openai.OpenAI(base_url=address, api_key=self._key, max_retries=0, http_client=http)  # type: ignore[arg-type]
            while not self._over.is_set():
                self.outcomes.append(self._stream(client, tokens))

    def _stream(self, client: openai.OpenAI, tokens: int) -> Outcome:
        question: list[Any] = [{"role": "user", "content": "Count to a million."}]
        started = last = time.monotonic()
        wait_s = gap_s = 0.0
        came, finish = 0, None
        error = ""
        try:
            options: Any = {"model": self._model, "messages": question, "max_tokens": tokens, "stream": True}
            for chunk in client.chat.completions.create(**options, stream_options={"include_usage": True}):
                now = time.monotonic()
                if not wait_s:
                    wait_s = now - started
                else:
                    gap_s = max(gap_s, now - last)
                last = now
                finish = chunk.choices[0].finish_reason if chunk.choices else finish
                came = chunk.usage.completion_tokens if chunk.usage else came
        except (openai.OpenAIError, httpx.HTTPError) as failure:
            cause = failure.__cause__ or failure.__context__
            error = f"{type(failure).__name__}: {failure}" + (f" ({type(cause).__name__}: {cause})" if cause else "")
        if not error and (finish != "length" or came != tokens):
            error = f"{came} of {tokens} tokens, finished by {finish}"
        return Outcome(started, wait_s or time.monotonic() - started, gap_s, error)
