"""The node agent's settings: environment variables with the prefix CORRAL_. Also the environments of its child processes."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, field_validator
from pydantic_settings import SettingsConfigDict

from services.node.downloads.addresses import AllowedHosts
from services.process.secrets import SecretUrl, secrets_folder
from services.telemetry.exposition import NOT_LISTED
from services.telemetry.variables import TelemetryVariables

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")

#: The metrics port of workers in containers that have their own network address.
CONTAINER_METRICS_PORT = 9464

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|DATABASE_URL|^PG", re.IGNORECASE)
#: Our settings that count tokens: their names match _SECRET, but they are no secrets.
_COUNT = re.compile(r"^CORRAL_\w+_TOKEN(S|_S)$")
_CORRAL_VARIABLES = re.compile(r"^CORRAL_")
_INDEX = re.compile(r"^(PIP|UV)_")
_FOR_CONTAINERS = re.compile(r"^(CORRAL|GGML|GOMP|HSA|LLAMA|OMP|OTEL)_")


class Settings(TelemetryVariables):
    model_config = SettingsConfigDict(env_prefix="CORRAL_", secrets_dir=secrets_folder())

    redis_url: SecretUrl = Field(
        default="redis://127.0.0.1:6379/0", description="URL of Redis: jobs come from it and reports go to it."
    )
    node: str = Field(
        default="", validate_default=True, description="Name of this machine, unique in the cluster. Empty: its host name."
    )
    store: Path = Field(
        default=Path("~/.local/state/corral/models"), description="Folder with the models, laid out like Ollama's."
    )
    state: Path = Field(default=Path("~/.local/state/corral/node"), description="Folder for pid files and the workers' logs.")
    adapters: Path | None = Field(
        default=None,
        description="Folder with files that a deployment may name as LoRA adapters. Unset: only files in the store.",
    )
    runtime: Literal["processes", "docker"] = Field(
        default="processes", description="How workers run: `processes` of the agent's user, or containers (`docker`)."
    )
    worker_image: str = Field(
        default="corral-worker:dev-{backend}",
        min_length=1,
        description="docker: image of the workers; `{backend}` is replaced by the backend. The agent does not pull it: "
        "the image must be on the machine.",
    )
    worker_network: str = Field(
        default="bridge", min_length=1, description="docker: network that workers join; they must reach Redis from it."
    )
    store_volume: str = Field(
        default="",
        description="docker: named volume or host folder that contains the store. Workers mount it read-only, under the "
        "agent's path. Empty: the agent runs on the host, and CORRAL_STORE is a path on the host.",
    )
    backend: Literal["auto", "cpu", "cuda", "rocm", "vulkan"] = Field(
        default="auto",
        description="docker: llama.cpp build that workers run. `auto`: the fastest one whose image is on the machine and "
        "finds an accelerator, otherwise cpu.",
    )
    gpus: tuple[NonNegativeInt, ...] = Field(
        default=(),
        description="docker: numbers of the accelerators that workers may use, as a JSON list such as [0, 2]; NVIDIA's "
        "are those of nvidia-smi. Empty: all.",
    )
    runner: Literal["llama", "fake"] = Field(
        default="llama", description="What workers run: `llama` is llama.cpp, `fake` generates scripted tokens, for tests."
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        description="Time for a stopping worker to finish or hand over its requests; 5 s after that it is killed.",
    )
    job_threads: int = Field(
        default=16,
        ge=2,
        description="How many jobs run at the same time. They mostly wait for networks and for draining workers; with "
        "fewer, long pulls would delay starts.",
    )
    source_hosts: str = Field(
        default="",
        description="Hosts that models may be pulled from although they have no public address (this machine, the local "
        "network): a comma-separated list of names, addresses and networks such as files.lan,10.0.0.0/8.",
    )
    import_paths: str | None = Field(
        default=None,
        description="Folders whose GGUF files may be pulled by their path: a comma-separated list. Unset: with "
        "`processes`, every file that the agent may read; with `docker`, /import.",
    )
    pull_bytes_per_s: int = Field(
        default=0,
        ge=0,
        description="Limit on the bytes per second of all downloads from URLs together. 0: no limit.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe level that is logged."
    )

    @field_validator("node")
    @classmethod
    def _node_is_a_name(cls, node: str) -> str:
        node = node or socket.gethostname()
        if not _NAME.fullmatch(node):
            raise ValueError(
                "a node's name must have at most 63 letters, digits, '.', '-' and '_', and start with a letter, a digit or '_'"
            )
        return node

    @field_validator("adapters", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return value or None

    @field_validator("source_hosts")
    @classmethod
    def _hosts(cls, text: str) -> str:
        AllowedHosts.parse(text)
        return text

    @field_validator("gpus")
    @classmethod
    def _each_once(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(numbers)))

    @field_validator("store", "state")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @property
    def import_folders(self) -> tuple[Path, ...]:
        unset = "/" if self.runtime == "processes" else "/import"
        entries = (unset if self.import_paths is None else self.import_paths).split(",")
        return tuple(Path(entry.strip()).expanduser() for entry in entries if entry.strip())


def worker_metrics(settings: Settings) -> dict[str, str]:
    """The workers' settings for serving metrics: address, port, and the address to list them under."""
    if not settings.metrics_port:
        return {"CORRAL_METRICS_PORT": "0"}
    if settings.runtime == "processes" or settings.worker_network == "host":  # they share the machine's ports
        return {
            "CORRAL_METRICS_HOST": settings.metrics_host,
            "CORRAL_METRICS_PORT": "auto",
            "CORRAL_METRICS_ADVERTISE": settings.metrics_advertise,
        }
    # If an address to advertise is set, Prometheus is on another machine and cannot reach the containers' network.
    advertise = NOT_LISTED if settings.metrics_advertise else ""
    return {
        "CORRAL_METRICS_HOST": "0.0.0.0",
        "CORRAL_METRICS_PORT": str(CONTAINER_METRICS_PORT),
        "CORRAL_METRICS_ADVERTISE": advertise,
    }


def pip_environment() -> dict[str, str]:
    """The agent's environment (proxies, certificates, the site's package index) without CORRAL_ variables and secrets."""
    return _environment_without(_CORRAL_VARIABLES)


def worker_environment() -> dict[str, str]:
    """The agent's environment (CUDA_VISIBLE_DEVICES, the worker's settings) without secrets and without the settings of pip and
    uv, whose URLs may contain passwords."""
    return _environment_without(_INDEX)


def container_environment() -> dict[str, str]:
    """The variables of the agent's environment that are meant for workers in containers. Others, such as PATH, come from the
    image."""
    return {name: value for name, value in _environment_without(_INDEX).items() if _FOR_CONTAINERS.search(name)}


def _environment_without(names: re.Pattern[str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _is_secret(name) and not names.search(name)}


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _COUNT.match(name)
