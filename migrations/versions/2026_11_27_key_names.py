"""Names of keys differ by more than case.

Of unrevoked keys whose names differ in case alone, the oldest keeps its name; the others get the first characters of their id after theirs.

Must work with the previous release still running: add before you use, stop using before you drop. Constraints have names.
"""

from __future__ import annotations

from alembic import op

revision = "2026_11_27_key_names"
down_revision = "2026_11_23_key_terms"
branch_labels = None
depends_on = None

RENAME = """
update api_keys set name = left(api_keys.name, 40) || '-' || api_keys.id
from (
    select id, row_number() over (partition by lower(name) order by created_at, id) as place
    from api_keys where revoked_at is null
) as same
where same.id = api_keys.id and same.place > 1
"""


def upgrade() -> None:
    op.execute(RENAME)
    op.execute("create unique index uq_api_keys_lower_name on api_keys (lower(name)) where revoked_at is null")


def downgrade() -> None:
    op.drop_index("uq_api_keys_lower_name", "api_keys")
