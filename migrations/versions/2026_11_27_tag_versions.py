"""The versions that a tag named: the last few are kept, so that it can be moved back.

Must work with the previous release still running: add before you use, stop using before you drop. Constraints have names. That
release forgets a version as soon as no tag names it, and its rows here go with it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_tag_versions"
down_revision = "2026_11_27_key_names"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tag_versions",
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("tag_key", sa.Text(), nullable=False),
        sa.Column("version_digest", sa.Text(), nullable=False),
        sa.Column("named_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id", "tag_key"],
            ["tags.model_id", "tags.key"],
            name=op.f("fk_tag_versions_model_id_tags"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["version_digest"], ["versions.digest"], name=op.f("fk_tag_versions_version_digest_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "tag_key", "version_digest", name=op.f("pk_tag_versions")),
    )
    op.create_index(op.f("ix_tag_versions_version_digest"), "tag_versions", ["version_digest"], unique=False)
    op.execute(
        "insert into tag_versions (model_id, tag_key, version_digest, named_at)"
        " select model_id, key, version_digest, modified_at from tags"
    )


def downgrade() -> None:
    op.drop_table("tag_versions")
