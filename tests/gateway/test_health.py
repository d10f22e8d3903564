"""The health and readiness endpoints."""

from __future__ import annotations

import httpx
import msgspec
from redis.asyncio import Redis

from services.gateway.app import create_app
from services.gateway.config import Settings
from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.gateway.conftest import routes_snapshot
from tests.gateway.servers import serving


async def test_not_ready_until_the_registry_publishes(settings: Settings, redis: Redis) -> None:
    async with serving(create_app(settings)) as url, httpx.AsyncClient(base_url=url) as http:

        async def only_routes_are_missing() -> bool:
            response = await http.get("/readyz")
            return response.status_code == 503 and response.json() == {"status": "unavailable", "missing": ["routes"]}

        await eventually(only_routes_are_missing)
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        for path in ("/api/tags", "/v1/models"):
            assert (await http.get(path)).status_code == 503
        await Routes(redis).publish(routes_snapshot())

        async def is_ready() -> bool:
            return bool((await http.get("/readyz")).json() == {"status": "ok"})

        await eventually(is_ready)


async def test_readyz_reports_a_failing_control_loop(settings: Settings, redis: Redis) -> None:
    reason = "the control loop fails (KeyError); the registry's log has the traceback"
    async with serving(create_app(settings)) as url, httpx.AsyncClient(base_url=url) as http:
        steps: list[tuple[str, dict[str, object]]] = [
            (reason, {"status": "unavailable", "missing": ["control loop"], "reason": reason}),
            ("", {"status": "ok"}),
        ]
        for fault, answer in steps:
            revision = 2 if fault else 3
            await Routes(redis).publish(msgspec.structs.replace(routes_snapshot(), fault=fault, revision=revision))

            async def answers(wanted: dict[str, object] = answer) -> bool:
                return bool((await http.get("/readyz")).json() == wanted)

            await eventually(answers)
        assert (await http.get("/readyz")).status_code == 200


async def test_not_ready_without_redis(settings: Settings) -> None:
    down = settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"})
    async with serving(create_app(down)) as url, httpx.AsyncClient(base_url=url) as http:
        response = await http.get("/readyz")
        assert response.status_code == 503
        health = response.json()
        assert (health["status"], health["missing"]) == ("unavailable", ["redis", "routes"])
        assert health["reason"].startswith("Redis does not answer")
        assert (await http.get("/healthz")).status_code == 200
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
        response = await http.post("/api/chat", json=body)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
