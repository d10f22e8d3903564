"""Prepares a Docker engine and base images for the tests in this folder, and restores the machine afterwards.

If this machine cannot have an engine or images, the tests are skipped; that is decided within a minute. Preparation has no time
limit: if it is slow it continues, and if it fails the run has failed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.compose.host import Host

#: Programs, images and build caches, kept for the next run. Nothing else is kept.
CACHE = Path.home() / ".cache" / "corral-tests" / "engine"
HERE = Path(__file__).parent
NO_ENGINE = 3
PREFIX = "corral-compose-"
#: Held while a run uses the machine's engine, because cluster names are fixed. The kernel removes it with the process.
LOCK = "\0corral-tests-compose"
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
#: The time that an engine gets to stop its containers and itself.
END_S = 180.0


class Unavailable(Exception):
    """This machine cannot have an engine or base images; the text is the reason."""


class PreparationFailed(Exception):
    """The engine could not be prepared although this machine can have one, or the machine was not restored."""


@contextlib.contextmanager
def prepared() -> Iterator[Path]:
    """A folder for the run, with an engine and the base images. Raises Unavailable and PreparationFailed."""
    for number in SIGNALS:
        signal.signal(number, _end)
    with alone(), _temporary_folder() as folder, _engine(folder):
        print(script(HERE / "standins.sh") or "the base images are there", flush=True)
        yield folder


def _end(*_: object) -> None:
    """Handles only the first signal: `make` and `timeout` both forward signals, and cleaning up must not be interrupted."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    sys.exit("FAILED: ended by a signal, as when the time is over")


@contextlib.contextmanager
def alone(name: str = LOCK) -> Iterator[None]:
    """Waits until no other run uses this machine's engine."""
    with socket.socket(socket.AF_UNIX) as lock:
        waits = False
        while True:
            try:
                lock.bind(name)
            except OSError:
                if not waits:
                    print("another run uses this machine's Docker Engine; this one waits for its end", flush=True)
                waits = True
                time.sleep(0.5)
            else:
                break
        yield


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """All temporary files of the run and of the programs it starts go into this folder."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        os.environ["TMPDIR"] = tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            del os.environ["TMPDIR"]
            tempfile.tempdir = None


@contextlib.contextmanager
def _engine(folder: Path) -> Iterator[None]:
    """Uses a running engine, unless an earlier run started it and was killed before it could stop it."""
    os.environ["CORRAL_TEST_ENGINE"] = str(CACHE)
    if _answers() and not _left_behind():
        yield
        return
    if os.getuid():
        raise Unavailable("no Docker Engine answers this user, and only root can start one")
    before = _remember(folder)
    try:
        _start(folder)
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        _put_back(before, folder)


def _answers() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "version"], capture_output=True, check=False).returncode == 0


def _record() -> Path:
    """The recorded state of the machine before the run; valid for this boot, because a reboot removes the changes."""
    return CACHE / f"before-{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}.json"


def _left_behind() -> bool:
    return os.access(_record(), os.R_OK)


def _remember(folder: Path) -> Host:
    for variable, value in (("PATH", f"{CACHE / 'bin'}:{os.environ['PATH']}"), ("DOCKER_CONFIG", str(CACHE / "config"))):
        os.environ[variable] = value
    _end_engines()  # the engine of a killed run
    for stale in set(folder.parent.glob(f"{PREFIX}*")) - {folder}:
        _unmount(stale)
        shutil.rmtree(stale, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    script(HERE / "engine.sh", "fetch")
    if not _left_behind():
        Host.look().save(_record())
    return Host.load(_record())


def _start(folder: Path) -> None:
    script(HERE / "engine.sh", "start", str(folder))
    versions = [
        _output("docker", "version", "--format", "{{.Server.Version}}"),
        _output("docker", "compose", "version", "--short"),
    ]
    print("Docker Engine {}, Compose {}".format(*versions), flush=True)


def _put_back(before: Host, folder: Path) -> None:
    _end_engines()
    for place in (folder, CACHE):
        _unmount(place)
    before.restore()
    if differences := before.differences(Host.look()):
        raise PreparationFailed("the machine is not as it was before:\n" + "\n".join(differences))
    _record().unlink()


def _end_engines() -> None:
    """Stops the engines of CACHE; nothing else uses their data."""
    deadline = time.monotonic() + END_S
    asked: set[int] = set()
    while engines := set(_processes()):
        for engine in engines - asked if time.monotonic() < deadline else engines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        asked |= engines
        time.sleep(0.2)


def _processes() -> Iterator[int]:
    """The processes of our engines: dockerd, which stops its containerd and containers, and any that are left."""
    programs = {str(CACHE / "root" / part / name) for part in ("usr/bin", "usr/sbin") for name in ("dockerd", "containerd")}
    for path in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            if os.readlink(path) in programs:
                yield int(path.parent.name)


def _unmount(folder: Path) -> None:
    """Unmounts what a killed engine left mounted, innermost first."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mount], check=False)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def script(path: Path, *arguments: str) -> str:
    """The output of the script. Raises Unavailable and PreparationFailed. The script is killed if this process is ended
    meanwhile."""
    with subprocess.Popen(
        [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output = process.communicate()[0].strip()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    reason = output.splitlines()[-1] if output else f"{path.name} ended with {process.returncode}"
    if process.returncode == NO_ENGINE:
        raise Unavailable(reason)
    if process.returncode:
        raise PreparationFailed(f"{path.name} ended with {process.returncode}: {reason}")
    return output
