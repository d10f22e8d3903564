"""LimitedProcessPool: runs work on untrusted text in child processes with limits on CPU time, wall time and memory.

Each thread of the pool owns one child, which answers one call at a time. A child that exceeds a limit is killed and replaced,
and only its current call fails. `services.worker.limited_child` is the child's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from services.protocol.errors import from_code
from services.worker.config import child_environment
from services.worker.limited_child import HEADER, Broken, Call, Refused, Reply, Start

log = logging.getLogger(__name__)

R = TypeVar("R")

#: Limits for a child's start: its imports and its `setup`.
START_CPU_S, START_WALL_S = 5.0, 60.0

#: A chat up to this size fits into the pipe at once.
PIPE_BYTES = 1 << 20

_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class LimitExceeded(Exception):
    """A call exceeded a limit, or ended its child. The next call gets a new child."""


class TimedOut(LimitExceeded):
    """Too much CPU time or wall time."""


class OutOfMemory(LimitExceeded):
    """Too much memory."""


class Crashed(LimitExceeded):
    """The child ended by itself, or raised an exception that is not a CorralError."""


class Killed(LimitExceeded):
    """The child got SIGKILL from outside, for example from the kernel if the machine has no memory left."""


@dataclass(frozen=True)
class Limits:
    """Limits for one call. `memory_bytes`: what a child may allocate on top of its imports, `setup` included."""

    cpu_s: float
    wall_s: float
    memory_bytes: int


class LimitedProcessPool:
    """Up to `size` children that run `python -m module`, which calls `limited_child.serve`. Children start when they are
    needed, and get `setup` first. Calls beyond `size` wait their turn, without a time limit. Thread-safe."""

    def __init__(self, module: str, setup: Any, *, limits: Limits, size: int = 2, nice: int = 10) -> None:
        self._module = module
        self._limits = limits
        self._start = msgspec.msgpack.encode(Start(_raw(setup), limits.memory_bytes, nice))
        self._threads = ThreadPoolExecutor(size, thread_name_prefix=module.rpartition(".")[2])
        self._own = threading.local()
        self._lock = threading.Lock()
        self._children: set[_Child] = set()
        self._is_closed = False

    def start(self, greeting: type[R]) -> R:
        """Starts a child and returns its reply to `setup`. Raises the same errors as `call`."""
        return self._threads.submit(lambda: msgspec.msgpack.decode(self._child().greeting, type=greeting)).result()

    def call(self, request: Any, reply: type[R]) -> R:
        """The child's reply. Raises LimitExceeded, or the CorralError that the child raised."""
        return self._submit(request, reply).future.result()

    async def call_async(self, request: Any, reply: type[R]) -> R:
        """Like `call`. If the task is cancelled, the child that works on the call is killed."""
        job = self._submit(request, reply)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            job.cancel()
            raise

    def close(self) -> None:
        """Kills the children. Running and waiting calls fail."""
        with self._lock:
            self._is_closed = True
            for child in self._children:
                child.kill()
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.end()

    def _submit(self, request: Any, reply: type[R]) -> _Job[R]:
        job = _Job[R]()
        job.future = self._threads.submit(self._run, job, Call(_raw(request), self._limits.wall_s), reply)
        return job

    def _run(self, job: _Job[R], call: Call, reply: type[R]) -> R:
        child = self._child()
        job.runs_in(child)
        try:
            value = child.exchange(msgspec.msgpack.encode(call), cpu_s=self._limits.cpu_s, wall_s=self._limits.wall_s)
        except LimitExceeded as error:
            log.warning("child process replaced: module=%s error=%r", self._module, str(error))
            self._drop(child)
            raise
        finally:
            job.runs_in(None)
        return msgspec.msgpack.decode(value, type=reply)

    def _child(self) -> _Child:
        """The child of the calling thread."""
        child: _Child | None = getattr(self._own, "child", None)
        if child is not None and child.has_ended:
            self._drop(child)
            child = None
        if child is None:
            child = self._own.child = self._started()
        return child

    def _started(self) -> _Child:
        with self._lock:
            if self._is_closed:
                raise Crashed("the pool is closed")
            child = _Child(self._module)
            self._children.add(child)
        try:
            child.greeting = child.exchange(self._start, cpu_s=START_CPU_S, wall_s=START_WALL_S)
        except BaseException:
            self._drop(child)
            raise
        return child

    def _drop(self, child: _Child) -> None:
        self._own.child = None
        with self._lock:
            self._children.discard(child)
        child.end()


class _Job(Generic[R]):
    """A call and, while it runs, its child."""

    future: Future[R]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            if self._child is not None:
                self._child.kill()

    def runs_in(self, child: _Child | None) -> None:
        with self._lock:
            self._child = child
            if child is not None and self._is_cancelled:
                child.kill()


class _Child:
    """One process. Only its thread exchanges frames with it; `kill` may be called from any thread."""

    greeting: bytes | msgspec.Raw

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._in, self._out):
            os.set_blocking(pipe, False)
            with contextlib.suppress(OSError):  # the kernel limits the pipe memory of a user; a smaller pipe is only slower
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        with self._process:  # closes the pipes and waits
            self.kill()

    def exchange(self, frame: bytes, *, cpu_s: float, wall_s: float) -> msgspec.Raw:
        """The child's reply. Raises LimitExceeded, or the CorralError that the child raised."""
        try:
            budget = _Budget(self._process.pid, cpu_s, wall_s)
            self._write(HEADER.pack(len(frame)) + frame, budget)
            (length,) = HEADER.unpack(self._read(HEADER.size, budget))
            reply = _replies.decode(self._read(length, budget))
        except (BrokenPipeError, EOFError) as error:
            raise _end_of(self._process) from error
        if isinstance(reply, Refused):
            raise from_code(reply.code, reply.message, field=reply.field)
        if isinstance(reply, Broken):
            raise OutOfMemory("it takes too much memory") if reply.out_of_memory else Crashed(reply.traceback)
        return reply.value

    def _write(self, data: bytes, budget: _Budget) -> None:
        view = memoryview(data)
        while view:
            budget.wait(self._in, select.POLLOUT)
            view = view[os.write(self._in, view) :]

    def _read(self, size: int, budget: _Budget) -> bytes:
        data = bytearray()
        while len(data) < size:
            budget.wait(self._out, select.POLLIN)
            piece = os.read(self._out, size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


class _Budget:
    """The CPU time and wall time left for one exchange."""

    def __init__(self, pid: int, cpu_s: float, wall_s: float) -> None:
        self._cpu_clock = (~pid << 3) | 2  # the clock id that clock_getcpuclockid(3) returns
        self._cpu_limit = self._cpu() + cpu_s
        self._deadline = time.monotonic() + wall_s

    def wait(self, fd: int, event: int) -> None:
        """Waits until the descriptor is ready. Raises TimedOut."""
        poll = select.poll()
        poll.register(fd, event)
        while not poll.poll(1000 * self._left()):
            pass

    def _left(self) -> float:
        """Seconds until a limit can be reached at the earliest, if the child uses one CPU core."""
        left = min(self._cpu_limit - self._cpu(), self._deadline - time.monotonic())
        if left <= 0:
            raise TimedOut("it takes too long")
        return max(left, 0.001)

    def _cpu(self) -> float:
        try:
            return time.clock_gettime(self._cpu_clock)
        except OSError as error:
            raise EOFError from error


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def _end_of(process: subprocess.Popen[bytes]) -> LimitExceeded:
    process.kill()  # its pipes are closed: if it is exiting, it keeps its own exit code
    code = process.wait()
    if code == -signal.SIGKILL:
        return Killed("its process was killed")
    return Crashed(f"its process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}")
