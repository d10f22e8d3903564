"""Whether and how a model is pooled. A pooled model turns a text into one vector, or one score, and does not generate. Pure.

A GGUF names its pooling in `<arch>.pooling_type` (llama.cpp's llama_pooling_type), which Ollama reads too. Encoders are always
pooled.
"""

from __future__ import annotations

from services.protocol.engine import Pooling
from services.weights.shape import ModelShape

_TYPES: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last", 4: "rank"}

#: llama.cpp's architectures without a decoder (llama_arch in src/llama-arch.cpp).
ENCODERS = frozenset(
    {
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
        "t5encoder",
    }
)


def pooling_of(shape: ModelShape, setting: Pooling = "") -> Pooling:
    """`setting`, or else the pooling type of the file; `none` if the model generates. The default for an encoder is `mean`."""
    pooling = setting or _TYPES.get(shape.pooling_type or 0, "none")
    return "mean" if pooling == "none" and shape.architecture in ENCODERS else pooling
