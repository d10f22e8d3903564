"""The worker's settings: environment variables with the prefix CORRAL_, which the node agent sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from services.process.engine_variables import EngineVariables
from services.process.secrets import SecretUrl
from services.telemetry.variables import TelemetryVariables


class Settings(EngineVariables, TelemetryVariables):
    """The worker's own settings, besides those of the engine and of telemetry."""

    redis_url: SecretUrl = Field(description="URL of Redis, which holds the queue and the reply streams.")
    node: str = Field(description="Name of the node that this worker runs on.")
    replica: str = Field(description="Id of the replica that this worker runs.")
    version: str = Field(description="Manifest digest of the model version to serve, 64 hex digits.")
    model_path: Path = Field(default=Path(), description="The model's GGUF file. The fake runner does not read it.")
    runner: Literal["llama", "fake"] = Field(
        default="llama", description="`llama` is llama.cpp, `fake` generates scripted tokens, for tests."
    )
    fake_script: Literal["babble", "recite"] = Field(
        default="babble",
        description="What the fake runner generates: endless words (`babble`), or what the chat quotes between « and » "
        "(`recite`).",
    )
    fake_step_s: float = Field(default=0.0, ge=0, description="How long a step of the fake runner takes.")
    fake_token_s: float = Field(default=0.0, ge=0, description="How much each token adds to a step of the fake runner.")
    prefill_s: float = Field(
        default=0.6,
        gt=0,
        description="How much prompt tokens may lengthen a batch in which other sequences decode, if "
        "CORRAL_PREFILL_TOKENS is 0. A higher value starts answers sooner, a lower one keeps running answers "
        "smooth.",
    )
    frame_interval_s: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Interval at which tokens of running answers are sent; 0: as soon as they are generated. The first "
        "token and the end of an answer are always sent at once.",
    )
    exact_tokens: int = Field(
        default=64,
        ge=0,
        description="If another worker generated at most this many tokens of an answer, they are computed one by one, "
        "which reproduces its rounding. More tokens are computed together with the prompt, which is faster.",
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        description="How long a worker waits after SIGTERM until its requests have ended or are handed over to other workers.",
    )
    lease_ms: int = Field(
        default=3000, ge=500, description="Lease of a worker: it counts as lost after this time without a report."
    )
    report_s: float = Field(default=1.0, gt=0, description="Interval between reports.")
    pulse: Path | None = Field(
        default=None, description="File that the worker touches after each successful report, for health checks. Unset: none."
    )
    orphan_s: float = Field(
        default=60.0, gt=0, description="How long the node's agent may be silent before the worker drains and exits."
    )


#: Environment variables that a limited child process inherits. Others may hold credentials, like Redis's.
_INHERITED_VARIABLES = ("PATH", "HOME", "TZ", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_INHERITED_PREFIXES = ("PYTHON", "LC_")


def child_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED_VARIABLES or name.startswith(_INHERITED_PREFIXES)
    }
