"""Checks the gateway's bearer token on every path under /registry/v1, before the body is read."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from services.protocol.errors import Unauthenticated

GUARDED = "/registry/v1"


class TokenMiddleware:
    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"].startswith(GUARDED)
        if not guarded or self._is_right(Headers(scope=scope).get("authorization", "")):
            return await self._app(scope, receive, send)
        refusal = {"error": "the registry's token is missing or wrong", "code": Unauthenticated.code}
        return await JSONResponse(refusal, status_code=Unauthenticated.status)(scope, receive, send)

    def _is_right(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(token.strip().encode(), self._token)
