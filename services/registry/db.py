"""How the registry reaches PostgreSQL, and where the driver's errors become ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, MetaData, Text, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from services.protocol.errors import Unavailable

#: The revision of migrations/ that this release works with; a test holds it against the newest one.
SCHEMA_REVISION = "2026_11_23_key_terms"

#: Statements are small; one that takes this long waits for a lock that will not come.
STATEMENT_TIMEOUT_MS = 15_000


class Base(DeclarativeBase):
    """Integers are 64 bits wide (most count bytes), texts unbounded, times carry their zone."""

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
    """The engine and its sessions. Raises Unavailable when PostgreSQL does not answer."""

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(
            url,
            pool_pre_ping=True,
            pool_timeout=5,
            connect_args={"connect_timeout": 5, "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"},
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """One session, one transaction: committed at the end of the block, rolled back where it raises."""
        async with _database_errors(), AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncSession]:
        """A transaction whose reads all see the same moment."""
        async with self.transaction() as session:
            await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside any transaction, for what lives as long as a session: advisory locks."""
        async with _database_errors(), self._engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    async def schema_revision(self) -> str | None:
        """What `alembic upgrade` left behind; None for an empty database."""
        async with self.transaction() as session:
            if await session.scalar(text("select to_regclass('alembic_version')")) is None:
                return None
            revision: str | None = await session.scalar(text("select version_num from alembic_version"))
            return revision

    async def close(self) -> None:
        await self._engine.dispose()


async def transaction_time(session: AsyncSession) -> datetime:
    """PostgreSQL's clock at the transaction's begin: what its `now()` writes into rows."""
    return (await session.execute(select(func.now()))).scalar_one()


@asynccontextmanager
async def _database_errors() -> AsyncIterator[None]:
    """The driver's text stays out: it may hold the URL. Errors of our own SQL pass as they are."""
    try:
        yield
    except ProgrammingError:
        raise
    except (OperationalError, InterfaceError, PoolTimeoutError, OSError) as error:
        raise Unavailable(f"PostgreSQL does not answer ({type(error).__name__})") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise Unavailable("PostgreSQL does not answer (connection lost)") from error
