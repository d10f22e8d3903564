"""An unexpected exception in one request fails that request; others continue."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from services.protocol.messages import Claim, Event, Failed, Finished, Frame, GenerateRequest
from services.protocol.prompts import TextPrompt
from services.protocol.reports import WorkerState
from services.protocol.sampling import SamplingParams, StopConditions
from services.telemetry.telemetry import NO_TELEMETRY
from services.worker.chat.parser import Parsed
from services.worker.command_loop import Quit, RoutedEvent
from services.worker.config import Settings
from services.worker.engine.aho_corasick import AhoCorasick
from services.worker.engine.engine import Engine
from services.worker.engine.fake import FakeRunner
from services.worker.engine.runner import OnProgress
from services.worker.engine.sampling import Stages
from services.worker.engine_thread import Begin, EngineLoop
from services.worker.loading import Loaded
from services.worker.metrics import Metrics
from services.worker.output import OutputPipeline
from services.worker.prompt import Preparation
from services.worker.text_mode import TextMode
from services.worker.worker import Worker
from tests.doubles.gateway import VERSION, ScriptedGateway

DEADLINE_S = 30


class BrokenParser:
    """Raises at the third token."""

    def __init__(self) -> None:
        self._pushed = 0

    def push(self, text: str) -> Parsed:
        self._pushed += 1
        if self._pushed == 3:
            raise ZeroDivisionError
        return Parsed(text)

    def flush(self) -> Parsed:
        return Parsed()


class BrokenMatcher:
    failure = None
    is_finished = False

    def mask(self) -> None:
        raise IndexError

    def accept(self, token: int) -> None:
        pass


@dataclass(frozen=True)
class BrokenGrammar:
    matcher_: Any

    def matcher(self, after: bytes | None = None) -> Any:
        if self.matcher_ is None:
            raise KeyError("no matcher")
        return self.matcher_


class RunningLoop:
    """An engine loop in its thread, and the events that it emits."""

    def __init__(self) -> None:
        self._runner = FakeRunner()
        self._changed = threading.Condition()
        self.events: defaultdict[str, list[Event]] = defaultdict(list)
        engine = Engine(self._runner, batch_tokens=64, prefill_s=1.0, prefill_tokens=16)
        self._loop = EngineLoop(self._runner, engine, exact_tokens=64, emit=self._emit, metrics=Metrics(slots=8))
        self._thread = threading.Thread(target=self._loop.run)
        self._thread.start()

    def _emit(self, addressed: list[RoutedEvent]) -> None:
        with self._changed:
            for each in addressed:
                self.events[each.event.request].append(each.event)
            self._changed.notify_all()

    def begin(self, id: str, *, n: int = 1, grammar: Any = None, parser: type[BrokenParser] | None = None) -> None:
        request = GenerateRequest(id, VERSION, "g", "c", TextPrompt("hi"), stopping=StopConditions(20), n=n)
        token_bytes, stop = self._runner.token_bytes, AhoCorasick[str](())

        def output(choice: int) -> OutputPipeline:
            return OutputPipeline(token_bytes, stop, parser() if parser and choice == n - 1 else None)

        stages = Stages(SamplingParams(temperature=0), self._runner.token_text)
        self._loop.put(Begin(request, 1, (), Preparation([1, 2, 3], None, None, output), stages, grammar))

    def ends(self, id: str) -> Event:
        with self._changed:
            assert self._changed.wait_for(
                lambda: bool(self.events[id]) and isinstance(self.events[id][-1], Finished | Failed), timeout=DEADLINE_S
            )
        return self.events[id][-1]

    def quit(self) -> None:
        self._loop.put(Quit())
        self._thread.join(DEADLINE_S)


@pytest.mark.parametrize(
    "broken",
    [
        {"parser": BrokenParser},
        {"parser": BrokenParser, "n": 3},
        {"grammar": BrokenGrammar(BrokenMatcher())},
        {"grammar": BrokenGrammar(BrokenMatcher()), "n": 2},
        {"grammar": BrokenGrammar(None)},
    ],
    ids=["parser", "parser of one choice", "sampler", "samplers", "begin"],
)
def test_an_exception_in_the_engine_thread_fails_only_its_request(
    broken: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    loop = RunningLoop()
    loop.begin("before")
    loop.begin("broken", **broken)
    loop.begin("after")
    failed = loop.ends("broken")
    assert isinstance(failed, Failed)
    assert failed.code == "internal_error"
    assert [event.seq for event in loop.events["broken"]] == list(range(len(loop.events["broken"])))
    for other in ("before", "after"):
        assert isinstance(loop.ends(other), Finished)
        assert len([event for event in loop.events[other] if isinstance(event, Frame)]) == 20
    loop.quit()
    assert "Traceback" in caplog.text
    assert "request=broken" in caplog.text


class BrokenMode(TextMode):
    """Raises when it prepares the prompt `break`."""

    def begin(self, claim: Claim) -> Begin:
        if isinstance(claim.request, GenerateRequest) and claim.request.prompt == TextPrompt("break"):
            raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")
        return super().begin(claim)


async def test_an_exception_while_preparing_a_request_fails_only_that_request(
    gateway: ScriptedGateway, redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(redis_url=redis_url, node="here", replica="r", version=VERSION, runner="fake", drain_s=5)

    def load(settings: Settings, on_progress: OnProgress) -> Loaded:
        return Loaded(BrokenMode(FakeRunner(), settings), 0)

    worker = Worker(settings, redis, load, metrics=Metrics(slots=settings.engine.slots), telemetry=NO_TELEMETRY)
    running = asyncio.create_task(worker.run())
    await gateway.worker(WorkerState.READY)
    broken, good = await gateway.ask(TextPrompt("break")), await gateway.ask(TextPrompt("hello"))
    failed = await gateway.answer(broken)
    assert isinstance(failed, Failed)
    assert failed.code == "internal_error"
    assert isinstance(await gateway.answer(good), Finished)
    assert "Traceback" in caplog.text
    worker.drain()
    assert await running == 0
