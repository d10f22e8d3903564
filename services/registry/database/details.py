"""Describes a version in Ollama's terms: details, capabilities, model_info. Pure."""

from __future__ import annotations

from typing import Any

from services.protocol.engine import EngineSettings, Pooling
from services.protocol.errors import InvalidModelFile
from services.protocol.routes import VersionRoute
from services.registry.database.abilities import abilities
from services.registry.database.tables import Version
from services.weights.memory import slot_context_tokens
from services.weights.pooling import pooling_of
from services.weights.shape import ModelShape

#: Left out of model_info, as Ollama does: the template has its own field, and the file's name for the model is not ours.
_HIDDEN = frozenset({"general.name", "tokenizer.chat_template"})

_SCALES = ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0))


def parameter_size(count: int) -> str:
    """As Ollama writes it: 3.2B, 134.52M, 7B."""
    for scale, letter, digits in _SCALES:
        if count >= scale:
            return f"{count // scale}{letter}" if count % scale == 0 else f"{count / scale:.{digits}f}{letter}"
    return str(count)


def capabilities(version: Version, pooling: Pooling) -> tuple[str, ...]:
    """What the version can do. A model with pooling, by its metadata or its deployment's setting, embeds or reranks. Any other
    completes text, and chats if it has a chat template. Empty if its metadata is unusable; loading it gives the reason."""
    try:
        shape = ModelShape.of(version.metadata_)
    except InvalidModelFile:
        return ()
    match pooling_of(shape, pooling):
        case "rank":
            return ("rerank",)
        case "mean" | "cls" | "last":
            return ("embedding",)
    chat = ("chat",) if version.template else ()
    return ("completion", *chat, *abilities(version.template, version.metadata_))


def version_route(version: Version, pooling: Pooling, fixed: EngineSettings | None) -> VersionRoute:
    """`fixed`: the deployment's settings if requests cannot change its context, otherwise None."""
    return VersionRoute(
        digest=version.digest,
        size=version.size,
        family=version.architecture,
        parameter_size=parameter_size(version.parameter_count),
        quantization=version.quantization,
        trained_context=version.context_length,
        embedding_length=version.embedding_length,
        capabilities=capabilities(version, pooling),
        parameters=version.parameters if isinstance(version.parameters, dict) else {},
        system=version.system,
        fixed_context=slot_context_tokens(version.context_length, fixed) if fixed else 0,
    )


def details(version: Version) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": version.architecture,
        "families": [version.architecture],
        "parameter_size": parameter_size(version.parameter_count),
        "quantization_level": version.quantization,
    }


def model_info(version: Version) -> dict[str, Any]:
    metadata = version.metadata_ if isinstance(version.metadata_, dict) else {}
    shown = {key: value for key, value in metadata.items() if key not in _HIDDEN}
    return {**shown, "general.architecture": version.architecture, "general.parameter_count": version.parameter_count}
