"""`corral up`: runs the whole platform on this machine, in the foreground.

It checks that the address and the folder are free, starts the databases and then the services that need them, in parallel if
possible, prints commands to try, waits for Ctrl-C, and stops the processes one by one.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from services.cli.address import parse_address
from services.cli.config import Settings, load_settings
from services.cli.console import out
from services.cli.embedded import processes, request_lines
from services.cli.embedded.home import Home
from services.cli.embedded.management import Management
from services.cli.embedded.ports import free_ports, require_free
from services.cli.embedded.postgres import Postgres
from services.cli.embedded.secrets import load_secrets
from services.cli.embedded.services import Services, require_installed
from services.cli.embedded.supervisor import Supervisor
from services.cli.embedded.valkey import Valkey
from services.cli.embedded.welcome import welcome
from services.cli.errors import OUTAGES, CommandError, ProcessStartFailed
from services.cli.pull import PullDisplay

DEMO_MODEL = "smollm2:135m"

#: Grace period for processes that a killed supervisor left behind. They are already stopping, and workers may be finishing
#: answers.
REMAINS_GRACE_S = 15.0
READY_POLL_INTERVAL_S = 0.05


def up(
    home: Annotated[
        Path | None, typer.Option(help="Folder for databases, models, secrets and logs; default: CORRAL_HOME, or ~/.corral.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help=f"Pull {DEMO_MODEL} if it is missing.")] = True,
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
        """Starts the platform, runs it until a signal, and stops it. Raises CommandError."""
        async with httpx.AsyncClient(trust_env=False) as client:
            platform = cls(settings, home, client)
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, platform.on_signal, stop)
            try:
                await _unless(stop, platform.bring_up(demo=demo))
                await _unless(stop, request_lines.follow(home.log_of("gateway"), say))
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
        self._valkey = Valkey(
            home.path, port=valkey_port, password=secrets.valkey_password, memory_bytes=settings.queue_memory_bytes
        )
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
        """The first signal shuts the platform down gracefully; further signals cut the grace periods short."""
        if stop.is_set():
            self._supervisor.hurry()
        stop.set()

    async def bring_up(self, *, demo: bool) -> None:
        """Starts everything, and returns once it is ready and the welcome is printed. Raises CommandError."""
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
        say("\nStopping; press Ctrl-C again to stop at once")
        await self._supervisor.stop()
        say("Corral has stopped")

    async def _end_remains(self) -> None:
        remains = processes.marked(self._home.path)
        if remains:
            names = ", ".join(sorted(f"{processes.name(pid)} (pid {pid})" for pid in remains))
            say(f"Ending processes of an earlier run: {names}")
            await processes.end(remains, grace_s=REMAINS_GRACE_S)

    async def _start_valkey(self) -> None:
        await self._supervisor.start(self._valkey.process)
        self._say_step("Valkey")

    async def _start_database(self) -> None:
        await self._postgres.prepare(new_password=self._secrets_are_new)
        await self._supervisor.start(self._postgres.process)
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
        """Waits until the platform is ready. Raises ProcessStartFailed with the reason if it isn't in time."""
        url = f"{self._address.url}/readyz"
        deadline = time.monotonic() + self._settings.up_timeout_s
        answer = "no answer"
        while time.monotonic() < deadline:
            try:
                response = await self._client.get(url)
                if response.is_success and await self._management.has_node():
                    return
                answer = "no node has reported yet" if response.is_success else response.text.strip()[:300]
            except OUTAGES as error:
                answer = type(error).__name__
            await asyncio.sleep(READY_POLL_INTERVAL_S)
        raise ProcessStartFailed(
            f"the platform is not ready after {self._settings.up_timeout_s:.0f} s: {answer} (logs: {self._home.logs})"
        )

    async def _pull_demo(self) -> None:
        """Pulls the demo model. A failure is only a warning, since the platform works without it."""
        try:
            if DEMO_MODEL not in await self._management.models():
                say(f"Pulling the demo model {DEMO_MODEL}")
                with PullDisplay(out) as display:
                    await self._management.pull(DEMO_MODEL, display)
        except CommandError as error:
            say(f'Warning: {DEMO_MODEL} could not be pulled: {error}; try again with "corral pull {DEMO_MODEL}"')

    async def _print_welcome(self) -> None:
        key_required = self._settings.auth == "required" or (self._settings.auth is None and not self._address.loopback)
        key = None
        if key_required:
            key = await self._management.make_first_key()
            if key:
                say(f"Requests to this address need an API key. This is the first admin key; it is shown only now:\n\n{key}")
        models = await self._management.models()
        say(welcome(self._address, model=recommended(models), key=key or ("YOUR_KEY" if key_required else None)))
        say(f"Logs are in {self._home.display}/logs. Ctrl-C stops Corral. Finished requests:\n")

    def _say_step(self, what: str) -> None:
        say(f"  {time.monotonic() - self._started:5.1f} s  {what}")


def recommended(models: Sequence[str]) -> str | None:
    """The model to try first: the demo model if there is one, else the newest. None without models."""
    return DEMO_MODEL if DEMO_MODEL in models else next(iter(models), None)


def say(line: str) -> None:
    """Prints a line. Does nothing if the terminal was closed: a lost terminal must not interrupt the shutdown."""
    with suppress(OSError, SystemExit):  # Rich turns a broken pipe into SystemExit
        out.print(line)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` until it is done or `stop` is set, which cancels it."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.result()
