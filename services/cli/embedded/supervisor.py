"""Starts parts, starts them again when they crash, and stops them in order.

One asyncio loop in the main thread, hence no lock. The supervisor is the only writer of `run/parts.json`, and each part's
task the only one that starts or waits for its process.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from services.cli.embedded import processes
from services.cli.embedded.home import Home
from services.cli.embedded.part import Backoff, Part, describe_exit
from services.cli.errors import PartFailed

#: A gateway that is gone takes no requests; the agent drains the workers; the registry may still write what they report;
#: both databases go last, because all others use them.
STOP_ORDER = ("gateway", "node agent", "registry", "Valkey", "PostgreSQL")

#: A part that ends this often without ever having been ready will not get better by itself.
FIRST_TRIES = 3

POLL_S = 0.03
#: Between a signal that ends a process at once and SIGKILL. PostgreSQL's own limit for the same is 5 s.
HURRY_GRACE_S = 6.0
#: For workers that outlived their agent.
ORPHAN_GRACE_S = 3.0

REAP_AFTER_S = 1.0

LOG_LIMIT_BYTES = 16 * 1024**2
LOG_CHECK_S = 30.0

Say = Callable[[str], None]


class Supervisor:
    def __init__(self, home: Home, say: Say, *, start_timeout_s: float) -> None:
        """`say` gets one line at a time, for a person."""
        self._home = home
        self._say = say
        self._start_timeout_s = start_timeout_s
        self._kept: dict[str, _Kept] = {}
        self._hurry = asyncio.Event()
        processes.adopt_orphans()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        self._logs = asyncio.create_task(self._keep_logs_short())

    async def start(self, part: Part) -> None:
        """Returns once the part is ready; from then on it is kept running. Raises PartFailed."""
        kept = self._kept[part.name] = _Kept(part, self._home.log_of(part.name), self._say, self._write, self._hurry)
        kept.begin()
        try:
            await asyncio.wait_for(asyncio.shield(kept.first_ready), self._start_timeout_s)
        except TimeoutError:
            raise PartFailed(f"{part.name} was not ready after {self._start_timeout_s:.0f} s{kept.last_words()}") from None

    def hurry(self) -> None:
        """Nothing gets any more grace."""
        self._hurry.set()

    async def stop(self) -> None:
        """In STOP_ORDER, one after the other, then whatever they left behind."""
        for name in STOP_ORDER:
            if name in self._kept:
                await self._kept[name].stop()
        left = processes.marked(self._home.path)
        if left:
            self._say(f"ending what was left behind: {', '.join(f'{processes.name(pid)} (pid {pid})' for pid in sorted(left))}")
            await processes.end(left, grace_s=0 if self._hurry.is_set() else ORPHAN_GRACE_S)
        self._logs.cancel()
        self._home.parts_file.unlink(missing_ok=True)

    def _reap(self) -> None:
        """asyncio buries our own children within moments; what is still there after REAP_AFTER_S was adopted."""
        asyncio.get_running_loop().call_later(REAP_AFTER_S, processes.reap, processes.ended_children())

    async def _keep_logs_short(self) -> None:
        """Parts append, so a log can be cut under them; lines written while it is copied are lost."""
        while True:
            for log in self._home.logs.glob("*.log"):
                if log.stat().st_size > LOG_LIMIT_BYTES:
                    with suppress(OSError):  # on a full disk the old lines go
                        shutil.copyfile(log, log.with_suffix(".log.1"))
                    os.truncate(log, 0)
            await asyncio.sleep(LOG_CHECK_S)

    def _write(self) -> None:
        parts = {name: {"pid": kept.pid, "port": kept.part.port} for name, kept in self._kept.items() if kept.pid}
        partial = self._home.parts_file.with_suffix(".new")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(parts, file, indent=2)
        partial.rename(self._home.parts_file)


class _Kept:
    """One part and the task that keeps it running. `first_ready` is settled once: ready, or PartFailed."""

    def __init__(self, part: Part, log: Path, say: Say, changed: Callable[[], None], hurry: asyncio.Event) -> None:
        self.part = part
        self.first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid: int | None = None
        self._log = log
        self._say = say
        self._changed = changed
        self._hurry = hurry
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._starts = 0

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"keep {self.part.name}")

    async def stop(self) -> None:
        """Returns when the process has ended."""
        self._stopping.set()
        if self._process and self._process.returncode is None:
            await self._end(self._process)
        if self._task:
            await self._task
        if self.first_ready.done() and not self.first_ready.cancelled():
            self.first_ready.exception()

    def last_words(self) -> str:
        """What the log ends with, and where it is."""
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{': ' + last if last else ''} (log: {self._log})"

    async def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._live()
            if self._stopping.is_set() or self._gave_up(code):
                return
            delay_s = backoff.after(time.monotonic() - started)
            self._say(f"{self.part.name} {describe_exit(code)}; starting it again in {delay_s:g} s (log: {self._log})")
            await _set_within(self._stopping, delay_s)

    async def _live(self) -> int:
        """One process from its start to its end; returns the exit code."""
        self._process = process = await self._spawn()
        self.pid = process.pid
        self._changed()
        ready = asyncio.create_task(self._watch(process.pid))
        try:
            return await process.wait()
        finally:
            ready.cancel()
            self.pid = None
            self._changed()

    async def _watch(self, pid: int) -> None:
        """Until the part is ready."""
        while not await self.part.ready(pid):
            await asyncio.sleep(POLL_S)
        if not self.first_ready.done():
            self.first_ready.set_result(None)
        elif not self._stopping.is_set():
            self._say(f"{self.part.name} is up again")

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._starts += 1
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.part.command,
                env=self.part.environment,
                stdin=asyncio.subprocess.PIPE if self.part.stdin else asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                user=self.part.user,
                group=self.part.user,
                extra_groups=[] if self.part.user else None,
                # Ctrl-C in the terminal is for us alone: we stop the parts, in order.
                start_new_session=True,
                preexec_fn=processes.tether(self.part.stop_signal),
            )
        if process.stdin:
            process.stdin.write(self.part.stdin)
            process.stdin.close()
        return process

    def _gave_up(self, code: int) -> bool:
        if self.first_ready.done() or self._starts < FIRST_TRIES:
            return False
        self.first_ready.set_exception(PartFailed(f"{self.part.name} {describe_exit(code)}{self.last_words()}"))
        return True

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if not self._hurry.is_set():
            process.send_signal(self.part.stop_signal)
            await _first(process.wait(), self._hurry.wait(), timeout_s=self.part.grace_s)
        if process.returncode is None:
            if not self._hurry.is_set():
                self._say(f"{self.part.name} does not end in time and is made to")
            process.send_signal(self.part.hurry_signal)
            await _first(process.wait(), timeout_s=HURRY_GRACE_S)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


async def _first(*events: Coroutine[Any, Any, object], timeout_s: float) -> None:
    """Returns when one of them has happened, or after `timeout_s`."""
    tasks = [asyncio.ensure_future(event) for event in events]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
