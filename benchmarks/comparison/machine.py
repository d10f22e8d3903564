"""The machine of a run, and the builds that were compared."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

import services

#: Each runs in a separate process: both packages contain a llama.cpp, and one process should not load two.
_SYSTEM_INFO = {
    "llama-cpp-python": "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())",
    "xllamacpp": "import xllamacpp; print(xllamacpp.get_system_info())",
}


@dataclass(frozen=True)
class Machine:
    """`builds` has the version and the instruction sets of each package that contains a llama.cpp; `load` is the average over
    the minute before the run."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    commit: str
    builds: dict[str, str]
    date: str
    load: float

    def __str__(self) -> str:
        builds = "; ".join(f"{package} {build}" for package, build in self.builds.items())
        return (
            f"{self.date}, Corral {self.commit}, on {self.cores} cores of {self.processor}, {self.memory_gib:.0f} GiB, "
            f"{self.system}, Python {self.python}. {builds}."
        )


def describe() -> Machine:
    return Machine(
        processor=_line("/proc/cpuinfo", r"model name\s*: (.+)") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=_line("/etc/os-release", r'PRETTY_NAME="(.+)"') or platform.system(),
        python=platform.python_version(),
        commit=_output("git", "describe", "--always", "--dirty") or "of no commit",
        builds={package: f"{version(package)} ({_features(script)})" for package, script in _SYSTEM_INFO.items()},
        date=datetime.now(UTC).date().isoformat(),
        load=os.getloadavg()[0],
    )


def _features(script: str) -> str:
    """The features in llama.cpp's line `CPU : SSE3 = 1 | AVX = 1 | ...` that matter: instruction sets, and whether OpenMP
    provides the threads."""
    names = re.findall(r"(\w+) = 1", _output(sys.executable, "-c", script))
    return ", ".join(name for name in names if name.startswith(("AVX", "NEON", "SVE", "OPENMP")))


def _line(file: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(file).read_text())
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _output(*command: str) -> str:
    done = subprocess.run(
        command,
        cwd=Path(services.__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.strip()
