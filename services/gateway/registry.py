"""The gateway's client of the registry: management requests only, never inference."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import httpx
import msgspec
from pydantic import SecretStr

from services.protocol.errors import CorralError, Unavailable, from_code

_UNAVAILABLE = "the registry does not answer"

#: A pull may be silent for as long as its source is; anything else has answered by then.
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_OPEN_TIMEOUT = httpx.Timeout(None, connect=5.0)


class _ErrorBody(msgspec.Struct):
    error: str = ""
    code: str = ""


_decode_error = msgspec.json.Decoder(_ErrorBody).decode


class RegistryClient:
    """Raises Unavailable where the registry does not answer."""

    def __init__(self, url: str, token: SecretStr) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token.get_secret_value()}", "Content-Type": "application/json"},
            timeout=_TIMEOUT,
            trust_env=False,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, *, body: object = None, params: Mapping[str, str] | None = None) -> bytes:
        """The body of a good answer. Raises the error that the registry answered with."""
        content = None if body is None else msgspec.json.encode(body)
        return await read_good(await self._send(self._http.build_request(method, path, content=content, params=params)))

    async def open(self, method: str, target: str, *, content: bytes) -> httpx.Response:
        """An answer of any status whose body is still to be read, for as long as it takes. `target` is a quoted path and query."""
        return await self._send(self._http.build_request(method, target, content=content, timeout=_OPEN_TIMEOUT))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._http.send(request, stream=True)
        except httpx.TransportError as error:
            raise Unavailable(_UNAVAILABLE) from error


async def read(response: httpx.Response) -> bytes:
    """Raises Unavailable where the registry goes away in the middle, as do the following."""
    try:
        return await response.aread()
    except httpx.TransportError as error:
        raise Unavailable(_UNAVAILABLE) from error
    finally:
        await response.aclose()


async def read_good(response: httpx.Response) -> bytes:
    """Raises what an answer that is not 2xx says."""
    body = await read(response)
    if not response.is_success:
        raise _error_of(response.status_code, body)
    return body


async def lines_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Each with its newline, as it comes."""
    try:
        async for line in response.aiter_lines():
            yield line.encode() + b"\n"
    except httpx.TransportError as error:
        raise Unavailable(_UNAVAILABLE) from error
    finally:
        await response.aclose()


def _error_of(status: int, body: bytes) -> CorralError:
    try:
        answer = _decode_error(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        answer = _ErrorBody()
    if status in (401, 403):  # of the gateway's token, which is no business of the caller's
        return Unavailable("the registry refuses this gateway's token")
    return from_code(answer.code, answer.error or f"the registry answered with status {status}")
