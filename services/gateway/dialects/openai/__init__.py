"""OpenAI's API in the form that Ollama serves: SSE, and errors as `{"error": {"message", "type", "param", "code"}}`."""

from services.gateway.dialects.openai.embeddings import EmbeddingsReply, RerankReply, decode_embeddings, embeddings_request
from services.gateway.dialects.openai.errors import error_body, status_body
from services.gateway.dialects.openai.listings import model_body, models_body
from services.gateway.dialects.openai.replies import JSON, SSE, ChatReply, CompletionReply
from services.gateway.dialects.openai.requests import (
    ChatBody,
    CompletionBody,
    chat_request,
    completion_request,
    decode_chat,
    decode_completion,
)

__all__ = [
    "JSON",
    "SSE",
    "ChatBody",
    "ChatReply",
    "CompletionBody",
    "CompletionReply",
    "EmbeddingsReply",
    "RerankReply",
    "chat_request",
    "completion_request",
    "decode_chat",
    "decode_completion",
    "decode_embeddings",
    "embeddings_request",
    "error_body",
    "model_body",
    "models_body",
    "status_body",
]
