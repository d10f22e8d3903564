"""Decides which web pages may call: checks the browser's Origin against a list and, on a loopback address, the Host header, as
a defence against DNS rebinding.

The responses match Ollama's: a forbidden origin or foreign Host gets a bare 403, a preflight gets 204.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")

BUILT_IN_ORIGINS = (
    *(f"{scheme}://{host}{port}" for host in _LOCAL_HOSTS for scheme in ("http", "https") for port in ("", ":*")),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)

_EXPOSED_HEADERS = ", ".join(
    ("X-Request-Id", "X-Queue-Position", "X-Queue-Estimated-Wait", "Retry-After", "WWW-Authenticate", "Date", "Content-Length")
)
_MAX_AGE_S = "43200"


class OriginPolicy:
    """Allows this machine's own pages and the given `origins`: exact, or a pattern in which one `*` matches anything."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        allowed = (*BUILT_IN_ORIGINS, *(origin.strip().lower() for origin in origins if origin.strip()))
        self._exact = frozenset(origin for origin in allowed if "*" not in origin)
        self._patterns = tuple(origin.partition("*")[::2] for origin in allowed if "*" in origin)

    def allows(self, origin: str, *, host: str) -> bool:
        """`host` is the request's Host header: pages served from this address are always allowed."""
        origin = origin.lower()
        return (
            origin in self._exact
            or origin in (f"http://{host}", f"https://{host}")
            or any(_matches(origin, prefix, suffix) for prefix, suffix in self._patterns)
        )


def _matches(origin: str, prefix: str, suffix: str) -> bool:
    return len(origin) >= len(prefix) + len(suffix) and origin.startswith(prefix) and origin.endswith(suffix)


@functools.lru_cache(maxsize=1024)
def local_host(host: str) -> bool:
    """Whether the Host header names this machine or its private network. A page from elsewhere can't make a browser send such a
    Host."""
    name = _without_port(host).lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost", socket.gethostname().lower()) or name.endswith(_LOCAL_SUFFIXES)
    return address.is_loopback or address.is_private or address.is_unspecified or _own_address(name)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _own_address(address: str) -> bool:
    """Whether the address belongs to this machine: only then can a socket bind to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _preflight(asked: Headers) -> dict[str, str]:
    """Allows any method and header that an allowed origin asks for: the API key decides what the caller may do."""
    return {
        "Access-Control-Allow-Methods": asked.get("access-control-request-method", "*"),
        "Access-Control-Allow-Headers": asked.get("access-control-request-headers", "*"),
        "Access-Control-Max-Age": _MAX_AGE_S,
        "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }


class OriginMiddleware:
    def __init__(self, app: ASGIApp, *, policy: OriginPolicy, check_host: bool) -> None:
        self._app = app
        self._policy = policy
        self._check_host = check_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._check_host and not local_host(host):
            return await Response(status_code=403)(scope, receive, send)
        if origin is None:
            return await self._app(scope, receive, send)
        if not self._policy.allows(origin, host=host):
            return await Response(status_code=403)(scope, receive, send)
        granted = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED_HEADERS}
        if scope["method"] == "OPTIONS":
            return await Response(status_code=204, headers=granted | _preflight(headers))(scope, receive, send)

        async def send_granted(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer.update(granted)
                answer.add_vary_header("Origin")
            await send(message)

        return await self._app(scope, receive, send_granted)
