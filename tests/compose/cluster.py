"""A cluster of compose.yaml with its own project name and ports: how the tests use it and remove it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT = "corral-test"
TAG = "test"


class Failed(Exception):
    """A command succeeded or failed unexpectedly; the text is its output."""


class Cluster:
    """`folder` holds the secrets and .env. `port` is the gateway's, `grafana_port` Grafana's, `node` the name of the only node."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        grafana_port: int,
        files: Sequence[str] = ("compose.yaml",),
        project: str = PROJECT,
        node: str = "node-of-tests",
    ) -> None:
        self.folder = folder
        self.port = port
        self.project = project
        self.node = node
        self._variables = {
            "COMPOSE_PROJECT_NAME": project,
            "COMPOSE_FILE": ":".join(files),
            "COMPOSE_ENV_FILES": str(folder / ".env"),
            "CORRAL_ENV_FILE": str(folder / ".env"),
            "CORRAL_SECRETS": str(folder / "secrets"),
            "CORRAL_TAG": TAG,
            "CORRAL_BIND": "127.0.0.1",
            "CORRAL_PORT": str(port),
            "CORRAL_GRAFANA_PORT": str(grafana_port),
        }

    @property
    def key(self) -> str:
        return (self.folder / "secrets" / "corral_admin_key").read_text().strip()

    def with_variables(self, **variables: str) -> Cluster:
        """The same cluster with other variables; an empty one is treated as unset."""
        other = object.__new__(Cluster)
        other.__dict__ = self.__dict__ | {"_variables": self._variables | variables}
        return other

    def run(self, *command: str, timeout_s: float = 900, fails: bool = False) -> str:
        """The output of the command. Raises Failed if it fails, or with `fails` if it succeeds."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **self._variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        if (done.returncode != 0) != fails:
            raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout.strip()}")
        return done.stdout.strip()

    def compose(self, *command: str, timeout_s: float = 900) -> str:
        return self.run("docker", "compose", "--progress", "quiet", *command, timeout_s=timeout_s)

    def corral(self, *command: str) -> str:
        """Runs the command line in a container, as on a machine that has only Docker."""
        return self.compose("run", "--rm", "--no-TTY", "cli", *command)

    def container(self, service: str) -> dict[str, Any]:
        return self.inspect(self.compose("ps", "--all", "--quiet", service))

    def workers(self) -> list[dict[str, Any]]:
        """The running containers that the agent started."""
        network = f"network={self.project}_back"
        ids = self.run("docker", "ps", "--quiet", "--filter", network, "--filter", "label=ai.corral.replica").split()
        return [self.inspect(container) for container in ids]

    def inspect(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("docker", "inspect", container))[0]
        return found

    def remains(self) -> str:
        """Everything of the cluster that still exists on the engine."""
        project = f"label=com.docker.compose.project={self.project}"
        return "\n".join(
            filter(
                None,
                (
                    self.run("docker", "ps", "--all", "--filter", project, "--format", "container {{.Names}}"),
                    self.run(
                        "docker",
                        "ps",
                        "--all",
                        "--filter",
                        f"label=ai.corral.node={self.node}",
                        "--format",
                        "worker {{.Names}}",
                    ),
                    self.run("docker", "network", "ls", "--filter", project, "--format", "network {{.Name}}"),
                    self.run("docker", "volume", "ls", "--filter", project, "--format", "volume {{.Name}}"),
                ),
            )
        )
