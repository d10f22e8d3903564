"""The control plane: deployments, replicas, jobs.

Must work with the previous release still running: add before you use, stop using before you drop. Constraints have names.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_22_control"
down_revision = "2026_11_22_catalog"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deployments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("version_digest", sa.Text(), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("replicas_wanted", sa.BigInteger(), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("origin in ('on_demand', 'pinned')", name=op.f("ck_deployments_origin")),
        sa.CheckConstraint("replicas_wanted >= 0", name=op.f("ck_deployments_replicas_wanted")),
        sa.ForeignKeyConstraint(
            ["version_digest"], ["versions.digest"], name=op.f("fk_deployments_version_digest_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    op.create_index(op.f("ix_deployments_version_digest"), "deployments", ["version_digest"], unique=False)
    op.create_index(
        "uq_deployments_on_demand",
        "deployments",
        ["version_digest"],
        unique=True,
        postgresql_where=sa.text("origin = 'on_demand'"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("node_name", sa.Text(), nullable=False),
        sa.Column("replica_id", sa.Text(), nullable=True),
        sa.Column("version_digest", sa.Text(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("sends", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error_code", sa.Text(), server_default="", nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state in ('succeeded', 'failed')) = (finished_at is not null)", name=op.f("ck_jobs_finished_at")),
        sa.CheckConstraint("kind in ('pull', 'start', 'stop', 'delete')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint("state <> 'failed' or (error <> '' and error_code <> '')", name=op.f("ck_jobs_failed_says_why")),
        sa.CheckConstraint("state in ('queued', 'sent', 'succeeded', 'failed')", name=op.f("ck_jobs_state")),
        sa.CheckConstraint("sends >= 0", name=op.f("ck_jobs_sends")),
        sa.ForeignKeyConstraint(["node_name"], ["nodes.name"], name=op.f("fk_jobs_node_name_nodes"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_created_at"), "jobs", ["created_at"], unique=False)
    op.create_index(op.f("ix_jobs_node_name"), "jobs", ["node_name"], unique=False)
    op.create_index(op.f("ix_jobs_replica_id"), "jobs", ["replica_id"], unique=False)
    op.create_index("uq_jobs_open", "jobs", ["key"], unique=True, postgresql_where=sa.text("finished_at is null"))
    op.create_table(
        "replicas",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("deployment_id", sa.BigInteger(), nullable=False),
        sa.Column("node_name", sa.Text(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("error_code", sa.Text(), server_default="", nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("memory_estimated", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("memory_measured", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("slots", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("context_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("state_changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("retry_at is null or state = 'failed'", name=op.f("ck_replicas_retry_only_failed")),
        sa.CheckConstraint(
            "state <> 'failed' or (reason <> '' and error_code <> '')", name=op.f("ck_replicas_failed_says_why")
        ),
        sa.CheckConstraint(
            "state in ('pending', 'fetching', 'starting', 'ready', 'draining', 'stopped', 'failed')",
            name=op.f("ck_replicas_state"),
        ),
        sa.CheckConstraint(
            "state in ('pending', 'stopped', 'failed') or node_name is not null", name=op.f("ck_replicas_node_unless_pending")
        ),
        sa.CheckConstraint("attempts >= 1", name=op.f("ck_replicas_attempts")),
        sa.CheckConstraint("memory_estimated >= 0 and memory_measured >= 0", name=op.f("ck_replicas_memory")),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_replicas_deployment_id_deployments"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["node_name"], ["nodes.name"], name=op.f("fk_replicas_node_name_nodes"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replicas")),
    )
    op.create_index(op.f("ix_replicas_deployment_id"), "replicas", ["deployment_id"], unique=False)
    op.create_index(
        "ix_replicas_live",
        "replicas",
        ["deployment_id"],
        unique=False,
        postgresql_where=sa.text("state not in ('stopped', 'failed')"),
    )
    op.create_index(op.f("ix_replicas_node_name"), "replicas", ["node_name"], unique=False)


def downgrade() -> None:
    op.drop_table("replicas")
    op.drop_table("jobs")
    op.drop_table("deployments")
