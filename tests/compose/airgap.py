"""The kit of `make airgap` on an engine without a network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.compose.cluster import ROOT, Cluster, Failed
from tests.conftest import smollm2

MODEL = "smollm2:135m"
#: Packing and loading pass most of a GB through gzip.
PATIENCE_S = 900.0


class IsolatedEngine:
    """A Docker engine in network and mount namespaces, without a route to the network. Needs root."""

    def __init__(self, folder: Path) -> None:
        (folder / "run").mkdir(parents=True)
        script = 'mount --bind "$1/run" /run && ip link set lo up && exec dockerd --data-root "$1/data"'
        with (folder / "log").open("wb") as log:
            self._engine = subprocess.Popen(
                ["unshare", "--mount", "--net", "sh", "-c", script, "sh", str(folder)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not (folder / "run" / "docker.sock").exists() or not self._answers():
            output = (folder / "log").read_text()[-500:]
            assert self._engine.poll() is None, output
            assert time.monotonic() < deadline, output
            time.sleep(0.2)

    def run(self, folder: Path, *command: str) -> str:
        """The command's output. Raises Failed."""
        enter = ["nsenter", "--mount", "--net", "--target", str(self._engine.pid)]
        done = subprocess.run(
            [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(folder), *command],
            env=_bare(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        if done.returncode:
            raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout.strip()}")
        return done.stdout.strip()

    def routes_out(self) -> list[str]:
        """The default routes, through which other networks are reached."""
        lines = Path(f"/proc/{self._engine.pid}/net/route").read_text().splitlines()[1:]
        return [line for line in lines if line.split()[1] == "00000000"]

    def close(self) -> None:
        self._engine.send_signal(signal.SIGTERM)
        self._engine.wait(timeout=60)

    def _answers(self) -> bool:
        try:
            self.run(ROOT, "docker", "version")
        except Failed:
            return False
        return True


def _bare(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings of this test's cluster, but with the plugins of its Docker."""
    ours = ("CORRAL_", "COMPOSE_", "DOCKER_")
    return {name: value for name, value in environment.items() if name == "DOCKER_CONFIG" or not name.startswith(ours)}


@contextmanager
def isolated_engine(folder: Path) -> Iterator[IsolatedEngine]:
    made = IsolatedEngine(folder)
    try:
        yield made
    finally:
        made.close()


def obstacle() -> str:
    """Why an isolated engine cannot run here; empty if it can."""
    if os.getuid():
        return "only root can cut an engine off from the network"
    missing = [program for program in ("dockerd", "unshare", "nsenter", "ip") if not shutil.which(program)]
    return f"there is no {missing[0]}" if missing else ""


def is_packed(cluster: Cluster) -> None:
    """`make airgap`: images, files and a model in one archive."""
    here = cluster.with_variables(CORRAL_DIST=str(cluster.folder))
    here.run("ops/airgap/pack.sh", str(smollm2()), MODEL, timeout_s=PATIENCE_S)


def runs_without_a_network(cluster: Cluster) -> None:
    """The kit on an engine without a network and without images: install.sh, then a chat."""
    if missing := obstacle():
        print(f"SKIPPED: the air-gap kit was not installed: {missing}")
        return
    (kit,) = cluster.folder.glob("corral-airgap-*.tar")
    subprocess.run(["tar", "--extract", "--file", kit, "--directory", cluster.folder], check=True)
    kit.unlink()
    folder = cluster.folder / kit.stem
    with isolated_engine(cluster.folder / "isolated-engine") as here:
        assert not here.routes_out()
        assert not here.run(folder, "docker", "images", "--quiet")
        here.run(folder, "./install.sh")
        try:
            assert MODEL in here.run(folder, "docker", "compose", "run", "--rm", "--no-TTY", "cli", "list")
            assert here.run(folder, "docker", "compose", "run", "--rm", "--no-TTY", "cli", "run", MODEL, "Say hello.")
            assert not here.routes_out()
        finally:
            here.run(folder, "ops/cluster.sh", "down", "--volumes")


CHECKS: tuple[Callable[[Cluster], None], ...] = (is_packed, runs_without_a_network)
