"""Turns errors into responses, in the dialect of the request's path."""

from __future__ import annotations

import logging

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from services.gateway.dependencies import state_of
from services.gateway.dialects import ollama, openai
from services.gateway.metrics import is_refusal
from services.protocol.errors import CorralError, Unauthenticated

logger = logging.getLogger(__name__)

_STATUS_TEXTS = {404: "404 page not found", 405: "405 method not allowed"}

#: How many characters of an unknown path the error quotes.
_SHOWN_PATH = 100


class _RegistryError(msgspec.Struct):
    error: str
    code: str


async def corral_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CorralError)
    if error.status >= 500:
        logger.info(
            "error response: method=%s path=%s status=%d error=%r",
            request.method,
            request.url.path,
            error.status,
            error.message,
        )
    if is_refusal(error):
        state_of(request)["metrics"].refusals.labels(error.code).inc()
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return _rendered(request, error, headers)


async def http_error(request: Request, error: Exception) -> Response:
    """Handles the router's own errors, such as an unknown path or a wrong method. Ollama answers these as plain text."""
    assert isinstance(error, HTTPException)
    text = _STATUS_TEXTS.get(error.status_code, error.detail)
    if _is_openai(request.url.path):
        body = openai.status_body(error.status_code, f"{text}: {request.method} {request.url.path[:_SHOWN_PATH]}")
        return Response(body, error.status_code, error.headers, media_type=openai.JSON)
    return PlainTextResponse(text, error.status_code, error.headers)


async def unexpected_error(request: Request, error: Exception) -> Response:
    """Hides the details from the caller; the traceback is logged."""
    return _rendered(request, CorralError("internal server error"), {})


def in_dialect(path: str, error: CorralError) -> tuple[bytes, str]:
    """The error's body and media type, in the dialect of `path`."""
    if _is_openai(path):
        return openai.error_body(error), openai.JSON
    if path.startswith("/registry/"):
        return msgspec.json.encode(_RegistryError(error.message, error.code)), "application/json"
    return ollama.error_body(error), ollama.JSON


def _rendered(request: Request, error: CorralError, headers: dict[str, str]) -> Response:
    body, media_type = in_dialect(request.url.path, error)
    return Response(body, error.status, headers, media_type=media_type)


def _is_openai(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")
