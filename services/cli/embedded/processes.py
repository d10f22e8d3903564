"""What Linux knows of processes: who belongs to a platform, who listens on a port, and how to tie a child's life to ours."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

#: Every part is started with this variable, its value the home folder, and passes it on to what it starts itself.
MARK = "CORRAL_PART_OF"

_PROC = Path("/proc")
_LISTEN = "0A"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def tether(signal_number: int) -> Callable[[], None]:
    """For the child's side of a fork: it gets the signal when our process ends, even by SIGKILL."""
    parent = os.getpid()

    def tie() -> None:
        if _prctl:
            _prctl(_PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal_number)

    return tie


def adopt_orphans() -> None:
    """Processes whose parent dies, such as a crashed agent's workers, become our children instead of init's."""
    if _prctl:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def ended_children() -> set[int]:
    """Children that have ended and that nobody has waited for yet."""
    ours = str(os.getpid())
    return {pid for pid in _pids() if _stat(pid)[:2] == ["Z", ours]}


def reap(pids: set[int]) -> None:
    """Buries those of them that are still not waited for."""
    for pid in pids & ended_children():
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def marked(home: Path) -> set[int]:
    """Processes of the platform in `home`, whoever started them; not ourselves."""
    mark = f"{MARK}={home}".encode()
    return {pid for pid in _pids() if pid != os.getpid() and mark in _read(pid, "environ").split(b"\0") and _alive(pid)}


async def end(pids: set[int], *, grace_s: float) -> None:
    """Asks with SIGTERM (PostgreSQL with SIGINT: it would wait for its clients), and after `grace_s` no longer asks."""
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
    """`python -m services.gateway` for a module, otherwise the program."""
    arguments = _read(pid, "cmdline").decode(errors="replace").split("\0")
    if "-m" in arguments[:-1]:
        return f"python -m {arguments[arguments.index('-m') + 1]}"
    return _read(pid, "comm").decode(errors="replace").strip()


def listener(port: int) -> int | None:
    """The pid that listens on the TCP port; None where there is none, or it is not for us to see."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for pid in _pids():
        try:
            if any(os.readlink(entry) in sockets for entry in (_PROC / str(pid) / "fd").iterdir()):
                return pid
        except OSError:
            continue
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *rest = line.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                yield rest[5]


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()) if _PROC.is_dir() else iter(())


def _alive(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"])


def _stat(pid: int) -> list[str]:
    """State, parent and what follows; empty where the process is gone. The name before them may hold anything."""
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _read(pid: int, file: str) -> bytes:
    try:
        return (_PROC / str(pid) / file).read_bytes()
    except OSError:
        return b""


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
