"""At most one leader, even if the leader stalls."""

from __future__ import annotations

import pytest

from services.protocol.errors import Unavailable
from services.registry.control.leadership import Leadership, leadership
from services.registry.database.database import Database
from tests.conditions import eventually


async def test_only_one_leads(migrated_url: str) -> None:
    first, second = Database(migrated_url), Database(migrated_url)
    async with leadership(first) as leader, leadership(second) as other:
        assert leader is not None
        assert other is None
        await leader.require()
    async with leadership(second) as leader:
        assert leader is not None
    await first.close()
    await second.close()


async def test_a_stalled_leader_is_replaced_and_notices(migrated_url: str) -> None:
    stalled, standby = Database(migrated_url), Database(migrated_url)

    async def stall_while_leading() -> None:
        async with leadership(stalled, silence_ms=100) as leader:
            assert leader is not None
            await eventually(leads)
            await leader.require()

    async def leads() -> bool:
        async with leadership(standby) as leader:
            return isinstance(leader, Leadership)

    with pytest.raises(Unavailable):
        await stall_while_leading()
    await stalled.close()
    await standby.close()
