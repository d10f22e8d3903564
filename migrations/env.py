"""Runs the migrations: one deployer at a time, one transaction each, and never waiting long for a lock that serving needs."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

from services.registry.config import DatabaseSettings
from services.registry.models import Base

#: Any number that nothing else in the database locks.
MIGRATION_LOCK = 7_262_411_802

LOCK_TIMEOUT_MS = 4_000
STATEMENT_TIMEOUT_MS = 60_000


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    # The lock belongs to the session, so it spans the transactions of all migrations; closing the connection frees it.
    connection.execute(text("select pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
    connection.execute(text(f"set lock_timeout = {LOCK_TIMEOUT_MS}"))
    connection.execute(text(f"set statement_timeout = {STATEMENT_TIMEOUT_MS}"))
    connection.commit()
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    # pydantic fills the settings from the environment.
    url = context.config.attributes.get("url") or DatabaseSettings().database_url  # type: ignore[call-arg]
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        migrate(connection)


main()
