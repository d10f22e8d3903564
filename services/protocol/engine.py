"""EngineSettings: how a replica runs its model.

The registry stores them with a deployment, a Start job carries them to the node, and the worker gets them as environment variables
(services.process.engine_variables). The types contain the limits, so that all three reject the same values.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from pydantic import Field

#: llama.cpp's own limit on the sequences of a batch or a cache (LLAMA_MAX_SEQ).
MAX_SEQUENCES = 256

# Each limit is given twice: msgspec checks messages, pydantic checks environment variables.
Slots = Annotated[int, Meta(ge=1, le=MAX_SEQUENCES), Field(ge=1, le=MAX_SEQUENCES)]
Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1), Field(ge=0, le=2**31 - 1)]
BatchTokens = Annotated[int, Meta(ge=1, le=2**20), Field(ge=1, le=2**20)]
PrefillTokens = Annotated[int, Meta(ge=0, le=2**20), Field(ge=0, le=2**20)]
#: llama.cpp's own limit (GGML_MAX_N_THREADS).
Threads = Annotated[int, Meta(ge=0, le=512), Field(ge=0, le=512)]
Layers = Annotated[int, Meta(ge=-1, le=100_000), Field(ge=-1, le=100_000)]
#: llama.cpp's limit on accelerators (LLAMA_MAX_DEVICES).
MAX_DEVICES = 16
DeviceNumber = Annotated[int, Meta(ge=0, lt=MAX_DEVICES), Field(ge=0, lt=MAX_DEVICES)]
Share = Annotated[float, Meta(ge=0, le=1e9), Field(ge=0, le=1e9)]
Shares = Annotated[tuple[Share, ...], Meta(max_length=MAX_DEVICES), Field(max_length=MAX_DEVICES)]

#: The data types in which llama.cpp can store keys and values.
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
FlashAttention = Literal["auto", "on", "off"]
SplitMode = Literal["none", "layer", "row"]
#: How the vectors of an input's tokens are combined into one. `rank`: a classifier head turns them into a score. `none`: not at
#: all, the model generates. Empty: as in the model's file.
Pooling = Literal["", "none", "mean", "cls", "last", "rank"]
_IMAGE = r"^([A-Za-z0-9][A-Za-z0-9._/:@{}-]{0,254})?$"
#: The name of a container image. The node replaces `{backend}` by the backend for its hardware.
Image = Annotated[str, Meta(pattern=_IMAGE), Field(pattern=_IMAGE)]
_ADAPTER = r"^(sha256:[0-9a-f]{64}|/.{1,4000})$"
#: The digest of a blob in the node's store, or a path on the node.
AdapterFile = Annotated[str, Meta(pattern=_ADAPTER), Field(pattern=_ADAPTER)]
AdapterScale = Annotated[float, Meta(ge=-100, le=100), Field(ge=-100, le=100)]
#: The adapter's GGUF file, and its scale.
LoraAdapter = tuple[AdapterFile, AdapterScale]
LoraAdapters = Annotated[tuple[LoraAdapter, ...], Meta(max_length=16), Field(max_length=16)]

UNQUANTIZED: frozenset[str] = frozenset({"f32", "f16", "bf16"})


#: How many sequences the unified cache keeps for each slot.
KEPT_PER_SLOT = 4


class EngineSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """EngineVariables describes the fields. The default 0 (`gpu_layers`: -1, `pooling`: empty) leaves the choice to the worker.
    `image` is for the node that starts the worker."""

    slots: Slots = 8
    context_tokens: Tokens = 0
    kv_tokens: Tokens = 0
    kv_unified: bool = True
    kv_type_k: KvType = "f16"
    kv_type_v: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    batch_tokens: BatchTokens = 512
    prefill_tokens: PrefillTokens = 0
    threads: Threads = 0
    gpu_layers: Layers = -1
    main_gpu: DeviceNumber = 0
    split_mode: SplitMode = "layer"
    tensor_split: Shares = ()
    mmap: bool = True
    mlock: bool = False
    lora: LoraAdapters = ()
    pooling: Pooling = ""
    rope_freq_base: Share = 0.0
    rope_freq_scale: Share = 0.0
    image: Image = ""

    @property
    def sequences(self) -> int:
        """How many sequences the cache can keep, running or finished. In a unified cache a sequence takes only the cells that it uses, so
        there are more sequences than slots."""
        return max(self.slots, min(KEPT_PER_SLOT * self.slots, MAX_SEQUENCES)) if self.kv_unified else self.slots

    def __post_init__(self) -> None:
        """Raises ValueError, which msgspec turns into a ValidationError when it decodes settings."""
        if self.kv_type_v not in UNQUANTIZED and self.flash_attention == "off":
            raise ValueError(f"kv_type_v {self.kv_type_v} needs flash attention, which flash_attention turns off")
