"""A version in the words that callers know from Ollama. Pure."""

from __future__ import annotations

from typing import Any

from services.protocol.engine import Pooling
from services.protocol.pooling import pooling_of
from services.protocol.routes import VersionRoute
from services.registry.abilities import abilities
from services.registry.models import Version

#: Ollama leaves these out of model_info: one is shown as the template, the other is a name that nobody here gave.
_HIDDEN = frozenset({"general.name", "tokenizer.chat_template"})

_SCALES = ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0))


def parameter_size(count: int) -> str:
    """As Ollama writes it: 3.2B, 134.52M, 7B."""
    for scale, letter, digits in _SCALES:
        if count >= scale:
            return f"{count // scale}{letter}" if count % scale == 0 else f"{count / scale:.{digits}f}{letter}"
    return str(count)


def capabilities(version: Version, pooling: Pooling) -> tuple[str, ...]:
    """A model chats when it brings a chat template, unless it is pooled: by itself or as its deployment says."""
    match pooling_of(version.metadata_, pooling):
        case "rank":
            return ("rerank",)
        case "mean" | "cls" | "last":
            return ("embedding",)
    chat = ("chat",) if version.template else ()
    return ("completion", *chat, *abilities(version.template, version.metadata_))


def version_route(version: Version, pooling: Pooling) -> VersionRoute:
    return VersionRoute(
        digest=version.digest,
        size=version.size,
        family=version.architecture,
        parameter_size=parameter_size(version.parameter_count),
        quantization=version.quantization,
        trained_context=version.context_length,
        embedding_length=version.embedding_length,
        capabilities=capabilities(version, pooling),
        parameters=version.parameters,
        system=version.system,
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
    shown = {key: value for key, value in version.metadata_.items() if key not in _HIDDEN}
    return {**shown, "general.architecture": version.architecture, "general.parameter_count": version.parameter_count}
