"""`python -m tests.compose`: the cluster of compose.yaml on a real Docker Engine, as its users meet it, and what they do to it.

Where no engine can be had nothing is tested, which is said loudly and is no failure.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.compose import refusals, story, wheel
from tests.compose.cluster import ROOT, Cluster, Failed

NO_ENGINE = 3


def main() -> int:
    started = time.monotonic()
    if reason := no_engine():
        print(f"SKIPPED: the cluster under Docker was not tested: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="corral-compose-") as name:
        folder = Path(name)
        prepare(folder)
        cluster = Cluster(folder, port=free_port(), grafana_port=free_port())
        passed, failed = 0, 0
        try:
            for check in (*story.CHECKS, *refusals.CHECKS):
                if not attempt(check, cluster):
                    failed += 1
                    break  # each stands on the one before
                passed += 1
        finally:
            cluster.run("ops/cluster.sh", "down", "--volumes")
        if remains := cluster.remains():
            print(f"FAILED: left behind:\n{remains}")
            failed += 1
    print(f"{time.monotonic() - started:.0f} s")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def no_engine() -> str:
    """Why there is none; empty where there is one, with the images that everything is built on."""
    for script in ("engine.sh", "standins.sh"):
        done = subprocess.run(
            [ROOT / "tests" / "compose" / script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        print(done.stdout.strip(), flush=True)
        if done.returncode:
            lines = done.stdout.strip().splitlines()
            return lines[-1] if done.returncode == NO_ENGINE and lines else f"{script} ended with {done.returncode}"
    return ""


def prepare(folder: Path) -> None:
    """Secrets, and the images, of what was compiled already where that will do."""
    files = ["compose.yaml"]
    (folder / ".env").write_text("CORRAL_NODE=node-of-tests\nCORRAL_SLOTS=4\nCORRAL_CONTEXT_TOKENS=2048\n")
    if wheel.fits():
        print(f"llama.cpp of this environment: {wheel.write(folder).name}", flush=True)
        files.append("tests/compose/wheels.yaml")
    cluster = Cluster(folder, port=0, grafana_port=0, files=files).with_variables(CORRAL_TEST_WHEELS=str(folder))
    cluster.run("ops/secrets.sh")
    began = time.monotonic()
    try:
        cluster.compose("build", "registry", "worker-image", timeout_s=3600)
    except Failed as failure:
        print(f"the images are built once more, since a download may have broken off:\n{failure}", flush=True)
        cluster.compose("build", "registry", "worker-image", timeout_s=3600)
    print(f"images built in {time.monotonic() - began:.0f} s", flush=True)


def attempt(check: Callable[[Cluster], None], cluster: Cluster) -> bool:
    title = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
    began = time.monotonic()
    try:
        check(cluster)
    except Exception:
        print(f"FAILED  {title}\n{traceback.format_exc()}", flush=True)
        print(cluster.compose("ps", "--all"), cluster.compose("logs", "--tail", "30"), sep="\n", flush=True)
        return False
    print(f"ok  {time.monotonic() - began:5.1f} s  {title}", flush=True)
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
