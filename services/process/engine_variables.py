"""EngineSettings as environment variables: the defaults of a registry, and the settings that a node agent gives its workers."""

from __future__ import annotations

from typing import Self

import msgspec
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.process.secrets import secrets_folder
from services.protocol.engine import (
    BatchTokens,
    DeviceNumber,
    EngineSettings,
    FlashAttention,
    Image,
    KvType,
    Layers,
    LoraAdapters,
    Pooling,
    PrefillTokens,
    Share,
    Shares,
    Slots,
    SplitMode,
    Threads,
    Tokens,
)

PREFIX = "CORRAL_"

_DEFAULT = EngineSettings()


class EngineVariables(BaseSettings):
    """One variable for each field of EngineSettings, with the same name and default. Variables with several values are JSON."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, secrets_dir=secrets_folder())

    slots: Slots = Field(default=_DEFAULT.slots, description="How many requests a replica answers at the same time.")
    context_tokens: Tokens = Field(
        default=_DEFAULT.context_tokens,
        description="Context of one slot, in tokens. 0: what the model was trained for, at most 32,768; all slots then "
        "share the cells of the KV cache, and a long context takes cells only as it fills. Embedding models, "
        "0: inputs of at most 4,096 tokens.",
    )
    kv_tokens: Tokens = Field(
        default=_DEFAULT.kv_tokens,
        description="Cells of the KV cache for all slots together; each holds one token. 0: slots x context, or, if the "
        "context is not set, 4,096 for each slot and at least 32,768, but never more than slots x context. "
        "Fewer cells take less memory; when they run out, the newest requests wait.",
    )
    kv_unified: bool = Field(
        default=_DEFAULT.kv_unified,
        description="One KV buffer for all slots, instead of one stream per slot. Eight completions of Gemma 3 270M at "
        "once, on two cores, took 0.52 of the time of eight in a row; 0.92 with streams.",
    )
    kv_type_k: KvType = Field(
        default=_DEFAULT.kv_type_k,
        description="Data type of the keys in the KV cache: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.",
    )
    kv_type_v: KvType = Field(
        default=_DEFAULT.kv_type_v,
        description="Data type of the values in the KV cache; the quantised types need flash attention.",
    )
    flash_attention: FlashAttention = Field(
        default=_DEFAULT.flash_attention, description="Flash attention: `on`, `off`, or `auto`: on if the devices support it."
    )
    batch_tokens: BatchTokens = Field(
        default=_DEFAULT.batch_tokens, description="Maximum number of tokens in a batch (one llama_decode)."
    )
    prefill_tokens: PrefillTokens = Field(
        default=_DEFAULT.prefill_tokens,
        description="Maximum number of prompt tokens in a batch in which other sequences decode. More start answers "
        "sooner, fewer keep running answers smooth. 0: the worker chooses (CORRAL_PREFILL_S).",
    )
    threads: Threads = Field(
        default=_DEFAULT.threads,
        description="CPU threads. 0: one for each core that other programs leave free; the number changes while the replica runs.",
    )
    gpu_layers: Layers = Field(
        default=_DEFAULT.gpu_layers, description="How many layers run on accelerators, if the node has any; -1: all."
    )
    main_gpu: DeviceNumber = Field(
        default=_DEFAULT.main_gpu, description="Number of the accelerator to use if CORRAL_SPLIT_MODE is `none`."
    )
    split_mode: SplitMode = Field(
        default=_DEFAULT.split_mode,
        description="How a model is split over several accelerators: not at all (`none`), by layers (`layer`), or each "
        "layer by rows (`row`).",
    )
    tensor_split: Shares = Field(
        default=_DEFAULT.tensor_split,
        description="Share of the model on each accelerator, as a JSON list such as [3, 1]. Empty: in proportion to their "
        "free memory.",
    )
    mmap: bool = Field(default=_DEFAULT.mmap, description="Map the model's file into memory instead of reading it.")
    mlock: bool = Field(default=_DEFAULT.mlock, description="Lock the weights in memory, so that they are not swapped out.")
    lora: LoraAdapters = Field(
        default=_DEFAULT.lora,
        description="LoRA adapters, as a JSON list of [file, scale]. A file is the digest of a blob in the node's store, "
        "or a path in the store or in the node's CORRAL_ADAPTERS.",
    )
    pooling: Pooling = Field(
        default=_DEFAULT.pooling,
        description="How an embedding model combines its tokens' vectors into one result: none, mean, cls, last or rank. "
        "Empty: as in the model's file.",
    )
    rope_freq_base: Share = Field(default=_DEFAULT.rope_freq_base, description="Base of the RoPE frequencies; 0: the model's.")
    rope_freq_scale: Share = Field(
        default=_DEFAULT.rope_freq_scale,
        description="Factor of the RoPE frequencies: 0.5 stretches the trained context to twice its length; 0: the model's.",
    )
    image: Image = Field(
        default=_DEFAULT.image,
        description="Container image of the worker, for nodes with the Docker runtime; the node replaces `{backend}` by "
        "cpu, cuda, rocm or vulkan. Empty: the node's CORRAL_WORKER_IMAGE.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ = self.engine
        return self

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(**{name: getattr(self, name) for name in EngineSettings.__struct_fields__})


def to_environment(engine: EngineSettings) -> dict[str, str]:
    """Every setting, including defaults: a variable that is left out would keep its value from the worker's inherited environment."""
    return {f"{PREFIX}{name.upper()}": _text(value) for name, value in msgspec.structs.asdict(engine).items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
