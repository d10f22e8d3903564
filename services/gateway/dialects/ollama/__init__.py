"""Ollama's native API: NDJSON, durations in nanoseconds, errors as `{"error": "text"}`."""

from services.gateway.dialects.ollama.chunks import IdleAnswer, idle_chat, idle_generate
from services.gateway.dialects.ollama.embeddings import (
    EmbedReply,
    LegacyEmbedReply,
    RerankReply,
    decode_embed,
    decode_legacy_embed,
    embed_request,
    legacy_embed_request,
    no_embeddings,
    no_legacy_embedding,
)
from services.gateway.dialects.ollama.errors import error_body
from services.gateway.dialects.ollama.listings import decode_registry_model, ps_body, show_body, tags_body
from services.gateway.dialects.ollama.replies import JSON, NDJSON, ChatReply, GenerateReply, LoadReply
from services.gateway.dialects.ollama.requests import (
    ChatBody,
    GenerateBody,
    chat_request,
    decode_chat,
    decode_generate,
    decode_named,
    decode_pull,
    generate_request,
    load_request,
    requested_context,
)

__all__ = [
    "JSON",
    "NDJSON",
    "ChatBody",
    "ChatReply",
    "EmbedReply",
    "GenerateBody",
    "GenerateReply",
    "IdleAnswer",
    "LegacyEmbedReply",
    "LoadReply",
    "RerankReply",
    "chat_request",
    "decode_chat",
    "decode_embed",
    "decode_generate",
    "decode_legacy_embed",
    "decode_named",
    "decode_pull",
    "decode_registry_model",
    "embed_request",
    "error_body",
    "generate_request",
    "idle_chat",
    "idle_generate",
    "legacy_embed_request",
    "load_request",
    "no_embeddings",
    "no_legacy_embedding",
    "ps_body",
    "show_body",
    "tags_body",
    "requested_context",
]
