"""Which requests may share cached prefixes."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.gateway.requests.isolation import Isolation
from services.protocol.messages import GenerateRequest
from services.protocol.routes import LOCAL_CALLER, Caller, Routes, key_hash
from tests.conditions import eventually
from tests.doubles.worker import Worker
from tests.gateway.conftest import routes_snapshot

ADA, BEN, EVE, ONE, TWO = (
    Caller(name, name, team, admin=False)
    for name, team in (("ada", "red"), ("ben", "red"), ("eve", "blue"), ("one", ""), ("two", ""))
)


@pytest.mark.parametrize(
    ("isolation", "same", "different"),
    [
        (Isolation.ALL, (ADA, BEN, EVE, ONE, LOCAL_CALLER), ()),
        (Isolation.TEAM, (ADA, BEN), (EVE, ONE)),
        (Isolation.TEAM, (ONE, TWO, LOCAL_CALLER), (ADA, EVE)),
        (Isolation.KEY, (ADA,), (BEN, EVE, ONE, TWO, LOCAL_CALLER)),
    ],
)
def test_isolation_domains(isolation: Isolation, same: tuple[Caller, ...], different: tuple[Caller, ...]) -> None:
    [domain] = {isolation.domain(caller, "") for caller in same}
    assert domain not in {isolation.domain(caller, "") for caller in different}


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_a_salt_divides_a_team_and_never_joins_two(team: str, salt: str, other_team: str, other_salt: str) -> None:
    one, other = Caller("1", "1", team, admin=False), Caller("2", "2", other_team, admin=False)
    same = Isolation.TEAM.domain(one, salt) == Isolation.TEAM.domain(other, other_salt)
    assert same == ((team, salt) == (other_team, other_salt))


async def test_requests_of_two_teams_have_different_domains(
    http: httpx.AsyncClient, redis: Redis, routes: Routes, worker: Worker
) -> None:
    keys = {name: f"corral-{name * 43}" for name in "AB"}
    callers = {key_hash(key): Caller(name, name, f"team-{name}", admin=False) for name, key in keys.items()}
    await routes.publish(routes_snapshot(2, callers=callers))

    async def domain(key: str, **more: object) -> str:
        body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Hi"}], **more}
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}))
        answer = await worker.take()
        await answer.whole("Hello")
        assert (await asking).status_code == 200
        assert isinstance(answer.request, GenerateRequest)
        return answer.request.isolation

    async def known() -> bool:
        return (await http.get("/v1/models", headers={"Authorization": f"Bearer {keys['B']}"})).status_code == 200

    await eventually(known)
    first, second = await domain(keys["A"]), await domain(keys["B"])
    assert first != second
    assert await domain(keys["A"]) == first
    assert await domain(keys["A"], cache_salt="mine") not in (first, second)
