"""Settings of the command line. Only this module reads the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.cli.errors import CommandError

#: The folder in which a container finds the API key, as the file `corral_api_key`. See services.process.secrets.
_SECRETS = Path("/run/secrets")


class Settings(BaseSettings):
    """Settings of the commands and of `corral up`."""

    model_config = SettingsConfigDict(
        env_prefix="CORRAL_", env_ignore_empty=True, populate_by_name=True, secrets_dir=_SECRETS if _SECRETS.is_dir() else None
    )

    host: str = Field(
        default="127.0.0.1:11434",
        validation_alias=AliasChoices("CORRAL_HOST", "OLLAMA_HOST"),
        description="Address of the gateway: where commands send their requests and where `corral up` listens. "
        "`[scheme://]host[:port][/path]`; OLLAMA_HOST is read if CORRAL_HOST is not set.",
    )
    api_key: SecretStr | None = Field(default=None, description="The API key that commands send.")
    auth: Literal["required", "off"] | None = Field(
        default=None,
        description="Whether the gateway that `corral up` starts needs API keys; see the gateway's setting. If it does, `corral up` "
        "creates the first admin key.",
    )
    home: Path = Field(
        default=Path("~/.corral"),
        description="Folder of `corral up` for databases, models, secrets and logs. Two instances cannot use the same folder.",
    )
    min_free_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="Free disk space that `corral up` needs to start; PostgreSQL stops if the disk is full.",
    )
    queue_memory_bytes: int | None = Field(
        default=None,
        ge=16 << 20,
        description="Memory limit (`maxmemory`) of the Valkey that `corral up` starts for the queue. Unset: an eighth of the machine's "
        "memory, at most 1 GiB. New requests are refused with 503 when 90 % of it is used.",
    )
    metrics_port: str = Field(
        default="auto",
        description="`auto`: each service that `corral up` starts serves its metrics on a free port (docs/metrics.md says how to find "
        "it). `0`: metrics are not served.",
    )
    up_timeout_s: float = Field(
        default=120,
        gt=0,
        description="How long `corral up` waits for each service to become ready. The first start takes longest, above all on a slow disk.",
    )


def load_settings() -> Settings:
    """Loads the settings. Raises CommandError naming the variable that is invalid."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = name if name.isupper() else f"CORRAL_{name.upper()}"
        raise CommandError(f"{variable}: {first['msg']}") from None


def inherited_environment() -> dict[str, str]:
    """The environment that the platform's processes inherit: paths, proxies, certificates, and the user's CORRAL_* settings."""
    return dict(os.environ)


def state_folder() -> Path:
    """The XDG state folder, which holds the chat history and the crash log."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "corral"
