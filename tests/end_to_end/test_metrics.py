"""`corral up` as Prometheus sees it: found by http_sd through the gateway, with counts that match the requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.conditions import eventually
from tests.end_to_end.conftest import SMOLLM2, Platform
from tests.scraping import Scrape, scrape

pytestmark = pytest.mark.end_to_end

REQUESTS = 6
TOKENS = 8


async def targets(http: httpx.AsyncClient, *services: str) -> list[dict[str, Any]]:
    answer = await http.get("/registry/v1/http_sd", params={"service": services})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


async def all_of(http: httpx.AsyncClient) -> Scrape:
    found = await scrape(*(address for target in await targets(http) for address in target["targets"]))
    found.require_documented()
    return found


async def test_prometheus_finds_every_service_and_the_counts_match(platform: Platform) -> None:
    body = {"model": SMOLLM2, "prompt": "Once", "raw": True, "stream": False, "options": {"num_predict": TOKENS, "stop": []}}
    async with httpx.AsyncClient(base_url=platform.url, timeout=120, trust_env=False) as http:
        assert (await http.post("/api/generate", json=body)).status_code == 200

        async def all_serve() -> bool:
            found = Counter(target["labels"]["service"] for target in await targets(http))
            return set(found) == {"gateway", "worker", "node", "registry"}

        await eventually(all_serve)
        [worker, *_] = [one for one in await targets(http, "worker") if one["labels"]["model"] == SMOLLM2]
        assert set(worker["labels"]) == {"service", "model", "version", "node", "replica"}
        before = await all_of(http)
        answers = await asyncio.gather(*(http.post("/api/generate", json=body) for _ in range(REQUESTS)))
        tokens = sum(answer.json()["eval_count"] for answer in answers)
        after = await all_of(http)

    def more(name: str, **labels: str) -> float:
        return after.sum(name, **labels) - before.sum(name, **labels)

    assert more("corral_requests_total", model=SMOLLM2, team="local", outcome="answered") == REQUESTS
    assert more("corral_completion_tokens_total", model=SMOLLM2) == tokens
    assert more("corral_time_to_first_token_seconds_count", model=SMOLLM2) == REQUESTS
    assert more("corral_worker_claims_total") == REQUESTS
    # The prompt gives the first token. If the model itself ends the text, one more token is computed after it.
    assert tokens - REQUESTS <= more("corral_worker_computed_tokens_total", phase="decode") <= tokens
    assert after.sum("corral_replicas", model=SMOLLM2, state="ready") >= 1
    assert after.sum("corral_nodes", state="ready") == 1
    assert after.sum("corral_node_workers") >= 1
    assert after.sum("corral_jobs_total", kind="pull", outcome="succeeded") >= 1
