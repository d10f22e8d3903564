"""A deployment's new settings are on trial until a replica was ready with them; until then it keeps the previous ones.

Must work with the previous release still running: add before you use, stop using before you drop. Constraints have names. That
release ignores both columns: it replaces replicas one after the other and puts nothing back.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_27_rollouts"
down_revision = "2026_11_27_tag_versions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deployments", sa.Column("previous", postgresql.JSONB(none_as_null=True), nullable=True))
    op.add_column("deployments", sa.Column("deployed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("deployments", "deployed_at")
    op.drop_column("deployments", "previous")
