"""The cost of a step: processor time of the measured server and of everything else, and the server's memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from comparison.processes import cpu_seconds, peak_memory_bytes
from comparison.servers import Server

_WORKER = "python -m services.worker"

#: If other programs use more than this share, a server's threads wait for each other. Measured: a third to half of the speed is
#: left at 0.3, a fifth to an eighth at 0.6.
QUIET_SHARE = 0.10


@dataclass(frozen=True)
class Cost:
    """`cpu_s` of the measured server, by program. `idle_cpu_s` is the time of the servers that had no requests,
    `generator_cpu_s` that of the load generator; `others_share` is the share of all cores that other programs used. Memory
    is the peak resident memory since the server's start, summed over its processes; `worker_memory_bytes` is that of
    Corral's worker."""

    cpu_s: dict[str, float]
    idle_cpu_s: float
    generator_cpu_s: float
    others_share: float
    memory_bytes: int
    worker_memory_bytes: int

    @property
    def was_quiet(self) -> bool:
        return self.others_share <= QUIET_SHARE


class Meter:
    """Measures from its creation."""

    def __init__(self, server: Server, others: Sequence[Server]) -> None:
        self._server = server
        self._others = others
        self._start_s = time.perf_counter()
        self._before = self._read()

    def cost(self) -> Cost:
        wall_s = time.perf_counter() - self._start_s
        own, idle, generator_s, busy_s = self._read()
        own_before, idle_before, generator_before_s, busy_before_s = self._before
        cpu_s = {name: seconds - own_before.get(name, 0.0) for name, seconds in own.items()}
        ours_s = sum(cpu_s.values()) + idle - idle_before + generator_s - generator_before_s
        memory = peak_memory_bytes(self._server.pid)
        return Cost(
            cpu_s={name: round(seconds, 3) for name, seconds in cpu_s.items() if seconds > 0},
            idle_cpu_s=idle - idle_before,
            generator_cpu_s=generator_s - generator_before_s,
            others_share=max(0.0, (busy_s - busy_before_s - ours_s) / (wall_s * (os.cpu_count() or 1))),
            memory_bytes=sum(memory.values()),
            worker_memory_bytes=memory.get(_WORKER, 0),
        )

    def _read(self) -> tuple[Mapping[str, float], float, float, float]:
        idle = sum(sum(cpu_seconds(server.pid).values()) for server in self._others)
        return cpu_seconds(self._server.pid), idle, time.process_time(), busy_seconds()


def busy_seconds() -> float:
    """Over all cores; time that the hypervisor gave to others counts as busy."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
