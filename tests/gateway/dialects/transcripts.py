"""What golden transcripts are made of: a fixed clock, fixed ids, and the events of one answer."""

from __future__ import annotations

from typing import Any

from services.gateway.stopwatch import Stopwatch
from services.gateway.ticket import Target, Ticket
from services.protocol.messages import Event, Finished, FinishReason, Frame, Started, Timings, Usage
from services.protocol.names import ModelName
from services.protocol.routes import VersionRoute

ANSWER: tuple[Event, ...] = (
    Started("r", 1, 0, 5, 2, (7, 8)),
    Frame("r", 1, 1, (9,), "Hé"),
    Frame("r", 1, 2, (10,), ""),
    Frame("r", 1, 3, (11, 12), "llo\n"),
    Finished("r", 1, 4, (FinishReason.STOP,), Usage(5, 2, 4), Timings(20, 30)),
)
SILENCE: tuple[Event, ...] = (
    Started("r", 1, 0, 5, 0),
    Finished("r", 1, 1, (FinishReason.LENGTH,), Usage(5, 0, 0), Timings(20, 0)),
)


class SteppingStopwatch(Stopwatch):
    """Starts at 2026-08-21T18:48:22.000001Z; each look at it takes one microsecond."""

    def __init__(self) -> None:
        super().__init__()
        self._wall_ns = 1_787_338_102_000_001_000
        self._looks = 0

    def elapsed_ns(self) -> int:
        self._looks += 1
        return self._looks * 1000


def target(name: str = "smollm2:135m", **changes: Any) -> Target:
    values: dict[str, Any] = {
        "digest": "a" * 64,
        "size": 1,
        "family": "llama",
        "parameter_size": "134.52M",
        "quantization": "Q4_1",
        "trained_context": 8192,
        "embedding_length": 576,
        "capabilities": ("completion", "chat"),
        "parameters": {},
    }
    return Target(name, ModelName.parse(name), VersionRoute(**values | changes))


def ticket(**changes: Any) -> Ticket:
    return Ticket("r", "gateway-1", "k1", target(**changes))
