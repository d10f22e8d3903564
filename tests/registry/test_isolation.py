"""A bad row, report or decision affects only itself. A loop that fails completely reports it and recovers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import create_engine, text

from services.protocol.queue import Queue
from services.protocol.replies import ReplyReader
from services.protocol.reports import NodeReport, NodeReports
from services.protocol.routes import Routes
from services.registry.control.decisions import RefuseWaiting
from services.registry.control.quarantine import decide
from services.registry.control.reconcile import reconcile
from services.registry.states import ReplicaState
from tests.conditions import eventually
from tests.doubles.node import GIB, MODEL, ScriptedNode
from tests.registry.conftest import Registry
from tests.registry.control.cluster_states import VERSION, cluster, demand, deployment, replica, version, with_demand
from tests.registry.control.cluster_states import node as a_node
from tests.registry.steps import ask, failure, pull, serving

#: Metadata that earlier releases stored without checks.
HOSTILE: dict[str, dict[str, Any]] = {
    "strings for a count": {"general.architecture": "llama", "llama.block_count": ["a", "b"]},
    "no number": {"general.architecture": "llama", "llama.block_count": 2, "llama.attention.head_count_kv": [None, 1]},
    "an architecture that is a list": {"general.architecture": ["llama"]},
    "a count of a hundred digits": {"general.architecture": "llama", "llama.embedding_length": 10**100},
}


@contextmanager
def sql(url: str) -> Iterator[Any]:
    engine = create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def store_version(url: str, name: str, metadata: object, *, with_file: bool = True) -> str:
    """As a release without checks would have stored it."""
    digest, blob = hashlib.sha256(name.encode()).hexdigest(), f"sha256:{hashlib.sha256(b'file' + name.encode()).hexdigest()}"
    row = {
        "digest": digest,
        "metadata": json.dumps(metadata),
        "blob": blob,
        "key": f"registry.ollama.ai/library/{name}",
        "name": name,
    }
    with sql(url) as connection:
        connection.execute(
            text(
                "insert into versions (digest, manifest, config, metadata, architecture, parameter_count, quantization, context_length,"
                " embedding_length, template, system, license, parameters, size, tensor_bytes, source) values"
                " (:digest, '{}', '{}', :metadata, 'llama', 1, 'F32', 0, 0, '', '', '', '[]', 1, 1, '/m.gguf')"
            ),
            row,
        )
        if with_file:
            connection.execute(text("insert into blobs (digest, size) values (:blob, 1)"), row)
            connection.execute(
                text(
                    "insert into version_blobs (version_digest, position, blob_digest, media_type) values (:digest, 1, :blob, :type)"
                ),
                row | {"type": MODEL},
            )
        connection.execute(
            text("insert into models (key, host, namespace, name) values (:key, 'registry.ollama.ai', 'library', :name)"), row
        )
        connection.execute(
            text(
                "insert into tags (model_id, key, name, version_digest) select id, 'latest', 'latest', :digest from models where key = :key"
            ),
            row,
        )
    return digest


@pytest.mark.parametrize("metadata", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_version_with_bad_metadata_fails_alone_and_can_be_deleted(
    registry: Registry,
    node: ScriptedNode,
    queue: Queue,
    replies: ReplyReader,
    clean_url: str,
    metadata: dict[str, Any],
) -> None:
    await pull(registry, "pypi:tiny")
    hostile = store_version(clean_url, "hostile", metadata)
    await ask(queue, hostile)
    refused = await failure(replies)
    assert refused.message.startswith("model 'hostile:latest' could not be loaded: its file has a ")

    await ask(queue, await registry.digest("tiny"))
    await eventually(lambda: serving(registry, "tiny:latest"))
    pinned = await registry.http.put("/registry/v1/deployments/hostile", json={"replicas": 1})
    assert pinned.status_code == 200

    async def shows_the_reason() -> bool:
        return any(reason.startswith("its file has a ") for reason in (await registry.get("status"))["waiting"])

    await eventually(shows_the_reason)
    assert (await registry.http.get("/readyz")).status_code == 200
    await registry.get("models/show", name="hostile")
    assert (await registry.http.request("DELETE", "/registry/v1/models", json={"model": "hostile"})).status_code == 200

    async def forgotten() -> bool:
        with sql(clean_url) as connection:
            return not connection.scalar(text("select count(*) from versions where digest = :digest"), {"digest": hostile})

    await eventually(forgotten)
    await eventually(lambda: serving(registry, "tiny:latest"))


async def test_a_version_without_a_file_fails_alone(
    registry: Registry,
    node: ScriptedNode,
    queue: Queue,
    replies: ReplyReader,
    clean_url: str,
) -> None:
    await pull(registry, "pypi:tiny")
    await ask(queue, store_version(clean_url, "empty", {}, with_file=False))
    assert (await failure(replies)).message == "model 'empty:latest' could not be loaded: it has no model file"
    await ask(queue, await registry.digest("tiny"))
    await eventually(lambda: serving(registry, "tiny:latest"))


async def test_unreadable_settings_affect_only_their_deployment(
    registry: Registry,
    node: ScriptedNode,
    queue: Queue,
    replies: ReplyReader,
    clean_url: str,
) -> None:
    await pull(registry, "pypi:tiny")
    await pull(registry, "pypi:other")
    assert (await registry.http.put("/registry/v1/deployments/other", json={"replicas": 1})).status_code == 200
    await eventually(lambda: serving(registry, "other:latest"))
    with sql(clean_url) as connection:
        connection.execute(text("update deployments set settings = '{\"slots\": \"many\"}', overrides = '[]'"))
    await ask(queue, await registry.digest("tiny"))
    await eventually(lambda: serving(registry, "tiny:latest"))
    assert await serving(registry, "other:latest"), "what serves is left alone"
    await registry.get("deployments")
    assert (await registry.http.get("/readyz")).status_code == 200


async def test_an_absurd_report_affects_only_its_node(
    registry: Registry, node: ScriptedNode, queue: Queue, redis: Redis
) -> None:
    absurd = NodeReport("n2", "a", 1, 2**64 - 1, 2**64 - 1, GIB, GIB, (), (), (), ())
    await NodeReports(redis).publish(absurd, lease_ms=60_000)
    await pull(registry, "pypi:tiny")
    await ask(queue, await registry.digest("tiny"))
    await eventually(lambda: serving(registry, "tiny:latest"))
    assert [row["name"] for row in (await registry.get("nodes"))["nodes"]] == ["n1"]


def rename_table(url: str, old: str, new: str) -> None:
    """Waits for the transactions of the registry, which runs in this process, so call it outside the event loop's thread."""
    with sql(url) as connection:
        connection.execute(text(f"alter table {old} rename to {new}"))


async def test_a_failing_loop_is_reported_and_recovers(
    registry: Registry, node: ScriptedNode, redis: Redis, clean_url: str
) -> None:
    await pull(registry, "pypi:tiny")

    async def ready(status: int) -> bool:
        return (await registry.http.get("/readyz")).status_code == status

    async def published() -> str:
        snapshot = await Routes(redis).load()
        assert snapshot is not None
        return snapshot.fault

    await eventually(lambda: ready(200))
    await asyncio.to_thread(rename_table, clean_url, "replicas", "replicas_away")
    try:
        await eventually(lambda: ready(503), timeout_s=20)
        answer = (await registry.http.get("/readyz")).json()
        assert answer == {
            "status": "unavailable",
            "missing": ["the control loop fails (ProgrammingError); the registry's log has the traceback"],
        }
        assert await eventually(published) == answer["missing"][0]
        assert (await registry.http.get("/healthz")).status_code == 200
    finally:
        await asyncio.to_thread(rename_table, clean_url, "replicas_away", "replicas")
    await eventually(lambda: ready(200), timeout_s=20)
    assert await published() == ""


def test_a_version_that_breaks_the_decision_is_left_out() -> None:
    other = "c" * 64
    # A fetching replica whose deployment does not exist.
    broken = replica(ReplicaState.FETCHING, id="r2", version=other, deployment=99)
    good = cluster(demand=with_demand(demand(waiting=1)))
    seen = replace(
        good,
        versions={**good.versions, other: version(digest=other, name="bad:latest")},
        replicas=(broken,),
        demand={**good.demand, other: demand(waiting=1, digest=other)},
    )
    with pytest.raises(RuntimeError):
        reconcile(seen)
    verdict = decide(seen)
    assert set(reconcile(good)) <= set(verdict.decisions)
    assert verdict.faults == {other: "the registry cannot decide about it (RuntimeError)"}
    (refusal,) = [decision for decision in verdict.decisions if isinstance(decision, RefuseWaiting)]
    assert (refusal.version, refusal.code) == (other, "internal_error")
    assert refusal.message == "model 'bad:latest' could not be loaded: the registry cannot decide about it (RuntimeError)"


def test_an_error_without_a_version_fails_the_turn() -> None:
    nowhere = replace(a_node(), last_seen_at=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        decide(cluster(nodes={"n1": nowhere}, deployments=(deployment(),)))


def test_nothing_is_left_out_of_a_valid_state() -> None:
    seen = cluster(demand=with_demand(demand(waiting=1)))
    assert decide(seen).decisions == reconcile(seen)
    assert decide(seen).faults == {}
    assert VERSION in seen.versions
