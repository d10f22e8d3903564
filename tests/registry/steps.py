"""Steps of the registry's tests: request a model, act as its worker, wait for replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.protocol.messages import Failed, GenerateRequest, new_id
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Demand, Queue
from services.protocol.replies import ReplyReader
from tests.conditions import eventually

if TYPE_CHECKING:
    from tests.registry.conftest import Registry

TINY = "pypi:tiny"


async def ask(queue: Queue, version: str, *, keep_alive_ms: int | None = None, context_tokens: int = 0) -> GenerateRequest:
    request = GenerateRequest(id=new_id(), version=version, gateway="g", caller="c", prompt=TextPrompt("hi"))
    await queue.enqueue(request, cost=1, limit=100, keep_alive_ms=keep_alive_ms, context_tokens=context_tokens)
    return request


async def serve(queue: Queue, version: str, replica: str) -> None:
    """Acts as the worker: claims the waiting requests and settles them."""
    for claim in (await queue.claim(version, f"w-{replica}", capacity=100)).claims:
        await queue.settle(claim.request.id, claim.epoch, cost=1)


async def one(registry: Registry, *states: str) -> dict[str, Any]:
    """The only replica in these states, as soon as there is exactly one."""

    async def found() -> list[dict[str, Any]]:
        rows = await registry.replicas(*states)
        return rows if len(rows) == 1 else []

    rows: list[dict[str, Any]] = await eventually(found, what=f"one replica in {states}")
    return rows[0]


async def none_live(registry: Registry) -> bool:
    return not await registry.replicas("pending", "fetching", "starting", "ready", "draining")


async def demand(queue: Queue, version: str) -> Demand | None:
    return next((entry for entry in await queue.demand() if entry.version == version), None)


async def pull(registry: Registry, source: str, named: str | None = None) -> None:
    await eventually(lambda: ready_nodes(registry))
    lines = await registry.pull(source, named)
    assert lines[-1] == {"status": "success"}, lines


async def ready_nodes(registry: Registry) -> list[str]:
    return [node["name"] for node in (await registry.get("nodes"))["nodes"] if node["state"] == "ready"]


async def failure(replies: ReplyReader) -> Failed:
    for _ in range(10):
        for reply in await replies.read(timeout_s=1):
            assert reply.worker == ""
            (event,) = reply.events
            assert isinstance(event, Failed)
            return event
    raise AssertionError("nothing was refused")


async def serving(registry: Registry, model: str) -> bool:
    return model in [row["model"] for row in await registry.replicas("ready")]
