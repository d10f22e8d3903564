from __future__ import annotations

import os
import subprocess
import sys

from alembic import command
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Connection, create_engine, inspect

from services.registry.database.database import SCHEMA_REVISION, Base, Database
from tests.registry.conftest import ROOT, alembic_config, create_database


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def constraints(connection: Connection) -> set[tuple[str, str]]:
    """CHECK constraints, which Alembic does not compare."""
    inspector = inspect(connection)
    return {(table, str(check["name"])) for table in tables(connection) for check in inspector.get_check_constraints(table)}


def test_upgrade_downgrade_and_upgrade_again(postgres_url: str) -> None:
    url = create_database(postgres_url, "migration_tests")
    config = alembic_config(url)
    engine = create_engine(url)
    everything = {table.name for table in Base.metadata.sorted_tables}

    command.upgrade(config, "head")
    with engine.connect() as connection:
        assert tables(connection) == everything

    command.downgrade(config, "-1")
    command.upgrade(config, "head")
    command.check(config)
    command.downgrade(config, "2026_11_22_catalog")
    with engine.connect() as connection:
        assert tables(connection) == everything - {"deployments", "replicas", "jobs", "tag_versions"}

    command.upgrade(config, "head")
    command.check(config)
    command.downgrade(config, "base")
    with engine.connect() as connection:
        assert tables(connection) == set()
    engine.dispose()


def test_the_tables_match_the_migrated_schema(migrated_url: str) -> None:
    command.check(alembic_config(migrated_url))
    engine = create_engine(migrated_url)
    with engine.connect() as connection:
        declared = {
            (table.name, str(constraint.name))
            for table in Base.metadata.sorted_tables
            for constraint in table.constraints
            if isinstance(constraint, CheckConstraint)
        }
        assert constraints(connection) == declared
        assert MigrationContext.configure(connection).get_current_revision() == SCHEMA_REVISION
    engine.dispose()


def test_this_release_expects_the_latest_revision() -> None:
    assert ScriptDirectory.from_config(alembic_config("")).get_current_head() == SCHEMA_REVISION


async def test_an_empty_database_has_no_revision(postgres_url: str, migrated_url: str) -> None:
    empty, migrated = Database(postgres_url), Database(migrated_url)
    assert await empty.schema_revision() is None
    assert await migrated.schema_revision() == SCHEMA_REVISION
    await empty.close()
    await migrated.close()


def test_two_concurrent_upgrades_both_succeed(postgres_url: str) -> None:
    url = create_database(postgres_url, "two_deployers")
    environment = {**os.environ, "CORRAL_DATABASE_URL": url}
    upgrade = [sys.executable, "-m", "alembic", "upgrade", "head"]
    deployers = [subprocess.Popen(upgrade, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [deployer.wait(timeout=60) for deployer in deployers] == [0, 0]


def test_migrations_refuse_with_one_sentence() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}
    for settings, sentence in (
        ({}, "migrations: CORRAL_DATABASE_URL: Field required"),
        (
            {"CORRAL_DATABASE_URL": "postgresql://u:changethis@127.0.0.1/d"},
            "migrations: CORRAL_DATABASE_URL: Value error, still contains the placeholder; replace it with your own secret",
        ),
        (
            {"CORRAL_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d"},
            "migrations: PostgreSQL does not answer (OperationalError); is CORRAL_DATABASE_URL right?",
        ),
    ):
        upgrade = [sys.executable, "-m", "alembic", "upgrade", "head"]
        done = subprocess.run(upgrade, cwd=ROOT, env=environment | settings, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr.strip().splitlines() == [sentence]
