"""Authentication: looks up API keys in the routes snapshot, so that keys work and can be revoked without asking the
registry."""

from __future__ import annotations

from collections.abc import Mapping

from services.protocol.errors import Forbidden, Unauthenticated
from services.protocol.routes import KEY_PREFIX, Caller, key_hash


def sent_key(headers: Mapping[str, str]) -> str | None:
    """The key from `Authorization: Bearer` or `x-api-key`; None if there is neither."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key") or None


def identify(key: str | None, callers: Mapping[str, Caller], *, anonymous: Caller | None) -> Caller:
    """The caller that the key belongs to. `anonymous` is the caller for requests without a key, or None if a key is required.

    OpenAI's clients can't be created without a key. So if no key is required, any text that isn't a Corral key counts as none,
    but a Corral key must always be valid. Raises Unauthenticated.
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
