"""EngineSettings as environment variables: a registry's defaults, and what a node agent tells its workers."""

from __future__ import annotations

from typing import Self

import msgspec
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.protocol.engine import (
    AtLeastOne,
    EngineSettings,
    FlashAttention,
    Image,
    KvType,
    Layers,
    LoraAdapter,
    NotNegative,
    Pooling,
    Share,
    Slots,
    SplitMode,
)
from services.protocol.secrets import secrets_folder

PREFIX = "CORRAL_"

_DEFAULT = EngineSettings()


class EngineVariables(BaseSettings):
    """A variable for each field of EngineSettings, of the same name and default. Those that hold several values are JSON."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, secrets_dir=secrets_folder())

    slots: Slots = Field(default=_DEFAULT.slots, description="Requests that a replica answers at the same time.")
    context_tokens: NotNegative = Field(
        default=_DEFAULT.context_tokens,
        description="Context of one slot in tokens; 0: what the model was trained for, at most 4,096.",
    )
    kv_tokens: NotNegative = Field(
        default=_DEFAULT.kv_tokens,
        description="Cells of the KV cache, one for each token that all slots together hold; 0: slots x context. Fewer take less "
        "memory; where they run out, the youngest requests wait.",
    )
    kv_unified: bool = Field(
        default=_DEFAULT.kv_unified,
        description="One KV buffer for all slots instead of one stream for each. Measured on two cores with eight completions "
        "of Gemma 3 270M: 0.52 of the time of eight in a row, against 0.92 with streams.",
    )
    kv_type_k: KvType = Field(
        default=_DEFAULT.kv_type_k,
        description="What keys are stored as: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.",
    )
    kv_type_v: KvType = Field(
        default=_DEFAULT.kv_type_v, description="What values are stored as; the quantised types need flash attention."
    )
    flash_attention: FlashAttention = Field(
        default=_DEFAULT.flash_attention, description="auto: where the device of each layer can; on; off."
    )
    batch_tokens: AtLeastOne = Field(default=_DEFAULT.batch_tokens, description="Tokens in one llama_decode at most.")
    prefill_tokens: NotNegative = Field(
        default=_DEFAULT.prefill_tokens,
        description="Prompt tokens in one batch while others decode: larger starts answers sooner, smaller keeps running ones "
        "fluent; 0: the worker chooses.",
    )
    threads: NotNegative = Field(default=_DEFAULT.threads, description="CPU threads; 0: every core that the process may use.")
    gpu_layers: Layers = Field(
        default=_DEFAULT.gpu_layers, description="Layers kept on accelerators, where there are any; -1: all."
    )
    main_gpu: NotNegative = Field(
        default=_DEFAULT.main_gpu, description="The accelerator that takes all where split_mode is none."
    )
    split_mode: SplitMode = Field(
        default=_DEFAULT.split_mode,
        description="How a model is spread over several accelerators: not at all (none), by whole layers (layer), or each layer by "
        "its rows (row).",
    )
    tensor_split: tuple[Share, ...] = Field(
        default=_DEFAULT.tensor_split,
        description="Share of each accelerator, as a JSON list such as [3, 1]; empty: by their free memory.",
    )
    mmap: bool = Field(default=_DEFAULT.mmap, description="Map the model's file into memory instead of reading it.")
    mlock: bool = Field(default=_DEFAULT.mlock, description="Keep the weights from being swapped out.")
    lora: tuple[LoraAdapter, ...] = Field(
        default=_DEFAULT.lora,
        description="LoRA adapters, as a JSON list of [file, scale]; a file is a path on the node or the digest of a blob there.",
    )
    pooling: Pooling = Field(
        default=_DEFAULT.pooling,
        description="How an embedding model makes one vector of many: none, mean, cls, last or rank; empty: as the model says.",
    )
    rope_freq_base: Share = Field(default=_DEFAULT.rope_freq_base, description="Base of RoPE's frequencies; 0: the model's.")
    rope_freq_scale: Share = Field(
        default=_DEFAULT.rope_freq_scale,
        description="Factor of RoPE's frequencies: 0.5 stretches the trained context to twice its length; 0: the model's.",
    )
    image: Image = Field(
        default=_DEFAULT.image,
        description="Container image with another build of the worker, for nodes with the Docker runtime; `{backend}` in it is "
        "filled in there: cpu, cuda, rocm or vulkan. Empty: the node's own.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ = self.engine
        return self

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(**{name: getattr(self, name) for name in EngineSettings.__struct_fields__})


def to_environment(engine: EngineSettings) -> dict[str, str]:
    """All of them: a default that is left out would leave what the environment already says."""
    return {f"{PREFIX}{name.upper()}": _text(value) for name, value in msgspec.structs.asdict(engine).items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
