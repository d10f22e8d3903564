"""The embedding loop: commands in, events out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from collections.abc import Sequence as TokenIds

import numpy as np
import pytest
from numpy.typing import NDArray

from services.protocol.messages import (
    Claim,
    Embedded,
    EmbedRequest,
    Event,
    Failed,
    Finished,
    FinishReason,
    RerankRequest,
    Started,
)
from services.worker.command_loop import Abort, Quit, RoutedEvent
from services.worker.embedding.engine_thread import BeginEmbedding, EmbeddingLoop
from services.worker.embedding.mode import EmbeddingMode
from services.worker.engine.fake_embedder import DIMENSIONS, FakeEmbedder
from services.worker.engine.runner import EngineDead
from services.worker.metrics import Metrics


class Gated(FakeEmbedder):
    """Computes a batch each time the test releases the gate."""

    def __init__(self, *, batch_tokens: int = 512) -> None:
        super().__init__(batch_tokens=batch_tokens)
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.closed = False

    def embed(self, inputs: TokenIds[TokenIds[int]]) -> NDArray[np.float32]:
        self.entered.release()
        assert self.gate.acquire(timeout=10)
        return super().embed(inputs)

    def close(self) -> None:
        self.closed = True


class Broken(FakeEmbedder):
    def embed(self, inputs: TokenIds[TokenIds[int]]) -> NDArray[np.float32]:
        raise EngineDead("llama_decode returned -3")


class Running:
    """A loop in its thread, and the events of each step."""

    def __init__(self, embedder: FakeEmbedder) -> None:
        self.steps: queue.Queue[list[RoutedEvent]] = queue.Queue()
        self.mode = EmbeddingMode(embedder)
        self.loop: EmbeddingLoop = self.mode.loop(self.steps.put, Metrics(slots=1))
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def begin(self, request: EmbedRequest | RerankRequest, epoch: int = 1) -> None:
        self.loop.put(self.mode.begin(Claim(request, epoch)))

    def step(self) -> list[Event]:
        return [addressed.event for addressed in self.steps.get(timeout=10)]

    def until_over(self, *requests: str) -> list[Event]:
        events: list[Event] = []
        while {event.request for event in events if isinstance(event, Finished | Failed)} != set(requests):
            events += self.step()
        return events

    def end(self) -> None:
        self.loop.put(Quit())
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.loop.run()
        except EngineDead as error:
            self.error = error


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running(FakeEmbedder())
    yield running
    running.end()


def embed(id: str, *inputs: str, dimensions: int | None = None, normalize: bool = True) -> EmbedRequest:
    return EmbedRequest(id=id, version="v", gateway="g", caller="c", inputs=inputs, dimensions=dimensions, normalize=normalize)


def vectors(events: list[Event]) -> dict[int, NDArray[np.float32]]:
    return {event.index: np.frombuffer(event.vector, "<f4") for event in events if isinstance(event, Embedded)}


def test_a_request_gets_a_start_one_vector_per_input_and_one_end(running: Running) -> None:
    running.begin(embed("r", "one", "two", "three"), epoch=7)
    events = running.until_over("r")
    assert [type(event) for event in events] == [Started, Embedded, Embedded, Embedded, Finished]
    assert [event.seq for event in events] == [0, 1, 2, 3, 4]
    assert {event.epoch for event in events} == {7}
    assert sorted(vectors(events)) == [0, 1, 2]
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert started.prompt_tokens == finished.usage.prompt_tokens == len("onetwothree") + 6
    assert finished.reasons == (FinishReason.STOP,)
    assert (finished.usage.cached_tokens, finished.usage.completion_tokens) == (0, 0)


def test_vectors_are_normalized_by_default(running: Running) -> None:
    running.begin(embed("unit", "text"))
    unit = vectors(running.until_over("unit"))[0]
    running.begin(embed("raw", "text", normalize=False))
    raw = vectors(running.until_over("raw"))[0]
    assert np.linalg.norm(unit) == pytest.approx(1)
    assert np.linalg.norm(raw) > 2
    assert raw / np.linalg.norm(raw) == pytest.approx(unit)


@pytest.mark.parametrize(("dimensions", "length"), [(4, 4), (DIMENSIONS, DIMENSIONS), (10_000, DIMENSIONS)])
def test_vectors_with_fewer_dimensions_are_normalized_again(running: Running, dimensions: int, length: int) -> None:
    running.begin(embed("whole", "text", normalize=False))
    whole = vectors(running.until_over("whole"))[0]
    running.begin(embed("cut", "text", dimensions=dimensions))
    cut = vectors(running.until_over("cut"))[0]
    assert len(cut) == length
    assert cut == pytest.approx(whole[:length] / np.linalg.norm(whole[:length]))


def test_a_request_without_inputs_is_answered_at_once(running: Running) -> None:
    running.begin(embed("r"))
    assert [type(event) for event in running.step()] == [Started, Finished]


def test_rerank_scores_come_from_the_classifier() -> None:
    running = Running(FakeEmbedder(pooling="rank"))
    running.begin(RerankRequest(id="r", version="v", gateway="g", caller="c", query="ab", documents=("ab", "abc", "xyz")))
    scores = vectors(running.until_over("r"))
    assert [scores[index].tolist() for index in range(3)] == [[2.0], [3.0], [5.0]]
    running.end()


def test_requests_that_arrive_together_are_computed_together() -> None:
    embedder = Gated()
    running = Running(embedder)
    running.begin(embed("first", "x"))
    assert [type(event) for event in running.step()] == [Started]
    assert embedder.entered.acquire(timeout=10)
    for id in ("a", "b", "c"):
        running.begin(embed(id, "x", "y"))
    embedder.gate.release(2)
    assert {event.request for event in running.step()} == {"first"}
    for _ in "abc":
        running.step()
    assert {event.request for event in running.step()} == {"a", "b", "c"}
    running.end()


def test_a_cancelled_request_ends_before_the_next_batch() -> None:
    embedder = Gated(batch_tokens=3)
    running = Running(embedder)
    running.begin(embed("r", *"abcdefgh"))
    running.step()
    assert embedder.entered.acquire(timeout=10)
    running.loop.put(Abort("r"))
    embedder.gate.release()
    assert [type(event) for event in running.step()] == [Embedded]
    (finished,) = running.step()
    assert isinstance(finished, Finished)
    assert (finished.reasons, finished.usage.prompt_tokens, finished.seq) == ((FinishReason.ABORT,), 3, 2)
    running.end()
    assert embedder.closed


def test_a_second_claim_of_a_request_drops_the_first() -> None:
    embedder = Gated(batch_tokens=3)
    running = Running(embedder)
    running.begin(embed("r", "a", "b"), epoch=1)
    running.step()
    assert embedder.entered.acquire(timeout=10)
    running.begin(embed("r", "a", "b"), epoch=3)
    embedder.gate.release(3)
    running.step()
    events = [*running.step(), *running.step()]
    assert [(type(event), event.epoch) for event in events] == [(Finished, 1), (Started, 3)]
    assert sorted(vectors(running.until_over("r"))) == [0, 1]
    running.end()


def test_requests_fail_if_the_engine_died() -> None:
    running = Running(Broken())
    running.begin(embed("r", "x"))
    events = running.until_over("r")
    assert isinstance(events[-1], Failed)
    assert (events[-1].code, events[-1].seq) == ("worker_lost", 1)
    running.end()
    assert isinstance(running.error, EngineDead)


def test_quit_drops_waiting_requests() -> None:
    embedder = Gated()
    running = Running(embedder)
    running.begin(embed("r", "x"))
    assert embedder.entered.acquire(timeout=10)
    running.loop.put(Quit())
    embedder.gate.release()
    running.end()
    assert embedder.closed


def test_the_mode_prepares_a_claim_for_the_loop() -> None:
    mode = EmbeddingMode(FakeEmbedder())
    request = embed("r", "a")
    begin = mode.begin(Claim(request, 5))
    assert isinstance(begin, BeginEmbedding)
    assert (begin.request, begin.epoch, len(begin.inputs)) == (request, 5, 1)
    assert mode.context_tokens == 512


class HalfBroken(FakeEmbedder):
    """Returns NaN for inputs that begin with `!`."""

    def embed(self, inputs: TokenIds[TokenIds[int]]) -> NDArray[np.float32]:
        rows = super().embed(inputs)
        return ["no row" if ord("!") in ids else row for ids, row in zip(inputs, rows, strict=True)]  # type: ignore[return-value]


def test_an_exception_fails_only_its_request(caplog: pytest.LogCaptureFixture) -> None:
    running = Running(HalfBroken())
    running.begin(embed("broken", "one", "!", "!", "two"))
    running.begin(embed("whole", "one", "two"))
    events = running.until_over("broken", "whole")
    running.end()
    failed = [event for event in events if event.request == "broken"][-1]
    assert isinstance(failed, Failed)
    assert failed.code == "internal_error"
    assert isinstance([event for event in events if event.request == "whole"][-1], Finished)
    assert running.error is None
    assert "Traceback" in caplog.text
