"""Every setting of a node agent: environment variables with the prefix CORRAL_. The only reader of the environment."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.protocol.telemetry_variables import TelemetryVariables

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|DATABASE_URL|^PG", re.IGNORECASE)
_OURS = re.compile(r"^CORRAL_")
_INDEX = re.compile(r"^(PIP|UV)_")


class Settings(TelemetryVariables):
    model_config = SettingsConfigDict(env_prefix="CORRAL_")

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="Redis that jobs come from and reports go to.")
    node: str = Field(
        default="", validate_default=True, description="Name of this machine, unique in the cluster; empty: its host name."
    )
    store: Path = Field(default=Path("~/.local/state/corral/models"), description="Models on disk, laid out like Ollama's.")
    state: Path = Field(
        default=Path("~/.local/state/corral/node"), description="Where the agent keeps pid files and the workers' logs."
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


def _environment_without(names: re.Pattern[str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name) and not names.search(name)}
