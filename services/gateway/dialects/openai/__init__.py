"""OpenAI's API as Ollama serves it: SSE, errors as `{"error": {"message", "type", "param", "code"}}`."""

from services.gateway.dialects.openai.errors import error_body, status_body
from services.gateway.dialects.openai.listings import model_body, models_body
from services.gateway.dialects.openai.replies import JSON, SSE, ChatReply, CompletionReply
from services.gateway.dialects.openai.requests import chat_request, completion_request, decode_chat, decode_completion

__all__ = [
    "JSON",
    "SSE",
    "ChatReply",
    "CompletionReply",
    "chat_request",
    "completion_request",
    "decode_chat",
    "decode_completion",
    "error_body",
    "model_body",
    "models_body",
    "status_body",
]
