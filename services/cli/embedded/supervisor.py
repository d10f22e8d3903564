"""Starts the platform's processes, restarts them when they crash, and stops them one by one.

Everything runs on one asyncio loop in the main thread, so there are no locks. Only the supervisor writes `run/processes.json`, and
only a process's own task starts it and waits for it.
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
from services.cli.embedded.managed_process import Backoff, ManagedProcess, describe_exit
from services.cli.errors import ProcessStartFailed

#: The gateway stops first, so that no new requests come in. The agent drains the workers, and the registry can still record
#: what they report. The databases stop last, since everything else uses them.
STOP_ORDER = ("gateway", "node agent", "registry", "Valkey", "PostgreSQL")

#: After this many exits without ever being ready, a process won't recover by itself.
FIRST_TRIES = 3

EXIT_POLL_INTERVAL_S = 0.03
#: Time between `hurry_signal` and SIGKILL. PostgreSQL's own limit for the same is 5 s.
HURRY_GRACE_S = 6.0
#: Grace period for workers that outlived their agent.
ORPHAN_GRACE_S = 3.0

REAP_AFTER_S = 1.0

LOG_LIMIT_BYTES = 16 * 1024**2
LOG_CHECK_INTERVAL_S = 30.0

Say = Callable[[str], None]


class Supervisor:
    def __init__(self, home: Home, say: Say, *, start_timeout_s: float, log_check_s: float = LOG_CHECK_INTERVAL_S) -> None:
        """`say` gets messages for the user, one line at a time."""
        self._log_check_s = log_check_s
        self._home = home
        self._say = say
        self._start_timeout_s = start_timeout_s
        self._kept: dict[str, _Kept] = {}
        self._hurry = asyncio.Event()
        processes.adopt_orphans()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        self._logs = asyncio.create_task(self._keep_logs_short())

    async def start(self, managed: ManagedProcess) -> None:
        """Starts a process, and returns once it is ready. From then on it is restarted if it exits. Raises ProcessStartFailed."""
        kept = self._kept[managed.name] = _Kept(managed, self._home.log_of(managed.name), self._say, self._write, self._hurry)
        kept.begin()
        try:
            await asyncio.wait_for(asyncio.shield(kept.first_ready), self._start_timeout_s)
        except TimeoutError:
            raise ProcessStartFailed(
                f"{managed.name} was not ready after {self._start_timeout_s:.0f} s{kept.last_output()}"
            ) from None

    def hurry(self) -> None:
        """Cuts all grace periods short."""
        self._hurry.set()

    async def stop(self) -> None:
        """Stops the processes one by one in STOP_ORDER, then any that are left over."""
        for name in STOP_ORDER:
            if name in self._kept:
                await self._kept[name].stop()
        left = processes.marked(self._home.path)
        if left:
            self._say(f"ending leftover processes: {', '.join(f'{processes.name(pid)} (pid {pid})' for pid in sorted(left))}")
            await processes.end(left, grace_s=0 if self._hurry.is_set() else ORPHAN_GRACE_S)
        self._logs.cancel()
        self._home.processes_file.unlink(missing_ok=True)

    def _reap(self) -> None:
        """Reaps adopted children. asyncio reaps our own within moments, so any that remain after REAP_AFTER_S were adopted."""
        asyncio.get_running_loop().call_later(REAP_AFTER_S, processes.reap, processes.ended_children())

    async def _keep_logs_short(self) -> None:
        """Truncates long logs. This is safe because processes append to them; lines written during the copy are lost."""
        uncut: set[Path] = set()
        while True:
            for log in self._home.logs.glob("*.log"):
                try:
                    _keep_short(log)
                except OSError as error:
                    if log not in uncut:
                        self._say(f"cannot truncate {log}: {error.strerror}")
                    uncut.add(log)
            await asyncio.sleep(self._log_check_s)

    def _write(self) -> None:
        try:
            self._write_processes()
        except OSError as error:  # for example a full disk; the processes keep running
            self._say(f"cannot write {self._home.processes_file}: {error.strerror}")

    def _write_processes(self) -> None:
        running = {name: {"pid": kept.pid, "port": kept.managed.port} for name, kept in self._kept.items() if kept.pid}
        partial = self._home.processes_file.with_suffix(".new")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(running, file, indent=2)
        partial.rename(self._home.processes_file)


class _Kept:
    """One process and the task that keeps it running. `first_ready` resolves once: when the process is ready, or with
    ProcessStartFailed."""

    def __init__(self, managed: ManagedProcess, log: Path, say: Say, changed: Callable[[], None], hurry: asyncio.Event) -> None:
        self.managed = managed
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
        self._task = asyncio.create_task(self._run(), name=f"keep {self.managed.name}")

    async def stop(self) -> None:
        """Stops the process, and returns when it has ended."""
        self._stopping.set()
        if self._process and self._process.returncode is None:
            await self._end(self._process)
        if self._task:
            await self._task
        if self.first_ready.done() and not self.first_ready.cancelled():
            self.first_ready.exception()

    def last_output(self) -> str:
        """The last line of the log and its path, for an error message."""
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{': ' + last if last else ''} (log: {self._log})"

    async def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            started = time.monotonic()
            ended = await self._live()
            if self._stopping.is_set() or self._gave_up(ended):
                return
            delay_s = backoff.after(time.monotonic() - started)
            self._say(f"{self.managed.name} {ended}; restarting it in {delay_s:g} s (log: {self._log})")
            await _set_within(self._stopping, delay_s)

    async def _live(self) -> str:
        """Runs the process once. Returns how it ended."""
        try:
            self._process = process = await self._spawn()
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        self.pid = process.pid
        self._changed()
        ready = asyncio.create_task(self._watch(process.pid))
        try:
            return describe_exit(await process.wait())
        finally:
            ready.cancel()
            self.pid = None
            self._changed()

    async def _watch(self, pid: int) -> None:
        """Polls until the process is ready."""
        while not await self.managed.ready(pid):
            await asyncio.sleep(EXIT_POLL_INTERVAL_S)
        if not self.first_ready.done():
            self.first_ready.set_result(None)
        elif not self._stopping.is_set():
            self._say(f"{self.managed.name} is ready again")

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._starts += 1
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.managed.command,
                env=self.managed.environment,
                stdin=asyncio.subprocess.PIPE if self.managed.stdin else asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                user=self.managed.user,
                group=self.managed.user,
                extra_groups=[] if self.managed.user else None,
                # Ctrl-C in the terminal must only reach us, because we stop the processes one by one.
                start_new_session=True,
                preexec_fn=processes.die_with_parent(self.managed.stop_signal),
            )
        if process.stdin:
            process.stdin.write(self.managed.stdin)
            process.stdin.close()
        return process

    def _gave_up(self, ended: str) -> bool:
        if self.first_ready.done() or self._starts < FIRST_TRIES:
            return False
        self.first_ready.set_exception(ProcessStartFailed(f"{self.managed.name} {ended}{self.last_output()}"))
        return True

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if not self._hurry.is_set():
            process.send_signal(self.managed.stop_signal)
            await _first(process.wait(), self._hurry.wait(), timeout_s=self.managed.grace_s)
        if process.returncode is None:
            if not self._hurry.is_set():
                self._say(f"{self.managed.name} did not exit in time; killing it")
            process.send_signal(self.managed.hurry_signal)
            await _first(process.wait(), timeout_s=HURRY_GRACE_S)
        if process.returncode is None:
            process.kill()
            await process.wait()


def _keep_short(log: Path) -> None:
    if log.stat().st_size > LOG_LIMIT_BYTES:
        with suppress(OSError):  # on a full disk the old lines are lost
            shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


async def _first(*events: Coroutine[Any, Any, object], timeout_s: float) -> None:
    """Returns when the first of the coroutines has finished, or after `timeout_s`."""
    tasks = [asyncio.ensure_future(event) for event in events]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
