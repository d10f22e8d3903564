"""Whether a model is pooled: made to give one vector, or one score, of a text instead of going on with it. Pure.

A GGUF says so by `<arch>.pooling_type` (llama.cpp's llama_pooling_type), as Ollama reads it too; encoders can do nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.protocol.engine import Pooling

_TYPES: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last", 4: "rank"}

#: The architectures of llama.cpp that have no decoder (llama_arch in src/llama-arch.cpp).
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


def pooling_of(metadata: Mapping[str, Any], wanted: Pooling = "") -> Pooling:
    """How the model is pooled: as `wanted`, or else as its metadata says; `none` where it generates. An encoder that says nothing
    gives the mean."""
    arch = metadata.get("general.architecture", "")
    said = metadata.get(f"{arch}.pooling_type")
    pooling = wanted or (_TYPES.get(said, "none") if isinstance(said, int) else "none")
    return "mean" if pooling == "none" and arch in ENCODERS else pooling
