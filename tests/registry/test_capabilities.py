"""A model's capabilities, from its file and from its deployment."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from services.protocol.engine import Pooling
from services.protocol.routes import Routes
from services.registry.database.details import capabilities
from services.registry.database.tables import Version
from tests.conditions import eventually
from tests.doubles.node import ScriptedNode
from tests.registry.conftest import Registry

BERT = {"general.architecture": "bert"}
LLAMA = {"general.architecture": "llama"}


@pytest.mark.parametrize(
    ("metadata", "template", "deployed", "able"),
    [
        (LLAMA, "", "", ("completion",)),
        (LLAMA, "{{ messages }}", "", ("completion", "chat", "tools")),
        (BERT, "", "", ("embedding",)),
        (BERT | {"bert.pooling_type": 2}, "", "", ("embedding",)),
        (BERT | {"bert.pooling_type": 4}, "", "", ("rerank",)),
        (LLAMA | {"llama.pooling_type": 3}, "{{ messages }}", "", ("embedding",)),
        (LLAMA | {"llama.pooling_type": 3}, "{{ messages }}", "none", ("completion", "chat", "tools")),
        (LLAMA, "{{ messages }}", "last", ("embedding",)),
    ],
)
def test_capabilities_of_a_file_and_its_deployment(
    metadata: dict[str, Any], template: str, deployed: Pooling, able: tuple[str, ...]
) -> None:
    assert capabilities(Version(metadata_=metadata, template=template), deployed) == able


async def test_pooling_in_a_deployment_makes_it_an_embedding_model(
    registry: Registry, node: ScriptedNode, redis: Redis, tiny: str
) -> None:
    async def able() -> tuple[str, ...]:
        snapshot = await Routes(redis).load()
        return snapshot.versions[tiny].capabilities if snapshot else ()

    assert await able() == ("completion", "chat", "tools")
    answer = await registry.http.put("/registry/v1/deployments/tiny", json={"engine": {"pooling": "mean"}})
    assert answer.status_code == 200, answer.text

    async def embeds() -> bool:
        return await able() == ("embedding",)

    await eventually(embeds)
    assert (await registry.get("models/show", name="tiny"))["capabilities"] == ["embedding"]
