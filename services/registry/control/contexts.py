"""Whether requests may lengthen a deployment's context (Ollama's `num_ctx`), and the settings that do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.protocol.engine import EngineSettings
from services.registry.states import Origin
from services.weights.memory import kv_cells, slot_context_tokens


def is_fixed(origin: Origin, overrides: Mapping[str, Any]) -> bool:
    """Whether requests cannot change the context: the deployment is pinned, or an admin set its context."""
    return origin is Origin.PINNED or "context_tokens" in overrides or "kv_tokens" in overrides


def widened(engine: EngineSettings, trained: int, asked: int) -> EngineSettings | None:
    """`engine` with a context of `asked` tokens per slot, capped at the trained length; None if it already has that much."""
    wider = slot_context_tokens(trained, msgspec.structs.replace(engine, context_tokens=asked, kv_tokens=0)) if asked else 0
    if wider <= slot_context_tokens(trained, engine):
        return None
    cells = max(wider, kv_cells(trained, engine)) if engine.kv_unified else 0
    return msgspec.structs.replace(engine, context_tokens=wider, kv_tokens=cells)
