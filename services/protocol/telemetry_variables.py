"""What every service tells of itself and to whom: settings that all of them share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.protocol.secrets import secrets_folder

MetricsPort = int | Literal["auto"]


class TelemetryVariables(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CORRAL_", secrets_dir=secrets_folder())

    metrics_host: str = Field(default="127.0.0.1", description="Address that the service's metrics are served on.")
    metrics_port: MetricsPort = Field(
        default=0, description="Port that they are served on; 0: they are not; `auto`: any that is free (see docs/metrics.md)."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="`json`: one object for each event, among them the beginning and the end of every request."
    )
    otlp_endpoint: str = Field(
        default="",
        description="An OpenTelemetry collector, such as http://127.0.0.1:4318, that is sent the spans of every request by OTLP over "
        "HTTP; empty: none are made. Needs the extra `tracing`.",
    )

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _a_port(cls, port: object) -> object:
        text = str(port).strip()
        if text == "auto":
            return text
        if not text.isdecimal() or int(text) > 65535:
            raise ValueError(f'"{text}" is no port; say it like 9464, 0 for none, or auto')
        return int(text)

    @field_validator("otlp_endpoint")
    @classmethod
    def _a_url(cls, endpoint: str) -> str:
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f'"{endpoint}" is no http:// or https:// address')
        return endpoint.rstrip("/")
