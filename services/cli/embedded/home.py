"""The home folder of one running platform, `~/.corral` by default.

lock            locked, with the pid in it, while a platform runs
secrets.json    passwords shared by the platform's processes, made once
postgres/       PostgreSQL's data          valkey/   Valkey's append-only file
models/         blobs and manifests        node/     the node agent's state
logs/           one file per process       run/      processes.json: pid and port of each running process
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.cli.errors import CommandError
from services.cli.quantities import binary_size_text


@dataclass(frozen=True)
class Home:
    """`path` is absolute."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log_of(self, process: str) -> Path:
        return self.logs / f"{process.lower().replace(' ', '-')}.log"

    @property
    def processes_file(self) -> Path:
        return self.path / "run" / "processes.json"

    @property
    def display(self) -> str:
        """The path, with `~` if it is inside the user's home directory."""
        try:
            return f"~/{self.path.relative_to(Path.home())}"
        except ValueError:
            return str(self.path)

    def prepare(self) -> None:
        """Creates the folders. Raises CommandError if that fails."""
        try:
            # PostgreSQL refuses to run as root. Under root, its system user must be able to reach its own folder through this
            # one.
            self.path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
            for name in ("valkey", "models", "node", "logs", "run"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CommandError(
                f"cannot create {error.filename} ({error.strerror}); choose a folder that you may write to with --home or CORRAL_HOME"
            ) from None

    def require_space(self, needed_bytes: int) -> None:
        free = shutil.disk_usage(self.path).free
        if free < needed_bytes:
            raise CommandError(
                f"{self.path} has {binary_size_text(free)} of free disk and Corral needs {binary_size_text(needed_bytes)}; "
                "free some, or choose another disk with --home"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder's lock. Raises CommandError if another platform holds it."""
        descriptor = self._lock()
        try:
            yield
        finally:
            (self.path / "lock").unlink()
            os.close(descriptor)

    def holder(self) -> int | None:
        """The pid of the platform that holds the lock; None if none does."""
        try:
            with (self.path / "lock").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0)
        except FileNotFoundError:
            pass
        return None

    def _lock(self) -> int:
        path = self.path / "lock"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(descriptor, 20).decode()
                os.close(descriptor)
                raise CommandError(
                    f"{self.path} is in use by another Corral (pid {pid}); stop it, or choose another folder with --home"
                ) from None
            if _is_still(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """False if the previous holder removed the file after we opened it and before we locked it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
