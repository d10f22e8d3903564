"""`python -m tests.compose [CHAPTER...]`: tests the cluster of compose.yaml on a real Docker engine.

The exit code is 0 if everything passed, and also if this machine cannot have an engine or images, which prints SKIPPED and the
reason. A run ended by SIGTERM or Ctrl-C has failed, and cleans up first.
"""

from __future__ import annotations

import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.compose import airgap, refusals, story, wheel
from tests.compose.cluster import Cluster, Failed
from tests.compose.preparation import PreparationFailed, Unavailable, prepared

CHAPTERS: dict[str, Sequence[Callable[[Cluster], None]]] = {
    "story": story.CHECKS,
    "refusals": refusals.CHECKS,
    "airgap": airgap.CHECKS,
}

DEFAULT = ("story", "refusals")
#: Workers wait for a node agent as long as the checks do.
SETTINGS = f"""\
CORRAL_NODE=node-of-tests
CORRAL_SLOTS=4
CORRAL_CONTEXT_TOKENS=2048
CORRAL_ORPHAN_S={story.PATIENCE_S * 4:.0f}
"""


def main(*chapters: str) -> int:
    started = time.monotonic()
    checks = [check for chapter in chapters or DEFAULT for check in CHAPTERS[chapter]]
    code = run(lambda folder: test(folder, checks))
    print(f"{time.monotonic() - started:.0f} s")
    return code


def run(tests: Callable[[Path], int]) -> int:
    """The exit code. `tests` returns the number of failures."""
    try:
        with prepared() as folder:
            return 1 if tests(folder) else 0
    except Unavailable as reason:
        print(f"SKIPPED: the cluster under Docker was not tested: {reason}")
        return 0
    except PreparationFailed as reason:
        print(f"FAILED: {reason}")
        return 1


def test(folder: Path, checks: Sequence[Callable[[Cluster], None]]) -> int:
    """The number of failed checks: 0 or 1, because the first failure ends the run."""
    prepare(folder)
    cluster = Cluster(folder, port=free_port(), grafana_port=free_port())
    remove_remains(cluster)
    passed, failed = 0, 0
    try:
        for check in checks:
            if not attempt(check, cluster):
                failed += 1
                break  # each check needs the previous ones
            passed += 1
    finally:
        cluster.run("ops/cluster.sh", "down", "--volumes")
    if remains := cluster.remains():
        print(f"FAILED: left behind:\n{remains}")
        failed += 1
    print(f"{passed} passed, {failed} failed")
    return failed


def remove_remains(cluster: Cluster) -> None:
    """Removes what a killed run left behind."""
    if remains := cluster.remains():
        print(f"removed first, since an earlier run left it:\n{remains}", flush=True)
        cluster.run("ops/cluster.sh", "down", "--volumes")


def prepare(folder: Path) -> None:
    """Creates the secrets and the images; uses the compiled llama.cpp of this environment if it fits the image."""
    files = ["compose.yaml"]
    (folder / ".env").write_text(SETTINGS)
    if wheel.fits():
        print(f"llama.cpp of this environment: {wheel.write(folder).name}", flush=True)
        files.append("tests/compose/wheels.yaml")
    cluster = Cluster(folder, port=0, grafana_port=0, files=files).with_variables(CORRAL_TEST_WHEELS=str(folder))
    cluster.run("ops/secrets.sh")
    started = time.monotonic()
    try:
        cluster.compose("build", "registry", "worker-image", timeout_s=3600)
    except Failed as failure:
        print(f"the images are built once more, since a download may have broken off:\n{failure}", flush=True)
        cluster.compose("build", "registry", "worker-image", timeout_s=3600)
    print(f"images built in {time.monotonic() - started:.0f} s", flush=True)


def attempt(check: Callable[[Cluster], None], cluster: Cluster) -> bool:
    title = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
    started = time.monotonic()
    try:
        check(cluster)
    except (Exception, SystemExit):
        print(f"FAILED  {title}\n{traceback.format_exc()}", flush=True)
        print(cluster.compose("ps", "--all"), cluster.compose("logs", "--tail", "30"), sep="\n", flush=True)
        return False
    print(f"ok  {time.monotonic() - started:5.1f} s  {title}", flush=True)
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
