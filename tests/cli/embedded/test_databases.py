"""The real servers from the Python wheels, run as parts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, OutOfMemoryError

from services.cli.embedded import processes
from services.cli.embedded.home import Home
from services.cli.embedded.ports import free_ports
from services.cli.embedded.postgres import Postgres
from services.cli.embedded.supervisor import Supervisor
from services.cli.embedded.valkey import Valkey, default_memory_bytes
from services.cli.errors import CommandError

PASSWORD = "a-password-that-nobody-may-see"


@pytest_asyncio.fixture
async def supervisor(home: Home) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(home, print, start_timeout_s=30)
    yield supervisor
    await supervisor.stop()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
    assert processes.marked(home.path) == set()


def arguments(home: Home) -> str:
    return "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes.marked(home.path))


def logs(home: Home) -> str:
    return "".join(log.read_text() for log in home.logs.iterdir())


def ask(postgres: Postgres, statement: str) -> object:
    with psycopg.connect(postgres.url.replace("+psycopg", ""), connect_timeout=5) as connection:
        row = connection.execute(statement).fetchone()
        return row and row[0]


async def test_postgresql_keeps_its_data_and_its_password(home: Home, supervisor: Supervisor) -> None:
    postgres = Postgres(home.path, port=free_ports(1)[0], password=PASSWORD, say=print)
    await postgres.prepare(new_password=True)
    await supervisor.start(postgres.process)
    assert ask(postgres, "select current_database()") == "corral"
    assert ask(postgres, "select pg_encoding_to_char(encoding) from pg_database where datname = 'corral'") == "UTF8"
    wrong = Postgres(home.path, port=int(postgres.process.port or 0), password="wrong", say=print)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(wrong, "select 1")
    assert PASSWORD not in arguments(home) + logs(home)
    await supervisor.stop()
    assert not (home.path / "postgres" / "postmaster.pid").exists()


async def test_postgresql_gets_a_new_password_if_the_old_one_is_lost(home: Home, supervisor: Supervisor) -> None:
    await Postgres(home.path, port=1, password="lost", say=print).prepare(new_password=True)
    postgres = Postgres(home.path, port=free_ports(1)[0], password=PASSWORD, say=print)
    await postgres.prepare(new_password=True)
    await supervisor.start(postgres.process)
    assert ask(postgres, "select 1") == 1


@pytest.mark.parametrize("major", ["17", "19"])
async def test_data_of_another_major_version_is_refused(home: Home, major: str) -> None:
    data = home.path / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text(f"{major}\n")
    with pytest.raises(CommandError, match=rf"was created by PostgreSQL {major}, and 18 is installed; use the release"):
        await Postgres(home.path, port=1, password=PASSWORD, say=print).prepare(new_password=False)


async def test_an_interrupted_first_start_leaves_no_partial_data(home: Home) -> None:
    postgres = Postgres(home.path, port=1, password=PASSWORD, say=print)
    preparing = asyncio.create_task(postgres.prepare(new_password=True))
    while not (home.path / "postgres.new" / "PG_VERSION").exists():
        await asyncio.sleep(0)
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert not postgres.data.exists()
    assert processes.marked(home.path) == set()
    await postgres.prepare(new_password=True)
    assert postgres.data.exists()


async def test_valkey_refuses_writes_over_its_memory_and_evicts_nothing(home: Home, supervisor: Supervisor) -> None:
    valkey = Valkey(home.path, port=free_ports(1)[0], password=PASSWORD, memory_bytes=16 << 20)
    await supervisor.start(valkey.process)
    async with Redis.from_url(valkey.url) as redis:
        await redis.set("kept", "yes")
        with pytest.raises(OutOfMemoryError):
            await asyncio.gather(*(redis.set(f"more-{number}", b"x" * (1 << 20)) for number in range(20)))
        assert await redis.get("kept") == b"yes"


def test_valkeys_memory_depends_on_the_machines() -> None:
    assert default_memory_bytes(4 << 30) == 512 << 20
    assert default_memory_bytes(512 << 30) == 1 << 30


async def test_valkey_keeps_its_data_and_its_password(home: Home, supervisor: Supervisor) -> None:
    valkey = Valkey(home.path, port=free_ports(1)[0], password=PASSWORD)
    await supervisor.start(valkey.process)
    async with Redis.from_url(valkey.url) as redis:
        await redis.set("kept", "yes")
    async with Redis.from_url(f"redis://127.0.0.1:{valkey.process.port}") as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.get("kept")
    assert PASSWORD not in arguments(home) + logs(home)
    await supervisor.stop()
    await supervisor.start(valkey.process)
    async with Redis.from_url(valkey.url) as redis:
        assert await redis.get("kept") == b"yes"
