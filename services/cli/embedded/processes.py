"""Finds and controls processes on Linux: which belong to a platform, which one listens on a port, and tying a child's life to
ours."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

#: Every process of the platform has this variable, set to the home folder, and passes it on to its children.
MARK = "CORRAL_PART_OF"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def die_with_parent(signal_number: int) -> Callable[[], None]:
    """Returns a preexec_fn that sends the child this signal when our process ends, even by SIGKILL."""
    parent = os.getpid()

    def tie() -> None:
        if _prctl:
            _prctl(_PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal_number)

    return tie


def adopt_orphans() -> None:
    """Makes orphans, such as a crashed agent's workers, our children instead of init's."""
    if _prctl:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def ended_children() -> set[int]:
    """Children that have exited and that nothing has waited for yet."""
    return {child.pid for child in psutil.Process().children() if _status(child) == psutil.STATUS_ZOMBIE}


def reap(pids: set[int]) -> None:
    """Waits for those of the exited children that nothing else has waited for."""
    for pid in pids & ended_children():
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def marked(home: Path) -> set[int]:
    """All processes of the platform in `home`, except ourselves."""
    return {process.pid for process in psutil.process_iter() if process.pid != os.getpid() and _is_marked(process, home)}


async def end(pids: set[int], *, grace_s: float) -> None:
    """Stops processes with SIGTERM, and with SIGKILL after `grace_s`. PostgreSQL gets SIGINT, since on SIGTERM it waits for its
    clients."""
    for pid in pids:
        _signal(pid, signal.SIGINT if name(pid) == "postgres" else signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(map(_alive, pids)):
        if time.monotonic() > deadline:
            for pid in pids:
                _signal(pid, signal.SIGKILL)
        reap(pids)
        await asyncio.sleep(0.05)


def name(pid: int) -> str:
    """The program's name; `python -m services.gateway` for a module. Empty if the process is gone."""
    try:
        process = psutil.Process(pid)
        arguments = process.cmdline()
        if "-m" in arguments[:-1]:
            return f"python -m {arguments[arguments.index('-m') + 1]}"
        return process.name()
    except psutil.Error:
        return ""


def listener(port: int) -> int | None:
    """The pid that listens on the TCP port; None if there is none, or if we aren't allowed to see it."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    found = (one.pid for one in connections if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port)
    return next((pid for pid in found if pid), None)


def _is_marked(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get(MARK) == str(home) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # gone, or not ours to read
        return False


def _alive(pid: int) -> bool:
    try:
        return _status(psutil.Process(pid)) not in ("", psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _status(process: psutil.Process) -> str:
    """Empty if the process is gone."""
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return ""


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
