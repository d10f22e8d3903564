"""The child's side of LimitedProcessPool: `serve` reads calls from stdin and writes one reply per call to stdout.

A frame is a length (4 bytes, big-endian) and a MessagePack body. A module that runs as a child calls `serve` and imports
little: every child pays for its imports in memory and in startup time.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import resource
import signal
import struct
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import msgspec

from services.protocol.errors import CorralError

SetupT = TypeVar("SetupT")
RequestT = TypeVar("RequestT")

HEADER = struct.Struct(">I")

#: If the parent is gone, a child ends itself this long after the time limit of its call.
_GRACE_S = 5


class Start(msgspec.Struct, frozen=True):
    """The first frame. `memory_bytes`: how much the child may allocate on top of its imports."""

    setup: msgspec.Raw
    memory_bytes: int
    nice: int


class Call(msgspec.Struct, frozen=True):
    request: msgspec.Raw
    wall_s: float


class Done(msgspec.Struct, frozen=True, tag="done"):
    value: msgspec.Raw


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The call raised a CorralError."""

    code: str
    message: str
    field: str


class Broken(msgspec.Struct, frozen=True, tag="broke"):
    """The call raised another exception. The child then exits."""

    traceback: str
    out_of_memory: bool = False


Reply = Done | Refused | Broken


def serve(
    setup_type: type[SetupT], request_type: type[RequestT], start: Callable[[SetupT], tuple[Any, Callable[[RequestT], Any]]]
) -> None:
    """Runs until the parent closes stdin. `start` returns the first reply, and the function that answers each request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    with open(0, "rb") as requests, open(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # a stray print must not look like a reply
        first = msgspec.msgpack.decode(_read(requests) or b"", type=Start)
        _limit(first)
        started: list[Callable[[RequestT], Any]] = []

        def begin() -> Any:
            greeting, handle = start(msgspec.msgpack.decode(first.setup, type=setup_type))
            started.append(handle)
            return greeting

        should_continue = _answer(replies, begin)
        gc.freeze()
        while should_continue and started and (frame := _read(requests)) is not None:
            call = msgspec.msgpack.decode(frame, type=Call)
            signal.alarm(math.ceil(call.wall_s) + _GRACE_S)
            should_continue = _answer(replies, lambda: started[0](msgspec.msgpack.decode(call.request, type=request_type)))  # noqa: B023
            signal.alarm(0)


def _limit(start: Start) -> None:
    """Memory that is already mapped, mostly libraries, does not count."""
    with open("/proc/self/statm", "rb") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    for limit, most in ((resource.RLIMIT_AS, mapped + start.memory_bytes), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    os.nice(start.nice)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # if memory is short, the kernel kills this process and not the model's


def _answer(replies: BinaryIO, answer: Callable[[], Any]) -> bool:
    """Writes the reply. Returns whether the child can take another call."""
    reply: Reply
    try:
        reply = Done(msgspec.Raw(msgspec.msgpack.encode(answer())))
    except CorralError as error:
        reply = Refused(error.code, error.message, error.field)
    except MemoryError:
        reply = Broken("", out_of_memory=True)
    except Exception:  # noqa: BLE001 - the parent reports it
        reply = Broken(traceback.format_exc())
    frame = msgspec.msgpack.encode(reply)
    replies.write(HEADER.pack(len(frame)) + frame)
    replies.flush()
    return not isinstance(reply, Broken)


def _read(requests: BinaryIO) -> bytes | None:
    """The next frame; None at the end of the input."""
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    frame = requests.read(HEADER.unpack(header)[0])
    return frame if len(frame) == HEADER.unpack(header)[0] else None
