"""Leader election among the registry's processes: the leader's PostgreSQL session holds an advisory lock.

The session is the lease. If the leader is silent for SILENCE_MS, because it stalled or its machine is gone, PostgreSQL ends the
session and another process can lead. The leader checks its session before each decision that it carries out
(`Leadership.require`), so a process that was stalled notices before it acts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.database.database import Database

#: The advisory lock's key: an arbitrary number that nothing else in the database uses.
LEADER_LOCK = 7_262_411_803

#: How long the leader's session may be idle. Longer than the longest step of a turn (a statement times out after 15 s).
SILENCE_MS = 20_000


class Leadership:
    def __init__(self, session: AsyncConnection) -> None:
        self._session = session

    async def require(self) -> None:
        """Raises if the session is gone, since another process may lead now."""
        await self._session.execute(text("select 1"))


@asynccontextmanager
async def leadership(database: Database, *, silence_ms: int = SILENCE_MS) -> AsyncIterator[Leadership | None]:
    """Tries to take the lock once, and holds it until the block ends. None if another process leads."""
    async with database.connection() as session:
        leads = await session.scalar(text("select pg_try_advisory_lock(:lock)"), {"lock": LEADER_LOCK})
        try:
            if leads:
                await session.execute(text(f"set idle_session_timeout = {silence_ms}"))
            yield Leadership(session) if leads else None
        finally:
            await session.invalidate()
