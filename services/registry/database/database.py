"""The registry's connection to PostgreSQL; turns the driver's errors into ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, MetaData, Text, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from services.protocol.errors import Unavailable

#: The revision of migrations/ that this release works with. A test compares it with the newest one.
SCHEMA_REVISION = "2026_11_27_rollouts"

#: Statements are small; one that takes this long is waiting for a lock.
STATEMENT_TIMEOUT_MS = 15_000


#: SQLSTATE classes of temporary errors: connection, rollback, resources, object state (locks), operator intervention, system.
_PASSING = ("08", "40", "53", "55", "57", "58")

_SENTENCES = {
    "53100": "PostgreSQL's disk is full",
    "53200": "PostgreSQL is out of memory",
    "53300": "PostgreSQL has no connection left",
}


class Base(DeclarativeBase):
    """Integers are 64 bits wide (most are byte counts), text is unbounded, times have a time zone."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        int: BigInteger,
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
    }


class Database:
    """A pool of connections to PostgreSQL. Raises Unavailable if PostgreSQL does not answer."""

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(
            url,
            pool_pre_ping=True,
            pool_timeout=5,
            connect_args={"connect_timeout": 5, "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"},
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session with one transaction: committed at the end of the block, rolled back if the block raises."""
        async with _database_errors(), AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncSession]:
        """A transaction whose reads all see the same snapshot (REPEATABLE READ)."""
        async with self.transaction() as session:
            await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection in autocommit mode, for advisory locks, which last as long as the session."""
        async with _database_errors(), self._engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    async def schema_revision(self) -> str | None:
        """The revision that `alembic upgrade` recorded; None for an empty database."""
        async with self.transaction() as session:
            if await session.scalar(text("select to_regclass('alembic_version')")) is None:
                return None
            revision: str | None = await session.scalar(text("select version_num from alembic_version"))
            return revision

    async def close(self) -> None:
        await self._engine.dispose()


async def transaction_time(session: AsyncSession) -> datetime:
    """The transaction's start time by PostgreSQL's clock: the value of `now()`."""
    return (await session.execute(select(func.now()))).scalar_one()


@asynccontextmanager
async def _database_errors() -> AsyncIterator[None]:
    """Raises Unavailable for temporary errors, without the driver's text, which may contain the URL. Other errors (a value that
    a column cannot hold, bad SQL) are raised unchanged."""
    try:
        yield
    except (PoolTimeoutError, OSError) as error:
        raise Unavailable(f"PostgreSQL does not answer ({type(error).__name__})") from error
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if error.connection_invalidated or (isinstance(error, OperationalError) and state is None):
            raise Unavailable(f"PostgreSQL does not answer ({type(error).__name__})") from error
        if state is None or state[:2] not in _PASSING:
            raise
        raise Unavailable(_SENTENCES.get(state, f"PostgreSQL cannot do this now ({type(error.orig).__name__})")) from error
