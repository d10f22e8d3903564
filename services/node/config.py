"""Every setting of a node agent: environment variables with the prefix CORRAL_. The only reader of the environment."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, field_validator
from pydantic_settings import SettingsConfigDict

from services.protocol.secrets import SecretUrl, secrets_folder
from services.protocol.telemetry_variables import TelemetryVariables

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|DATABASE_URL|^PG", re.IGNORECASE)
#: Ours that count tokens.
_COUNT = re.compile(r"^CORRAL_\w+_TOKEN(S|_S)$")
_OURS = re.compile(r"^CORRAL_")
_INDEX = re.compile(r"^(PIP|UV)_")
_FOR_CONTAINERS = re.compile(r"^(CORRAL|GGML|HSA|LLAMA|OTEL)_")


class Settings(TelemetryVariables):
    model_config = SettingsConfigDict(env_prefix="CORRAL_", secrets_dir=secrets_folder())

    redis_url: SecretUrl = Field(default="redis://127.0.0.1:6379/0", description="Redis that jobs come from and reports go to.")
    node: str = Field(
        default="", validate_default=True, description="Name of this machine, unique in the cluster; empty: its host name."
    )
    store: Path = Field(default=Path("~/.local/state/corral/models"), description="Models on disk, laid out like Ollama's.")
    state: Path = Field(
        default=Path("~/.local/state/corral/node"), description="Where the agent keeps pid files and the workers' logs."
    )
    runtime: Literal["processes", "docker"] = Field(
        default="processes", description="How workers run: as processes of the agent's user, or as containers beside the agent."
    )
    worker_image: str = Field(
        default="corral-worker:dev-{backend}",
        min_length=1,
        description="docker: image of the workers; `{backend}` is filled in. The agent pulls nothing: the image is on the machine.",
    )
    worker_network: str = Field(
        default="bridge", min_length=1, description="docker: network that workers join; they have to reach Redis there."
    )
    store_volume: str = Field(
        default="",
        description="docker: named volume, or folder of the host, that holds the store; workers get it read-only, under the same path "
        "as the agent. Empty: the agent runs on the host, and the store's path is the host's.",
    )
    backend: Literal["auto", "cpu", "cuda", "rocm", "vulkan"] = Field(
        default="auto",
        description="docker: which llama.cpp workers run. auto: the fastest whose image is there and finds an accelerator, or cpu.",
    )
    gpus: tuple[NonNegativeInt, ...] = Field(
        default=(),
        description="docker: numbers of the accelerators that workers may use, as a JSON list such as [0, 2]; empty: all. "
        "NVIDIA's count as in nvidia-smi.",
    )
    runner: Literal["llama", "fake"] = Field(default="llama", description="What workers run: llama.cpp, or scripted tokens.")
    drain_s: float = Field(default=30.0, ge=0, description="How long a worker that is stopped may finish its requests.")
    job_threads: int = Field(
        default=16,
        ge=2,
        description="Jobs done at the same time. They wait for networks and for workers that drain, so there are many: a few "
        "long pulls must not hold up a start.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least severe line logged.")

    @field_validator("node")
    @classmethod
    def _node_is_a_name(cls, node: str) -> str:
        node = node or socket.gethostname()
        if not _NAME.fullmatch(node):
            raise ValueError("a node's name has at most 63 letters, digits, '.', '-' and '_'")
        return node

    @field_validator("gpus")
    @classmethod
    def _each_once(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(numbers)))

    @field_validator("store", "state")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()


def pip_environment() -> dict[str, str]:
    """The agent's own environment (proxies, certificates, the site's package index) without anything of the platform."""
    return _environment_without(_OURS)


def worker_environment() -> dict[str, str]:
    """The agent's own environment (CUDA_VISIBLE_DEVICES, the worker's settings) without package indexes: their URLs may hold
    passwords."""
    return _environment_without(_INDEX)


def container_environment() -> dict[str, str]:
    """What of the agent's own environment is meant for workers in containers: they have their image's, not the agent's PATH."""
    return {name: value for name, value in _environment_without(_INDEX).items() if _FOR_CONTAINERS.search(name)}


def _environment_without(names: re.Pattern[str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _is_secret(name) and not names.search(name)}


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _COUNT.match(name)
