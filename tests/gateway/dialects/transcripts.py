"""The parts of golden transcripts: a fixed clock, fixed ids and the events of an answer."""

from __future__ import annotations

import math
from typing import Any

from services.gateway.requests.stopwatch import Stopwatch
from services.gateway.requests.ticket import Target, Ticket
from services.protocol.messages import (
    ChosenLogprob,
    Event,
    Finished,
    FinishReason,
    Frame,
    Started,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
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
_USAGE, _TIMINGS = Usage(5, 2, 4), Timings(20, 30)
#: A thought, some text and two tool calls; the second arrives in pieces.
CALLS: tuple[Event, ...] = (
    Started("r", 1, 0, 5, 2, (7, 8)),
    Frame("r", 1, 1, (9,), ""),
    Frame("r", 1, 2, (10,), "", reasoning="Hm"),
    Frame("r", 1, 3, (11,), "I ", reasoning="m"),
    Frame("r", 1, 4, (12,), "", tool_calls=(ToolCallDelta(0, "call_a", "now", "{}"),)),
    Frame("r", 1, 5, (13,), "", tool_calls=(ToolCallDelta(1, "call_b", "weather"),)),
    Frame("r", 1, 6, (14,), "", tool_calls=(ToolCallDelta(1, arguments='{"city":'), ToolCallDelta(1, arguments='"Rome"}'))),
    Finished("r", 1, 7, (FinishReason.TOOL_CALLS,), _USAGE, _TIMINGS),
)
#: The token limit ends the answer within the second call.
CUT_CALL: tuple[Event, ...] = (*CALLS[:6], Finished("r", 1, 6, (FinishReason.LENGTH,), _USAGE, _TIMINGS))
#: A euro sign in two tokens.
LOGPROBS: tuple[Event, ...] = (
    Started("r", 1, 0, 5, 2),
    Frame("r", 1, 1, (9,), "A", logprobs=(ChosenLogprob(b"A", -0.5, (TokenLogprob(b"A", -0.5), TokenLogprob(b"B", -1.5))),)),
    Frame("r", 1, 2, (10,), "", logprobs=(ChosenLogprob(b"\xe2\x82", -math.inf),)),
    Frame("r", 1, 3, (11,), "€", logprobs=(ChosenLogprob(b"\xac", -0.25),)),
    Finished("r", 1, 4, (FinishReason.STOP,), _USAGE, _TIMINGS),
)
CHOICES: tuple[Event, ...] = (
    Started("r", 1, 0, 5, 2),
    Frame("r", 1, 1, (9,), "b", choice=1),
    Frame("r", 1, 2, (10,), "a"),
    Frame("r", 1, 3, (11,), "B", choice=1),
    Finished("r", 1, 4, (FinishReason.STOP, FinishReason.LENGTH), _USAGE, _TIMINGS),
)


class SteppingStopwatch(Stopwatch):
    """Starts at 2026-08-21T18:48:22.000001Z and advances by one microsecond at each reading."""

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
