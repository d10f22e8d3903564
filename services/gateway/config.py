"""Every setting of the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.gateway.bodies import BodyLimits
from services.gateway.requests.isolation import Isolation
from services.gateway.requests.limits import Limits
from services.process.address import DEFAULT_HOST, DEFAULT_PORT, Address
from services.process.http_peers import Bounds
from services.process.secrets import SecretUrl, refuse_placeholder, secrets_folder
from services.telemetry.variables import TelemetryVariables


class Settings(TelemetryVariables):
    model_config = SettingsConfigDict(env_prefix="CORRAL_", extra="ignore", populate_by_name=True, secrets_dir=secrets_folder())

    host: str = Field(
        default=f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        validation_alias=AliasChoices("CORRAL_HOST", "OLLAMA_HOST"),
        description="Address that the gateway listens on, as `[scheme://]host[:port][/path]`. OLLAMA_HOST is read if "
        "CORRAL_HOST is not set.",
    )
    door: Path | None = Field(
        default=None,
        description="Unix socket of the door (ops/door/door.py), a process that holds the published port and hands it to "
        "every gateway that connects. Unset: the gateway listens on CORRAL_HOST only.",
    )
    origins: str = Field(
        default="",
        validation_alias=AliasChoices("CORRAL_ORIGINS", "OLLAMA_ORIGINS"),
        description="Browser origins that may call, in addition to those of this machine: a comma-separated list; each "
        "may contain one `*`, which matches anything. OLLAMA_ORIGINS is read if CORRAL_ORIGINS is not set.",
    )
    auth: Literal["required", "off"] | None = Field(
        default=None,
        description="Whether requests need an API key: `required` or `off`. Unset: required, unless CORRAL_HOST is a "
        "loopback address and CORRAL_DOOR is not set.",
    )
    redis_url: SecretUrl = Field(
        default="redis://127.0.0.1:6379/0", description="URL of Redis or Valkey, the only service that inference needs."
    )
    registry_url: str = Field(
        default="http://127.0.0.1:11435", description="URL of the registry, to which management requests are forwarded."
    )
    registry_token: SecretStr = Field(
        min_length=16, description="Secret shared with the registry, sent to it as a bearer token; at least 16 characters."
    )
    max_queue: int = Field(
        default=512,
        ge=1,
        validation_alias=AliasChoices("CORRAL_MAX_QUEUE", "OLLAMA_MAX_QUEUE"),
        description="How many requests may wait for one model version; further ones are refused with 503. "
        "OLLAMA_MAX_QUEUE is read if CORRAL_MAX_QUEUE is not set.",
    )
    max_queue_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Share of CORRAL_MAX_QUEUE that one key may fill; further requests are refused with 429. A key's own "
        "limit replaces it; requests without a key are not limited by it.",
    )
    request_timeout_s: float = Field(
        default=600.0,
        gt=0,
        le=12 * 3600,
        description="Maximum time in the queue; after that the request fails with 504. X-Request-Timeout overrides it.",
    )
    max_keep_alive_s: float = Field(
        default=3600.0,
        description="Longest keep_alive that a request may ask for; a longer or unlimited one is shortened to it. Admin "
        "keys are exempt. Negative: no limit.",
    )
    max_body_bytes: int = Field(
        default=8 * 1024**2, ge=1, description="Largest request body; a larger one is refused with 413."
    )
    max_body_bytes_in_flight: int = Field(
        default=32 * 1024**2,
        ge=1,
        description="Total size of the bodies of all unanswered requests; a request that would exceed it is refused with "
        "503. One key, or one address without keys, may use half of it; beyond that it gets 429. A parsed "
        "body can take 24 times its size in memory.",
    )
    body_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="How long the gateway waits for the next bytes of a body; then it answers 408. A body that "
        "falls more than this behind a rate of 8 kB/s is answered with 408 too.",
    )
    max_connections: int = Field(
        default=4096,
        ge=1,
        description="How many client connections may be open; a further one is answered with 503 and closed.",
    )
    max_connections_per_address: int = Field(
        default=2048,
        ge=1,
        description="How many connections one IPv4 address or one IPv6 /64 network may have open; a further one is "
        "answered with 503 and closed.",
    )
    shutdown_s: int = Field(default=30, ge=0, description="How long running answers may continue after SIGTERM.")
    isolation: Isolation = Field(
        default=Isolation.TEAM,
        description="Which requests may reuse each other's cached prefixes: `all`, those of one `team` (keys without a "
        "team form one team), or those of one `key`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is logged."
    )
    log_requests: bool = Field(
        default=False,
        description="With CORRAL_LOG_FORMAT=text: log one line for each request when it ends. `corral up` turns this on "
        "and shows the lines.",
    )
    log_prompts: bool = Field(default=False, description="With CORRAL_LOG_FORMAT=json: log the prompts as callers sent them.")

    @field_validator("host")
    @classmethod
    def _bindable(cls, host: str) -> str:
        Address.parse(host)
        return host

    @field_validator("registry_token")
    @classmethod
    def _no_placeholder(cls, token: SecretStr) -> SecretStr:
        refuse_placeholder(token.get_secret_value())
        return token

    @field_validator("auth", "door", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return value or None

    @property
    def limits(self) -> Limits:
        return Limits(
            queue=self.max_queue,
            caller_share=self.max_queue_share,
            timeout_s=self.request_timeout_s,
            keep_alive_s=self.max_keep_alive_s if self.max_keep_alive_s >= 0 else None,
        )

    @property
    def body_limits(self) -> BodyLimits:
        in_flight = max(self.max_body_bytes, self.max_body_bytes_in_flight)
        return BodyLimits(self.max_body_bytes, in_flight, stall_s=self.body_timeout_s)

    @property
    def bounds(self) -> Bounds:
        return Bounds(connections=self.max_connections, connections_per_peer=self.max_connections_per_address)

    @property
    def bind(self) -> Address:
        return Address.parse(self.host)

    @property
    def key_required(self) -> bool:
        return self.auth == "required" or (self.auth is None and not self.local)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the gateway. False with a door, whose address the gateway doesn't know."""
        return self.bind.loopback and self.door is None
