"""Who calls: an API key becomes a Caller by the routes snapshot, so that a revoked key is refused without the registry."""

from __future__ import annotations

from collections.abc import Mapping

from services.protocol.errors import Forbidden, Unauthenticated
from services.protocol.routes import KEY_PREFIX, Caller, key_hash


def sent_key(headers: Mapping[str, str]) -> str | None:
    """The key of `Authorization: Bearer` or of `x-api-key`; None where neither is there."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key") or None


def identify(key: str | None, callers: Mapping[str, Caller], *, anonymous: Caller | None) -> Caller:
    """`anonymous` is who calls without a key, None where that is not allowed.

    The clients of OpenAI cannot be made without a key, so where none is needed any text that is no key of ours counts as none.
    One of ours must be good in any case.
    """
    if anonymous is not None and not (key or "").startswith(KEY_PREFIX):
        return anonymous
    if key is None:
        raise Unauthenticated("an API key is required: send it as a bearer token or as x-api-key")
    caller = callers.get(key_hash(key))
    if caller is None:
        raise Unauthenticated("the API key is unknown or was revoked")
    return caller


def require_admin(caller: Caller) -> Caller:
    if not caller.admin:
        raise Forbidden("this needs an admin key")
    return caller
