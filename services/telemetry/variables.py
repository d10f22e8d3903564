"""Telemetry settings that all services share: metrics, log format and tracing."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.process.secrets import secrets_folder

MetricsPort = int | Literal["auto"]

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


class TelemetryVariables(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CORRAL_", secrets_dir=secrets_folder())

    metrics_host: str = Field(default="127.0.0.1", description="Address on which the service serves its metrics.")
    metrics_port: MetricsPort = Field(
        default=0,
        description="Port for the metrics. `0`: metrics are not served. `auto`: a free port (docs/metrics.md says how to "
        "find it).",
    )
    metrics_advertise: str = Field(
        default="",
        max_length=253,
        description="Host name or IP address at which Prometheus reaches the metrics; `none`: they are served but not "
        "listed. Empty: CORRAL_METRICS_HOST, or, for a wildcard address such as 0.0.0.0, the address from "
        "which this machine connects to Redis. A loopback address is listed only if Redis is on this machine.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="`text`, or `json`: one object per line, including events for the start and the end of every request.",
    )
    otlp_endpoint: str = Field(
        default="",
        description="URL of an OpenTelemetry collector, such as http://127.0.0.1:4318; gateways and workers send it the "
        "spans of every request (OTLP over HTTP). Empty: no spans. Needs the extra `tracing`.",
    )

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _a_port(cls, port: object) -> object:
        text = str(port).strip()
        if text == "auto":
            return text
        if not text.isdecimal() or int(text) > 65535:
            raise ValueError(f'"{text}" is not a port; use a number such as 9464, 0 for none, or auto')
        return int(text)

    @field_validator("metrics_advertise")
    @classmethod
    def _a_host(cls, host: str) -> str:
        if host and not _HOST_NAME.fullmatch(host) and not _is_address(host):
            raise ValueError(f'"{host}" is neither a host name nor an IP address; give one without a port, or none')
        return host

    @field_validator("otlp_endpoint")
    @classmethod
    def _a_url(cls, endpoint: str) -> str:
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f'"{endpoint}" is not an http:// or https:// address')
        return endpoint.rstrip("/")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
