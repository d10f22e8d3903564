from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from services.cli.embedded.management import Management
from services.cli.errors import CommandError
from tests.doubles.http_gateway import KEY, Answer, Gateway


@pytest_asyncio.fixture
async def management(gateway: Gateway) -> AsyncIterator[Management]:
    async with httpx.AsyncClient() as client:
        yield Management(client, gateway.url, "token")


async def test_keys_that_are_not_admin_keys_do_not_count(gateway: Gateway, management: Management) -> None:
    """They were created on a loopback address, before the platform required keys."""
    others = [KEY | {"name": "team", "admin": False}, KEY | {"name": "gone", "revoked_at": "2020-01-01T00:00:00Z"}]
    gateway.answer("GET /registry/v1/keys", Answer(body={"keys": others}))
    gateway.answer("POST /registry/v1/keys", Answer(201, {"secret": "corral-new"}))
    assert await management.make_first_key() == "corral-new"
    assert gateway.bodies("POST /registry/v1/keys") == [{"name": "admin", "team": "", "admin": True}]


async def test_one_admin_key_is_enough(gateway: Gateway, management: Management) -> None:
    gateway.answer("GET /registry/v1/keys", Answer(body={"keys": [KEY]}))
    assert await management.make_first_key() is None


async def test_another_name_is_used_if_admin_is_taken(gateway: Gateway, management: Management) -> None:
    gateway.answer("GET /registry/v1/keys", Answer(body={"keys": [KEY | {"name": "Admin", "admin": False}]}))
    gateway.answer("POST /registry/v1/keys", Answer(201, {"secret": "corral-new"}))
    assert await management.make_first_key() == "corral-new"
    [body] = gateway.bodies("POST /registry/v1/keys")
    assert body["name"].startswith("admin-")


async def test_an_error_in_creating_the_key_is_reported(gateway: Gateway, management: Management) -> None:
    gateway.answer("GET /registry/v1/keys", Answer(body={"keys": []}))
    gateway.answer("POST /registry/v1/keys", Answer(500, {"error": "broken"}))
    with pytest.raises(CommandError, match="broken"):
        await management.make_first_key()
