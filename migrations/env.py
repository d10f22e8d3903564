"""Runs the migrations: one deployer at a time, one transaction each, and never waiting long for a lock that serving needs."""

from __future__ import annotations

import sys

from alembic import context
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy import Connection, create_engine, pool, text
from sqlalchemy.exc import OperationalError

from services.registry.config import DatabaseSettings
from services.registry.database.tables import Base

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


def database_url() -> str:
    """Exits with one sentence where the settings do not say it."""
    try:
        # pydantic fills the settings from the environment.
        return DatabaseSettings().database_url  # type: ignore[call-arg]
    except ValidationError as error:
        sys.exit(f"migrations: CORRAL_DATABASE_URL: {error.errors()[0]['msg']}")
    except SettingsError as error:
        sys.exit(f"migrations: {error.__cause__ or error}")


def main() -> None:
    engine = create_engine(context.config.attributes.get("url") or database_url(), poolclass=pool.NullPool)
    try:
        connection = engine.connect()
    except OperationalError as error:
        sys.exit(f"migrations: PostgreSQL does not answer ({type(error.orig).__name__}); is CORRAL_DATABASE_URL right?")
    with connection:
        migrate(connection)


main()
