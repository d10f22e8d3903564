"""What a model can do beyond chatting, by its template and metadata. Pure.

Workers parse answers by the same markers (services/worker/chat, docs/chat.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Markers in a chat template that separate the model's reasoning from its answer.
_REASONING = ("</think>", "[/THINK]", "</seed:think>", "<|END_THINKING|>", "<channel|>", "<|channel|>")

#: GGUF keys of the infill tokens (LLM_KV_TOKENIZER_FIM_* and _PREFIX_ID ... in llama.cpp's src/llama-arch.cpp).
_FILLS_IN = (
    ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
    ("prefix_token_id", "suffix_token_id", "middle_token_id"),
)


def abilities(template: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """A subset of `tools`, `thinking`, `insert`. Every model with a chat template takes tools: if the template does not render
    them, the worker adds them to the prompt."""
    found = {
        "tools": bool(template),
        "thinking": any(sign in template for sign in _REASONING),
        "insert": any(all(f"tokenizer.ggml.{key}" in metadata for key in keys) for keys in _FILLS_IN),
    }
    return tuple(name for name, is_able in found.items() if is_able)
