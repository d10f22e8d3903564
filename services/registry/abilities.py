"""What a model can do beyond chatting, as its file tells. Pure.

A worker reads answers by the same signs (services/worker/chat, docs/chat.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Any of these in a chat template says that the model's reasoning is told from its answer.
_REASONING = ("</think>", "[/THINK]", "</seed:think>", "<|END_THINKING|>", "<channel|>", "<|channel|>")

#: Infill tokens by the GGUF's keys (LLM_KV_TOKENIZER_FIM_* and _PREFIX_ID ... in llama.cpp's src/llama-arch.cpp).
_FILLS_IN = (
    ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
    ("prefix_token_id", "suffix_token_id", "middle_token_id"),
)


def abilities(template: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Among `tools`, `thinking`, `insert`."""
    found = {
        "tools": "tools" in template or "tool_call" in template,
        "thinking": any(sign in template for sign in _REASONING),
        "insert": any(all(f"tokenizer.ggml.{key}" in metadata for key in keys) for keys in _FILLS_IN),
    }
    return tuple(name for name, is_able in found.items() if is_able)
