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
    """The default 0 (`gpu_layers`: -1, `pooling`: empty) leaves the choice to the worker. `image` is for the node that starts the
    worker."""

    slots: Annotated[Slots, Field(description="How many requests a replica answers at the same time.")] = 8
    context_tokens: Annotated[
        Tokens,
        Field(
            description="Context of one slot, in tokens. 0: what the model was trained for, at most 32,768; all slots then "
            "share the cells of the KV cache, and a long context takes cells only as it fills. Embedding models, "
            "0: inputs of at most 4,096 tokens."
        ),
    ] = 0
    kv_tokens: Annotated[
        Tokens,
        Field(
            description="Cells of the KV cache for all slots together; each holds one token. 0: slots x context, or, if the "
            "context is not set, 4,096 for each slot and at least 32,768, but never more than slots x context. "
            "Fewer cells take less memory; when they run out, the newest requests wait."
        ),
    ] = 0
    kv_unified: Annotated[
        bool,
        Field(
            description="One KV buffer for all slots, instead of one stream per slot. Eight completions of Gemma 3 270M at "
            "once, on two cores, took 0.52 of the time of eight in a row; 0.92 with streams."
        ),
    ] = True
    kv_type_k: Annotated[
        KvType,
        Field(description="Data type of the keys in the KV cache: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl."),
    ] = "f16"
    kv_type_v: Annotated[
        KvType, Field(description="Data type of the values in the KV cache; the quantised types need flash attention.")
    ] = "f16"
    flash_attention: Annotated[
        FlashAttention, Field(description="Flash attention: `on`, `off`, or `auto`: on if the devices support it.")
    ] = "auto"
    batch_tokens: Annotated[BatchTokens, Field(description="Maximum number of tokens in a batch (one llama_decode).")] = 512
    prefill_tokens: Annotated[
        PrefillTokens,
        Field(
            description="Maximum number of prompt tokens in a batch in which other sequences decode. More start answers "
            "sooner, fewer keep running answers smooth. 0: the worker chooses (CORRAL_PREFILL_S)."
        ),
    ] = 0
    threads: Annotated[
        Threads,
        Field(
            description="CPU threads. 0: one for each core that other programs leave free; the number changes while the replica runs."
        ),
    ] = 0
    gpu_layers: Annotated[Layers, Field(description="How many layers run on accelerators, if the node has any; -1: all.")] = -1
    main_gpu: Annotated[DeviceNumber, Field(description="Number of the accelerator to use if CORRAL_SPLIT_MODE is `none`.")] = 0
    split_mode: Annotated[
        SplitMode,
        Field(
            description="How a model is split over several accelerators: not at all (`none`), by layers (`layer`), or each "
            "layer by rows (`row`)."
        ),
    ] = "layer"
    tensor_split: Annotated[
        Shares,
        Field(
            description="Share of the model on each accelerator, as a JSON list such as [3, 1]. Empty: in proportion to their "
            "free memory."
        ),
    ] = ()
    mmap: Annotated[bool, Field(description="Map the model's file into memory instead of reading it.")] = True
    mlock: Annotated[bool, Field(description="Lock the weights in memory, so that they are not swapped out.")] = False
    lora: Annotated[
        LoraAdapters,
        Field(
            description="LoRA adapters, as a JSON list of [file, scale]. A file is the digest of a blob in the node's store, "
            "or a path in the store or in the node's CORRAL_ADAPTERS."
        ),
    ] = ()
    pooling: Annotated[
        Pooling,
        Field(
            description="How an embedding model combines its tokens' vectors into one result: none, mean, cls, last or rank. "
            "Empty: as in the model's file."
        ),
    ] = ""
    rope_freq_base: Annotated[Share, Field(description="Base of the RoPE frequencies; 0: the model's.")] = 0.0
    rope_freq_scale: Annotated[
        Share,
        Field(
            description="Factor of the RoPE frequencies: 0.5 stretches the trained context to twice its length; 0: the model's."
        ),
    ] = 0.0
    image: Annotated[
        Image,
        Field(
            description="Container image of the worker, for nodes with the Docker runtime; the node replaces `{backend}` by "
            "cpu, cuda, rocm or vulkan. Empty: the node's CORRAL_WORKER_IMAGE."
        ),
    ] = ""

    @property
    def sequences(self) -> int:
        """How many sequences the cache can keep, running or finished. In a unified cache a sequence takes only the cells that it uses, so
        there are more sequences than slots."""
        return max(self.slots, min(KEPT_PER_SLOT * self.slots, MAX_SEQUENCES)) if self.kv_unified else self.slots

    def __post_init__(self) -> None:
        """Raises ValueError, which msgspec turns into a ValidationError when it decodes settings."""
        if self.kv_type_v not in UNQUANTIZED and self.flash_attention == "off":
            raise ValueError(f"kv_type_v {self.kv_type_v} needs flash attention, which flash_attention turns off")
