"""The catalog: models, versions, tags, blobs; the nodes that hold them; API keys.

Must work with the previous release still running: add before you use, stop using before you drop. Constraints have names.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_22_catalog"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("hash ~ '^[0-9a-f]{64}$'", name=op.f("ck_api_keys_hash")),
        sa.CheckConstraint("name <> ''", name=op.f("ck_api_keys_name")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_keys_hash")),
    )
    op.create_index("uq_api_keys_name", "api_keys", ["name"], unique=True, postgresql_where=sa.text("revoked_at is null"))
    op.create_table(
        "blobs",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_blobs_digest")),
        sa.CheckConstraint("size >= 0", name=op.f("ck_blobs_size")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("key", name=op.f("uq_models_key")),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("cpus", sa.BigInteger(), nullable=False),
        sa.Column("memory_total", sa.BigInteger(), nullable=False),
        sa.Column("memory_available", sa.BigInteger(), nullable=False),
        sa.Column("disk_total", sa.BigInteger(), nullable=False),
        sa.Column("disk_free", sa.BigInteger(), nullable=False),
        sa.Column("devices", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state in ('ready', 'lost')", name=op.f("ck_nodes_state")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_nodes")),
    )
    op.create_table(
        "versions",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("parameter_count", sa.BigInteger(), nullable=False),
        sa.Column("quantization", sa.Text(), nullable=False),
        sa.Column("context_length", sa.BigInteger(), nullable=False),
        sa.Column("embedding_length", sa.BigInteger(), nullable=False),
        sa.Column("template", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), nullable=False),
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("tensor_bytes", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("digest ~ '^[0-9a-f]{64}$'", name=op.f("ck_versions_digest")),
        sa.CheckConstraint("size >= 0 and tensor_bytes >= 0 and parameter_count >= 0", name=op.f("ck_versions_sizes")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_versions")),
    )
    op.create_table(
        "blob_copies",
        sa.Column("blob_digest", sa.Text(), nullable=False),
        sa.Column("node_name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("verified_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state in ('verified', 'missing')", name=op.f("ck_blob_copies_state")),
        sa.ForeignKeyConstraint(
            ["blob_digest"], ["blobs.digest"], name=op.f("fk_blob_copies_blob_digest_blobs"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["node_name"], ["nodes.name"], name=op.f("fk_blob_copies_node_name_nodes"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("blob_digest", "node_name", name=op.f("pk_blob_copies")),
    )
    op.create_index(op.f("ix_blob_copies_node_name"), "blob_copies", ["node_name"], unique=False)
    op.create_table(
        "tags",
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version_digest", sa.Text(), nullable=False),
        sa.Column("modified_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_tags_model_id_models"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["version_digest"], ["versions.digest"], name=op.f("fk_tags_version_digest_versions"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("model_id", "key", name=op.f("pk_tags")),
    )
    op.create_index(op.f("ix_tags_version_digest"), "tags", ["version_digest"], unique=False)
    op.create_table(
        "version_blobs",
        sa.Column("version_digest", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("blob_digest", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.CheckConstraint("position >= 0", name=op.f("ck_version_blobs_position")),
        sa.ForeignKeyConstraint(
            ["blob_digest"], ["blobs.digest"], name=op.f("fk_version_blobs_blob_digest_blobs"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["version_digest"], ["versions.digest"], name=op.f("fk_version_blobs_version_digest_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_digest", "position", name=op.f("pk_version_blobs")),
    )
    op.create_index(op.f("ix_version_blobs_blob_digest"), "version_blobs", ["blob_digest"], unique=False)


def downgrade() -> None:
    op.drop_table("version_blobs")
    op.drop_table("tags")
    op.drop_table("blob_copies")
    op.drop_table("versions")
    op.drop_table("nodes")
    op.drop_table("models")
    op.drop_table("blobs")
    op.drop_table("api_keys")
