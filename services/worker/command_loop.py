"""The loop of the engine thread: wait for work, handle commands, step, emit events.

Commands arrive in a queue from any thread; events leave through a callback. Text and embedding models implement the steps.
"""

from __future__ import annotations

import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.protocol.errors import CorralError, WorkerLost
from services.protocol.messages import EmbedRequest, Event, Failed, Finished, GenerateRequest, HandedOver, RerankRequest
from services.worker.engine.engine import Occupancy
from services.worker.engine.runner import EngineDead


@dataclass(frozen=True)
class RoutedEvent:
    """An event and the gateway that it goes to."""

    gateway: str
    event: Event

    @property
    def is_terminal(self) -> bool:
        return isinstance(self.event, Finished | Failed | HandedOver)


@dataclass(frozen=True)
class Abort:
    request: str


@dataclass(frozen=True)
class Quit:
    """Ends the loop at once. Running requests get no terminal event."""


@dataclass(frozen=True)
class HandOver:
    """Ends all running and all later requests with HandedOver, so that another worker continues them."""


class Running(Protocol):
    """A request that the loop works on."""

    @property
    def request(self) -> GenerateRequest | EmbedRequest | RerankRequest: ...

    def failed(self, error: CorralError) -> Failed: ...


Emit = Callable[[list[RoutedEvent]], None]

BeginT = TypeVar("BeginT")
RunningT = TypeVar("RunningT", bound=Running)


class CommandLoop(ABC, Generic[BeginT, RunningT]):
    """`cached_requests` are the ids of the requests that have tokens in the cache; only the engine thread sets it."""

    def __init__(self, emit: Emit) -> None:
        self.cached_requests = frozenset[str]()
        self._emit = emit
        self._commands: queue.SimpleQueue[BeginT | Abort | HandOver | Quit] = queue.SimpleQueue()

    def put(self, command: BeginT | Abort | HandOver | Quit) -> None:
        """Thread-safe."""
        self._commands.put(command)

    def run(self) -> None:
        """Returns on Quit. If the engine dies, fails all running requests and raises EngineDead."""
        try:
            while self._handle_commands():
                if self._has_work:
                    self._step()
        except EngineDead as error:
            lost = WorkerLost(f"an error was encountered while running the model: {error}")
            self._emit_all((running, [running.failed(lost)]) for running in self._all_running())
            raise
        finally:
            self._close()

    def _handle_commands(self) -> bool:
        """Handles the queued commands; if there is no work, waits for one. False on Quit."""
        while not self._commands.empty() or not self._has_work:
            match command := self._commands.get():
                case Abort(request):
                    self._abort(request)
                case HandOver():
                    self._hand_over()
                case Quit():
                    return False
                case _:
                    self._begin(command)
        return True

    def _emit_all(self, events: Iterable[tuple[RunningT, Sequence[Event]]]) -> None:
        routed = [RoutedEvent(running.request.gateway, event) for running, produced in events for event in produced]
        if routed:
            self._emit(routed)

    @abstractmethod
    def occupancy(self) -> Occupancy | None:
        """None if nothing is kept from one batch to the next. Thread-safe."""

    @abstractmethod
    def threads(self) -> int:
        """The number of CPU threads that compute the next batch. Thread-safe."""

    @property
    @abstractmethod
    def _has_work(self) -> bool: ...

    @abstractmethod
    def _step(self) -> None:
        """Computes one batch and emits its events. Raises EngineDead."""

    @abstractmethod
    def _begin(self, begin: BeginT) -> None:
        """Starts the request. A bug in it fails the request and does not leave."""

    @abstractmethod
    def _abort(self, request: str) -> None:
        """Ends the request, if it runs."""

    @abstractmethod
    def _hand_over(self) -> None: ...

    @abstractmethod
    def _all_running(self) -> Iterable[RunningT]: ...

    @abstractmethod
    def _close(self) -> None:
        """Frees the model."""
