"""HTTP for downloads. Connects only to addresses that `addresses` allows: the name is resolved here, and the connection goes to an
address that was checked, so that a second answer of the DNS changes nothing. Redirects are not followed; the caller asks again.

With a proxy (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY), the proxy resolves names and decides what may be reached; hosts that
are given as addresses, and localhost, are still checked here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpcore
import httpx

from services.node.downloads.addresses import AllowedHosts, allowed
from services.node.downloads.ranges import Range
from services.protocol.errors import BadRequest, Unavailable

CONNECT_TIMEOUT_S = 10.0
#: The longest pause in an answer. After it, the part is asked for again.
STALL_S = 30.0

_USER_AGENT = "corral"


class Broken(Exception):
    """The connection or the server failed, and asking again may help. `wait_s`: how long the server asks to wait."""

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Answer:
    """The answer to a request. Names of headers are in lower case."""

    def __init__(self, response: httpcore.Response) -> None:
        self.status: int = response.status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        self._response = response

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_stream():
            yield chunk


class Web:
    """The node's way to the web. `stall_s`: the longest pause in an answer."""

    def __init__(self, hosts: AllowedHosts, *, stall_s: float) -> None:
        self._hosts = hosts
        self._stall_s = stall_s

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        async with AsyncExitStack() as opened:
            yield Session(self._hosts, self._stall_s, opened)


class Session:
    """The connections of one fetch. Used on one event loop."""

    def __init__(self, hosts: AllowedHosts, stall_s: float, opened: AsyncExitStack) -> None:
        self._hosts = hosts
        self._opened = opened
        self._tls = httpx.create_ssl_context()
        self._pools: dict[str | None, httpcore.AsyncConnectionPool] = {}
        timeout = {"connect": CONNECT_TIMEOUT_S, "read": stall_s, "write": stall_s, "pool": None}
        self._extensions = {"timeout": timeout}

    @asynccontextmanager
    async def get(self, address: str, part: Range | None = None) -> AsyncIterator[Answer]:
        """Asks for a part of a file, or for all of it. Raises Broken, BadRequest if the address may not be reached, and Unavailable
        if the server's certificate is not valid."""
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL as error:
            raise BadRequest(f"the server's address is not valid: {error}") from error
        headers: dict[bytes | str, bytes | str] = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": _USER_AGENT}
        if part is not None:
            headers["Range"] = f"bytes={part.start}-{part.stop - 1}"
        pool = await self._pool(url)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        try:
            async with pool.stream("GET", target, headers=headers, extensions=self._extensions) as response:
                yield Answer(response)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, httpcore.TimeoutException) as error:
            raise _as_ours(error, url.host) from error

    async def _pool(self, url: httpx.URL) -> httpcore.AsyncConnectionPool:
        proxy = _proxy_for(url)
        if proxy:
            _check_literal(self._hosts, url.host)
        if proxy not in self._pools:
            pool = _proxy_pool(proxy, self._tls) if proxy else self._direct_pool()
            self._pools[proxy] = await self._opened.enter_async_context(pool)
        return self._pools[proxy]

    def _direct_pool(self) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=_GuardedBackend(self._hosts))


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves names itself, and connects to allowed addresses only."""

    def __init__(self, hosts: AllowedHosts) -> None:
        self._hosts = hosts
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolve(host, port)
        reachable = allowed(self._hosts, host, addresses)
        if not reachable:
            raise _refusal(host, addresses[0])
        for address in reachable[:-1]:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._backend.connect_tcp(reachable[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


async def _resolve(host: str, port: int) -> list[str]:
    """The addresses of a host; at least one. Raises Broken if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Broken(f"the name {host} cannot be resolved: {reason}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _refusal(host: str, address: str) -> BadRequest:
    shown = host if host == address else f"{host} ({address})"
    return BadRequest(
        f"{shown} is not a public address; if models may come from there, the operator lists it in CORRAL_SOURCE_HOSTS on the node"
    )


def _check_literal(hosts: AllowedHosts, host: str) -> None:
    """Raises BadRequest if the host is an address, or localhost, that is not allowed."""
    literal = _literal(host.lower().rstrip("."))
    if literal and not allowed(hosts, host, [literal]):
        raise _refusal(host, literal)


def _literal(host: str) -> str:
    """The address that a host is without any DNS; empty if it is a name. 127.1 and 2130706433 are addresses, too."""
    if host == "localhost" or host.endswith(".localhost"):
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return ""


def _proxy_for(url: httpx.URL) -> str | None:
    proxies: Mapping[str, str] = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return None if not proxy or urllib.request.proxy_bypass(url.netloc.decode("ascii")) else proxy


def _proxy_pool(address: str, tls: ssl.SSLContext) -> httpcore.AsyncHTTPProxy:
    url = httpx.URL(address if "://" in address else f"http://{address}")
    if url.scheme not in ("http", "https"):
        raise Unavailable(f"a proxy of the kind {url.scheme} is not supported; http and https are")
    return httpcore.AsyncHTTPProxy(
        httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/"),
        proxy_auth=(url.username, url.password) if url.username else None,
        ssl_context=tls,
        proxy_ssl_context=tls if url.scheme == "https" else None,
    )


def _as_ours(error: Exception, host: str) -> Exception:
    if untrusted := _certificate_error(error):
        return Unavailable(
            f"the certificate of {host} is not trusted: {untrusted}; SSL_CERT_FILE on the node names a private authority"
        )
    if isinstance(error, httpcore.ReadTimeout):
        return Broken(f"{host} sends nothing")
    if isinstance(error, httpcore.ConnectTimeout):
        return Broken(f"{host} does not accept the connection in {CONNECT_TIMEOUT_S:.0f} s")
    return Broken(f"the connection to {host} failed: {str(error) or type(error).__name__}")


def _certificate_error(error: BaseException | None) -> str:
    while error:
        if isinstance(error, ssl.SSLCertVerificationError):
            return str(error.verify_message)
        error = error.__cause__ or error.__context__
    return ""
