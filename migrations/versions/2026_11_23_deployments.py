"""Deployments that admins set: one for each version, with settings of its own; replicas know what they were started with.

Must work with the previous release still running: add before you use, stop using before you drop. Constraints have names. That
release finds its one deployment on demand by the new constraint as it did by the partial index.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_23_deployments"
down_revision = "2026_11_22_control"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "deployments",
        sa.Column("overrides", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
    )
    op.create_unique_constraint(op.f("uq_deployments_version_digest"), "deployments", ["version_digest"])
    op.drop_index("uq_deployments_on_demand", table_name="deployments")
    op.drop_index(op.f("ix_deployments_version_digest"), table_name="deployments")
    op.add_column("replicas", sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("replicas", sa.Column("device_memory", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("replicas", "device_memory")
    op.drop_column("replicas", "settings")
    op.create_index(op.f("ix_deployments_version_digest"), "deployments", ["version_digest"], unique=False)
    op.create_index(
        "uq_deployments_on_demand",
        "deployments",
        ["version_digest"],
        unique=True,
        postgresql_where=sa.text("origin = 'on_demand'"),
    )
    op.drop_constraint(op.f("uq_deployments_version_digest"), "deployments", type_="unique")
    op.drop_column("deployments", "overrides")
