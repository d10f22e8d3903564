"""Servers as child processes that end with a block, and their costs: memory and processor time of the whole process tree."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from services.cli.embedded import processes

_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB", re.MULTILINE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def child(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
    grace_s: float = 10,
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the command in a new session, so that only we handle Ctrl-C. It gets the signal `stop` when this process dies.
    Whatever is left of its tree `grace_s` after `stop` is killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=processes.die_with_parent(stop),
        )
    try:
        yield process
    finally:
        _end(process, stop, grace_s)


def _end(process: subprocess.Popen[bytes], stop: signal.Signals, grace_s: float) -> None:
    members = tree(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(stop)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
    for member in members:
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()


def tree(pid: int) -> list[psutil.Process]:
    """The process and its descendants; empty if it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def peak_memory_bytes(pid: int) -> dict[str, int]:
    """By program, the sum of the peak resident memory of its processes."""
    peaks: Counter[str] = Counter()
    for process in tree(pid):
        with contextlib.suppress(OSError):
            if match := _PEAK.search(Path(f"/proc/{process.pid}/status").read_text()):
                peaks[processes.name(process.pid)] += int(match[1]) * 1024
    return dict(peaks)


def cpu_seconds(pid: int) -> dict[str, float]:
    """By program, the processor time of its processes so far, in seconds."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for process in tree(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds[processes.name(process.pid)] += times.user + times.system
    return dict(seconds)
