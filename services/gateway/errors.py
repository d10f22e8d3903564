"""Every error becomes a response here, in the dialect of the path that was asked."""

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


class _RegistryError(msgspec.Struct):
    error: str
    code: str


async def corral_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CorralError)
    if error.status >= 500:
        logger.info("%s %s: %d %s", request.method, request.url.path, error.status, error.message)
    if is_refusal(error):
        state_of(request)["observer"].metrics.refusals.labels(error.code).inc()
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return _rendered(request, error, headers)


async def http_error(request: Request, error: Exception) -> Response:
    """What the router refuses: an unknown path, a wrong verb, a body that is too large."""
    assert isinstance(error, HTTPException)
    text = _STATUS_TEXTS.get(error.status_code, error.detail)
    if request.url.path.startswith("/v1/"):
        body = openai.status_body(error.status_code, text)
        return Response(body, error.status_code, error.headers, media_type=openai.JSON)
    return PlainTextResponse(text, error.status_code, error.headers)


async def unexpected_error(request: Request, error: Exception) -> Response:
    """The traceback goes to the log, not to the caller."""
    return _rendered(request, CorralError("internal server error"), {})


def _rendered(request: Request, error: CorralError, headers: dict[str, str]) -> Response:
    path = request.url.path
    if path.startswith("/v1/"):
        return Response(openai.error_body(error), error.status, headers, media_type=openai.JSON)
    if path.startswith("/registry/"):
        body = msgspec.json.encode(_RegistryError(error.message, error.code))
        return Response(body, error.status, headers, media_type="application/json")
    return Response(ollama.error_body(error), error.status, headers, media_type=ollama.JSON)
