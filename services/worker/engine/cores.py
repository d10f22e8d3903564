"""The CPU cores that this process may use, and how much of them other processes leave free."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from services.process.cpus import affinity, num_cpus


def num_threads(setting: int) -> int:
    """The number of threads for the `threads` setting: never more than the cores that this process may use. 0: all of them."""
    cores = num_cpus()
    return min(setting or cores, cores)


@dataclass(frozen=True)
class CoreTimes:
    """Counters in seconds: wall clock, CPU time of this process, idle time summed over its cores. Only differences matter."""

    clock_s: float
    own_s: float
    idle_s: float

    def since(self, earlier: CoreTimes) -> float:
        """Average number of cores available between the two readings: those this process used plus those that were idle."""
        return (self.own_s - earlier.own_s + self.idle_s - earlier.idle_s) / (self.clock_s - earlier.clock_s)


def core_times() -> CoreTimes:
    cores = affinity()
    times = [of_core for core, of_core in enumerate(psutil.cpu_times(percpu=True)) if core in cores]
    return CoreTimes(
        clock_s=time.monotonic(),
        own_s=time.process_time(),
        idle_s=sum(of_core.idle + getattr(of_core, "iowait", 0.0) for of_core in times),
    )
