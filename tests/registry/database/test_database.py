"""Which PostgreSQL errors count as outages."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.protocol.errors import Unavailable
from services.registry.database.database import Database


@pytest_asyncio.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    database = Database(migrated_url)
    yield database
    await database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "select 9223372036854775807::bigint + 1",
        "select 1 / 0",
        "select nothing from nowhere",
        "select repeat('(', 100000)::json",
        "select 'x'::int",
    ],
)
async def test_an_error_in_a_statement_is_not_an_outage(database: Database, statement: str) -> None:
    with pytest.raises(DBAPIError):
        async with database.transaction() as session:
            await session.execute(text(statement))


async def test_exceeding_a_program_limit_is_not_an_outage(database: Database) -> None:
    """The driver raises OperationalError, as for a lost connection."""
    with pytest.raises(DBAPIError):
        async with database.transaction() as session:
            await session.execute(text(f"select {'+'.join(['1'] * 2)}, row({', '.join(['1'] * 1700)})"))


async def test_a_statement_timeout_is_an_outage(database: Database) -> None:
    with pytest.raises(Unavailable, match=r"PostgreSQL cannot do this now \(QueryCanceled\)"):
        async with database.transaction() as session:
            await session.execute(text("select set_config('statement_timeout', '10', true); select pg_sleep(5)"))


async def test_a_terminated_session_is_an_outage(database: Database) -> None:
    with pytest.raises(Unavailable):
        async with database.transaction() as session:
            await session.execute(text("select pg_terminate_backend(pg_backend_pid())"))


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("53100", "PostgreSQL's disk is full"),
        ("53200", "PostgreSQL is out of memory"),
        ("53300", "PostgreSQL has no connection left"),
    ],
)
async def test_a_shortage_is_named_in_the_error(database: Database, state: str, sentence: str) -> None:
    with pytest.raises(Unavailable, match=f"^{sentence}$"):
        async with database.transaction() as session:
            await session.execute(text(f"do $$ begin raise 'short' using errcode = '{state}'; end $$"))
