"""EngineSettings: how a replica runs its model, from whoever deploys it to llama.cpp.

The registry keeps them with a deployment, a Start job carries them to the node, the worker gets them as environment variables
(services.protocol.engine_variables). Their limits stand in the types, so that all three refuse the same.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from pydantic import Field

# Each limit twice: msgspec checks messages, pydantic the environment.
Slots = Annotated[int, Meta(ge=1, le=256), Field(ge=1, le=256)]
AtLeastOne = Annotated[int, Meta(ge=1), Field(ge=1)]
NotNegative = Annotated[int, Meta(ge=0), Field(ge=0)]
Layers = Annotated[int, Meta(ge=-1), Field(ge=-1)]
Share = Annotated[float, Meta(ge=0), Field(ge=0)]

#: What llama.cpp stores keys and values as.
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
FlashAttention = Literal["auto", "on", "off"]
SplitMode = Literal["none", "layer", "row"]
Pooling = Literal["", "none", "mean", "cls", "last", "rank"]
_IMAGE = r"^([A-Za-z0-9][A-Za-z0-9._/:@{}-]{0,254})?$"
#: A container image's name; `{backend}` in it stands for what a node's hardware asks for.
Image = Annotated[str, Meta(pattern=_IMAGE), Field(pattern=_IMAGE)]
#: A GGUF with an adapter, as a path on the node or the digest of a blob in its store (`sha256:<hex>`), and its scale.
LoraAdapter = tuple[str, float]

UNQUANTIZED: frozenset[str] = frozenset({"f32", "f16", "bf16"})


#: Sequences in the cache for each that may run.
KEPT_PER_SLOT = 4
#: llama.cpp's own limit (LLAMA_MAX_SEQ).
MAX_SEQUENCES = 256


class EngineSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What each means is said in EngineVariables. 0 (`gpu_layers`: -1, `pooling`: empty) leaves the choice to the worker.
    `image` is for the node that starts it."""

    slots: Slots = 8
    context_tokens: NotNegative = 0
    kv_tokens: NotNegative = 0
    kv_unified: bool = True
    kv_type_k: KvType = "f16"
    kv_type_v: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    batch_tokens: AtLeastOne = 512
    prefill_tokens: NotNegative = 0
    threads: NotNegative = 0
    gpu_layers: Layers = -1
    main_gpu: NotNegative = 0
    split_mode: SplitMode = "layer"
    tensor_split: tuple[Share, ...] = ()
    mmap: bool = True
    mlock: bool = False
    lora: tuple[LoraAdapter, ...] = ()
    pooling: Pooling = ""
    rope_freq_base: Share = 0.0
    rope_freq_scale: Share = 0.0
    image: Image = ""

    @property
    def sequences(self) -> int:
        """That the cache keeps, running or not. Where they share their cells, one costs nothing but what it keeps, so there are more
        than may run."""
        return max(self.slots, min(KEPT_PER_SLOT * self.slots, MAX_SEQUENCES)) if self.kv_unified else self.slots

    def __post_init__(self) -> None:
        """Raises ValueError; where settings are decoded, that comes as a ValidationError."""
        if self.kv_type_v not in UNQUANTIZED and self.flash_attention == "off":
            raise ValueError(f"kv_type_v {self.kv_type_v} needs flash attention, which flash_attention turns off")
