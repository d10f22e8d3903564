"""The memory that Compose gives Redis, and the part that Redis uses."""

from __future__ import annotations

from pathlib import Path

import yaml

from services.protocol.connection import connect
from tests.valkey import disk_valkey

ROOT = Path(__file__).parents[2]


async def test_redis_uses_about_seventy_percent_of_its_containers_memory(tmp_path: Path) -> None:
    """A real server parses the setting, so the unit is checked too."""
    settings = dict(line.split(maxsplit=1) for line in _lines())
    async with disk_valkey(tmp_path) as server, connect(server.url) as redis:
        await redis.config_set("maxmemory", settings["maxmemory"])
        found = (await redis.config_get("maxmemory"))["maxmemory"]
    assert found is not None
    maxmemory = int(found)
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    limit = compose["services"]["redis"]["deploy"]["resources"]["limits"]["memory"]
    assert limit == "1g"
    assert 0.65 <= maxmemory / (1 << 30) <= 0.75
    assert settings["maxmemory-policy"] == "noeviction"


def _lines() -> list[str]:
    text = (ROOT / "ops" / "redis" / "redis.conf").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]
