"""Every setting of the gateway."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal

import msgspec
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.gateway.limits import Limits
from services.protocol.secrets import SecretUrl, refuse_placeholder, secrets_folder
from services.protocol.telemetry_variables import TelemetryVariables

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11434

_SCHEME_PORTS = {"http": 80, "https": 443}
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:]*))(?::(?P<port>[^:]*))?")


class BindAddress(msgspec.Struct, frozen=True):
    """Where the gateway listens; an empty `host` is every interface."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> BindAddress:
        """Reads the forms of OLLAMA_HOST: `[scheme://]host[:port][/path]`, any part of which may be missing.

        Raises ValueError for a port that is none.
        """
        scheme, separator, rest = text.strip().strip("\"'").rpartition("://")
        authority = rest.partition("/")[0]
        default_port = _SCHEME_PORTS.get(scheme, DEFAULT_PORT) if separator else DEFAULT_PORT
        match = _ADDRESS.fullmatch(authority)
        if match is None:  # a bare IPv6 address
            return cls(authority, default_port)
        host = match["v6"] or match["name"] or ""
        if match["port"] is None:
            return cls(host or DEFAULT_HOST, default_port)
        if not match["port"].isdecimal() or int(match["port"]) > 65535:
            raise ValueError(f'"{match["port"]}" is no port; say it like 127.0.0.1:{DEFAULT_PORT}')
        return cls(host, int(match["port"]))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Settings(TelemetryVariables):
    model_config = SettingsConfigDict(env_prefix="CORRAL_", extra="ignore", populate_by_name=True, secrets_dir=secrets_folder())

    host: str = Field(
        default=f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        validation_alias=AliasChoices("CORRAL_HOST", "OLLAMA_HOST"),
        description="Address that the gateway listens on, in the forms of OLLAMA_HOST, which counts too.",
    )
    door: Path | None = Field(
        default=None,
        description="Unix socket of a process that holds the published port and hands it to every gateway that asks (ops/door/door.py); "
        "unset: CORRAL_HOST is all that is listened on.",
    )
    origins: str = Field(
        default="",
        validation_alias=AliasChoices("CORRAL_ORIGINS", "OLLAMA_ORIGINS"),
        description="Browser origins that may call, besides those of this machine: a comma-separated list in which `*` stands for "
        "anything. OLLAMA_ORIGINS counts too.",
    )
    auth: Literal["required", "off"] | None = Field(
        default=None,
        description="Who must send a key: `required` everyone, `off` nobody; unset: everyone unless the address is a loopback one.",
    )
    redis_url: SecretUrl = Field(default="redis://127.0.0.1:6379/0", description="Redis or Valkey: all that inference needs.")
    registry_url: str = Field(default="http://127.0.0.1:11435", description="The registry, for management requests.")
    registry_token: SecretStr = Field(
        min_length=16, description="Shared with the registry, which wants it as a bearer token; at least 16 characters."
    )
    max_queue: int = Field(
        default=512,
        ge=1,
        validation_alias=AliasChoices("CORRAL_MAX_QUEUE", "OLLAMA_MAX_QUEUE"),
        description="Requests that may wait for one model version; more are refused with 503. OLLAMA_MAX_QUEUE counts too.",
    )
    max_queue_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Part of those that may be one key's; more are refused with 429. A key may have a limit of its own instead.",
    )
    request_timeout_s: float = Field(
        default=600.0,
        gt=0,
        le=12 * 3600,
        description="A request that no worker has begun with after so long is answered with 504, unless its X-Request-Timeout says "
        "otherwise.",
    )
    max_body_bytes: int = Field(default=64 * 1024**2, ge=1, description="A larger request body is refused with 413.")
    shutdown_s: int = Field(
        default=30, ge=0, description="How long answers that are under way may go on after the gateway was told to stop."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Which log lines are written.")
    log_prompts: bool = Field(
        default=False, description="With CORRAL_LOG_FORMAT=json: what callers ask is a part of the log, as they wrote it."
    )

    @field_validator("host")
    @classmethod
    def _bindable(cls, host: str) -> str:
        BindAddress.parse(host)
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
        return Limits(queue=self.max_queue, caller_share=self.max_queue_share, timeout_s=self.request_timeout_s)

    @property
    def bind(self) -> BindAddress:
        return BindAddress.parse(self.host)

    @property
    def key_required(self) -> bool:
        return self.auth == "required" or (self.auth is None and not self.local)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it, as far as is known."""
        return self.bind.loopback and self.door is None
