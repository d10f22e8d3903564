"""Every setting of a worker. The node agent sets them; they are environment variables with the prefix CORRAL_."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CORRAL_")

    redis_url: str = Field(description="Redis that queue and reply streams live in.")
    node: str = Field(description="Name of the node that this worker runs on.")
    replica: str = Field(description="Id of the replica that this worker is.")
    version: str = Field(description="Manifest digest (64 hex digits) of the model version to serve.")
    model_path: Path = Field(default=Path(), description="The GGUF file. Not read by the fake runner.")
    runner: Literal["llama", "fake"] = Field(default="llama", description="`fake` answers with scripted tokens, for tests.")
    fake_step_s: float = Field(default=0.0, ge=0, description="Seconds that a step of the fake runner takes.")
    fake_token_s: float = Field(default=0.0, ge=0, description="Seconds that each token of a fake step adds.")
    slots: int = Field(default=8, ge=1, le=256, description="Requests that are answered at the same time.")
    context_tokens: int = Field(
        default=0, ge=0, description="Context of one slot in tokens; 0: what the model was trained for, at most 4,096."
    )
    batch_tokens: int = Field(default=512, ge=1, description="Tokens in one llama_decode at most.")
    prefill_tokens: int = Field(
        default=64,
        ge=1,
        description="Prompt tokens in one batch while others decode: larger starts answers sooner, smaller keeps running ones fluent.",
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: every core that the process may use.")
    gpu_layers: int = Field(default=-1, ge=-1, description="Layers on the GPU, where there is one; -1: all.")
    kv_unified: bool = Field(
        default=True,
        description="One KV buffer for all slots instead of one stream for each. Measured on two cores with eight completions "
        "of Gemma 3 270M: 0.52 of the time of eight in a row, against 0.92 with streams.",
    )
    drain_s: float = Field(default=30.0, ge=0, description="How long running requests may go on after SIGTERM.")
    lease_ms: int = Field(default=3000, ge=500, description="How long a silent worker counts as alive.")
    report_s: float = Field(default=1.0, gt=0, description="Time between two reports.")
    orphan_s: float = Field(default=60.0, gt=0, description="A worker whose node has been silent for so long ends itself.")
