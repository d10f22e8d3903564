"""`corral up`: the whole platform on this machine, in the foreground.

The story: make sure that nothing is in the way, start the databases, then what needs them, all at the same time where that is
possible; print what to try; wait for Ctrl-C; stop everything in order.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from services.cli.address import parse_address
from services.cli.config import Settings, load_settings
from services.cli.console import out
from services.cli.embedded import processes
from services.cli.embedded.home import Home
from services.cli.embedded.management import Management
from services.cli.embedded.ports import free_ports, require_free
from services.cli.embedded.postgres import Postgres
from services.cli.embedded.secrets import load_secrets
from services.cli.embedded.services import Services, require_installed
from services.cli.embedded.supervisor import Supervisor
from services.cli.embedded.valkey import Valkey
from services.cli.embedded.welcome import welcome
from services.cli.errors import CommandError, PartFailed
from services.cli.pull import PullDisplay

DEMO_MODEL = "smollm2:135m"

#: For what a killed supervisor left: its parts are ending already, and workers may be in the middle of answers.
REMAINS_GRACE_S = 15.0
READY_POLL_S = 0.05


def up(
    home: Annotated[Path | None, typer.Option(help="Folder of the platform; CORRAL_HOME, or ~/.corral.")] = None,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help=f"Pull {DEMO_MODEL} where it is missing.")] = True,
) -> None:
    """Start the whole platform on this machine; Ctrl-C stops it."""
    settings = load_settings()
    folder = Home((home or settings.home).expanduser().absolute())
    require_installed()
    folder.prepare()
    with folder.locked():
        folder.require_space(settings.min_free_bytes)
        require_free(parse_address(settings.host))
        asyncio.run(_Platform.run(settings, folder, demo=demo))


class _Platform:
    """One run of `corral up`."""

    @classmethod
    async def run(cls, settings: Settings, home: Home, *, demo: bool) -> None:
        """From nothing to nothing. Raises CommandError."""
        async with httpx.AsyncClient(trust_env=False) as client:
            platform = cls(settings, home, client)
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, platform.on_signal, stop)
            try:
                await _unless(stop, platform.bring_up(demo=demo))
                await stop.wait()
            finally:
                await platform.shut_down()

    def __init__(self, settings: Settings, home: Home, client: httpx.AsyncClient) -> None:
        self._settings = settings
        self._home = home
        self._client = client
        self._started = time.monotonic()
        self._secrets_are_new = not (home.path / "secrets.json").exists()
        self._address = parse_address(settings.host)
        secrets = load_secrets(home.path / "secrets.json")
        postgres_port, valkey_port, registry_port = free_ports(3)
        self._postgres = Postgres(home.path, port=postgres_port, password=secrets.database_password, say=say)
        self._valkey = Valkey(home.path, port=valkey_port, password=secrets.valkey_password)
        self._services = Services(
            home=home.path,
            host=settings.host,
            address=self._address,
            registry_port=registry_port,
            database_url=self._postgres.url,
            redis_url=self._valkey.url,
            metrics_port="0" if settings.metrics_port == "0" else "auto",
            secrets=secrets,
            client=client,
        )
        self._management = Management(client, self._services.registry_url, secrets.registry_token)
        self._supervisor = Supervisor(home, say, start_timeout_s=settings.up_timeout_s)

    def on_signal(self, stop: asyncio.Event) -> None:
        """The first asks for an end in order, the next ones for an end."""
        if stop.is_set():
            self._supervisor.hurry()
        stop.set()

    async def bring_up(self, *, demo: bool) -> None:
        """Raises CommandError. Returns when everything is ready and said."""
        say(f"Starting Corral in {self._home.display}")
        await self._end_remains()
        try:
            async with asyncio.TaskGroup() as group:
                valkey = group.create_task(self._start_valkey())
                schema = group.create_task(self._start_database())
                group.create_task(self._start_registry(valkey, schema))
                group.create_task(self._start_data_plane(valkey))
        except* CommandError as failures:
            first = failures.exceptions[0]
            raise first from None
        await self._until_ready()
        self._say_step(f"ready at {self._address.url}")
        if demo:
            await self._pull_demo()
        await self._print_welcome()

    async def shut_down(self) -> None:
        say("\nStopping; Ctrl-C again hurries")
        await self._supervisor.stop()
        say("Corral has stopped")

    async def _end_remains(self) -> None:
        remains = processes.marked(self._home.path)
        if remains:
            names = ", ".join(sorted(f"{processes.name(pid)} (pid {pid})" for pid in remains))
            say(f"Ending what an earlier run left behind: {names}")
            await processes.end(remains, grace_s=REMAINS_GRACE_S)

    async def _start_valkey(self) -> None:
        await self._supervisor.start(self._valkey.part)
        self._say_step("Valkey")

    async def _start_database(self) -> None:
        await self._postgres.prepare(new_password=self._secrets_are_new)
        await self._supervisor.start(self._postgres.part)
        self._say_step("PostgreSQL")
        await self._services.migrate(self._postgres.data / "corral-schema")
        self._say_step("database schema")

    async def _start_registry(self, *needed: asyncio.Task[None]) -> None:
        await asyncio.gather(*needed)
        await self._supervisor.start(self._services.registry)
        self._say_step("registry")

    async def _start_data_plane(self, valkey: asyncio.Task[None]) -> None:
        await valkey
        await asyncio.gather(self._supervisor.start(self._services.node), self._supervisor.start(self._services.gateway))
        self._say_step("gateway and node agent")

    async def _until_ready(self) -> None:
        """Raises PartFailed that says what is missing."""
        url = f"{self._address.url}/readyz"
        deadline = time.monotonic() + self._settings.up_timeout_s
        answer = "no answer"
        while time.monotonic() < deadline:
            try:
                response = await self._client.get(url)
                if response.is_success and await self._management.has_node():
                    return
                answer = "no node has reported yet" if response.is_success else response.text.strip()[:300]
            except httpx.HTTPError as error:
                answer = type(error).__name__
            await asyncio.sleep(READY_POLL_S)
        raise PartFailed(
            f"the platform is not ready after {self._settings.up_timeout_s:.0f} s: {answer} (logs: {self._home.logs})"
        )

    async def _pull_demo(self) -> None:
        """A platform without the demonstration model is still a platform."""
        try:
            if not await self._management.has_model(DEMO_MODEL):
                say(f"Fetching the demonstration model {DEMO_MODEL}")
                with PullDisplay(out) as display:
                    await self._management.pull(DEMO_MODEL, display)
        except CommandError as error:
            say(f'Warning: {DEMO_MODEL} could not be fetched: {error}; try again with "corral pull {DEMO_MODEL}"')

    async def _print_welcome(self) -> None:
        key_required = self._settings.auth == "required" or (self._settings.auth is None and not self._address.loopback)
        key = None
        if key_required:
            key = await self._management.make_first_key()
            if key:
                say(f"This address asks for keys. The first one, for an administrator, is shown only now:\n\n{key}")
        say(welcome(self._address, model=DEMO_MODEL, key=key or ("YOUR_KEY" if key_required else None)))
        say(f"Logs are in {self._home.display}/logs. Ctrl-C stops Corral.")

    def _say_step(self, what: str) -> None:
        say(f"  {time.monotonic() - self._started:5.1f} s  {what}")


def say(line: str) -> None:
    """Whoever read our output may be gone, a closed terminal for one. The platform is stopped in order all the same."""
    with suppress(OSError, SystemExit):  # Rich makes an exit of a broken pipe
        out.print(line)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, and leaves it where it is once `stop` is set."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.result()
