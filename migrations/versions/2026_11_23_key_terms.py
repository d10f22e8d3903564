"""How the requests of a key wait: its weight, the most urgent priority that it may ask for, its own limit.

Must work with the previous release still running: add before you use, stop using before you drop. Constraints have names.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_23_key_terms"
down_revision = "2026_11_23_deployments"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("weight", sa.Float(), server_default=sa.text("1"), nullable=False))
    op.add_column("api_keys", sa.Column("priority", sa.Text(), server_default=sa.text("'interactive'"), nullable=False))
    op.add_column("api_keys", sa.Column("max_waiting", sa.BigInteger(), nullable=True))
    op.create_check_constraint(op.f("ck_api_keys_weight"), "api_keys", "weight >= 0.01 and weight <= 100")
    op.create_check_constraint(op.f("ck_api_keys_priority"), "api_keys", "priority in ('interactive', 'normal', 'batch')")
    op.create_check_constraint(op.f("ck_api_keys_max_waiting"), "api_keys", "max_waiting >= 1")


def downgrade() -> None:
    for name in ("max_waiting", "priority", "weight"):
        op.drop_constraint(op.f(f"ck_api_keys_{name}"), "api_keys", type_="check")
        op.drop_column("api_keys", name)
