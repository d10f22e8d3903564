"""HTTP client for the registry, used for management requests only, never for inference."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import httpx
import msgspec
from pydantic import SecretStr

from services.protocol.errors import CorralError, Unavailable, from_code

_UNAVAILABLE = "the registry does not answer"

#: Errors that mean the registry is down. A bad URL or a bad request of our own is a bug, not an outage.
_OUTAGES = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)

TIMEOUT = httpx.Timeout(30.0, connect=5.0)

#: A pull has no read timeout, because it can be silent for as long as its source is.
PULL_TIMEOUT = httpx.Timeout(None, connect=5.0)
_PULL_TARGET = "/registry/v1/pull"


class _ErrorBody(msgspec.Struct):
    error: str = ""
    code: str = ""


_decode_error = msgspec.json.Decoder(_ErrorBody).decode


class RegistryClient:
    """All methods raise Unavailable if the registry doesn't answer."""

    def __init__(self, url: str, token: SecretStr) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token.get_secret_value()}", "Content-Type": "application/json"},
            timeout=TIMEOUT,
            trust_env=False,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, *, body: object = None, params: Mapping[str, str] | None = None) -> bytes:
        """Returns the body of a 2xx response. Raises the registry's error for any other status."""
        content = None if body is None else msgspec.json.encode(body)
        return await read_good(await self._send(self._http.build_request(method, path, content=content, params=params)))

    async def open(self, method: str, target: str, *, content: bytes) -> httpx.Response:
        """Returns a response of any status, with its body not yet read. `target` is a quoted path and query."""
        timeout = PULL_TIMEOUT if target.partition("?")[0] == _PULL_TARGET else TIMEOUT
        return await self._send(self._http.build_request(method, target, content=content, timeout=timeout))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._http.send(request, stream=True)
        except _OUTAGES as error:
            raise Unavailable(_UNAVAILABLE) from error


async def read(response: httpx.Response) -> bytes:
    """Reads the body. Raises Unavailable if the connection breaks, as do `read_good` and `lines_of`."""
    try:
        return await response.aread()
    except _OUTAGES as error:
        raise Unavailable(_UNAVAILABLE) from error
    finally:
        await response.aclose()


async def read_good(response: httpx.Response) -> bytes:
    """Reads the body of a 2xx response. Raises the registry's error for any other status."""
    body = await read(response)
    if not response.is_success:
        raise _error_of(response.status_code, body)
    return body


async def lines_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yields lines as they arrive, each with its newline."""
    try:
        async for line in response.aiter_lines():
            yield line.encode() + b"\n"
    except _OUTAGES as error:
        raise Unavailable(_UNAVAILABLE) from error
    finally:
        await response.aclose()


def _error_of(status: int, body: bytes) -> CorralError:
    try:
        answer = _decode_error(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        answer = _ErrorBody()
    if status in (401, 403):  # our own token was refused, which is not the caller's fault
        return Unavailable("the registry refuses this gateway's token")
    return from_code(answer.code, answer.error or f"the registry answered with status {status}")
