"""Every setting of a worker. The node agent sets them; they are environment variables with the prefix CORRAL_."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.protocol.engine_variables import EngineVariables
from services.protocol.secrets import SecretUrl
from services.protocol.telemetry_variables import TelemetryVariables


class Settings(EngineVariables, TelemetryVariables):
    """Of its own, besides those of the engine."""

    redis_url: SecretUrl = Field(description="Redis that queue and reply streams live in.")
    node: str = Field(description="Name of the node that this worker runs on.")
    replica: str = Field(description="Id of the replica that this worker is.")
    version: str = Field(description="Manifest digest (64 hex digits) of the model version to serve.")
    model_path: Path = Field(default=Path(), description="The GGUF file. Not read by the fake runner.")
    runner: Literal["llama", "fake"] = Field(default="llama", description="`fake` answers with scripted tokens, for tests.")
    fake_script: Literal["babble", "recite"] = Field(
        default="babble", description="What the fake runner says: endless words, or what the chat quotes between « and »."
    )
    fake_step_s: float = Field(default=0.0, ge=0, description="Seconds that a step of the fake runner takes.")
    fake_token_s: float = Field(default=0.0, ge=0, description="Seconds that each token of a fake step adds.")
    prefill_s: float = Field(
        default=0.6,
        gt=0,
        description="Where the prompt tokens of a batch are not fixed: seconds by which they may lengthen it while others decode. "
        "More starts answers sooner, less keeps running ones fluent.",
    )
    exact_tokens: int = Field(
        default=64,
        ge=0,
        description="Up to so many tokens of an answer that another worker began are computed one by one, which repeats its rounding; "
        "more are computed with the prompt, which is faster.",
    )
    drain_s: float = Field(default=30.0, ge=0, description="How long running requests may go on after SIGTERM.")
    lease_ms: int = Field(default=3000, ge=500, description="How long a silent worker counts as alive.")
    report_s: float = Field(default=1.0, gt=0, description="Time between two reports.")
    pulse: Path | None = Field(
        default=None, description="A file to touch after each report that Redis took, for health checks; unset: none."
    )
    orphan_s: float = Field(default=60.0, gt=0, description="A worker whose node has been silent for so long ends itself.")
