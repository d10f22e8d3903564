"""Which web pages may call: the browser's Origin against a list, and on a loopback address the Host against DNS rebinding.

The answers are Ollama's: an origin that is not allowed, or a foreign Host, gets a bare 403; a preflight gets 204.
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

_STAINLESS = (
    "arch",
    "async",
    "custom-poll-interval",
    "helper-method",
    "lang",
    "os",
    "package-version",
    "poll-helper",
    "retry-count",
    "runtime",
    "runtime-version",
    "timeout",
)
_ALLOWED_HEADERS = ", ".join(
    ("Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "X-Api-Key", "OpenAI-Beta")
    + tuple(f"x-stainless-{name}" for name in _STAINLESS)
)
_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
    "Access-Control-Max-Age": "43200",
}


class OriginPolicy:
    """The origins of this machine's own pages and those in `origins`: exact, or with one `*` that stands for anything."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        wanted = (*BUILT_IN_ORIGINS, *(origin.strip().lower() for origin in origins if origin.strip()))
        self._exact = frozenset(origin for origin in wanted if "*" not in origin)
        self._patterns = tuple(origin.partition("*")[::2] for origin in wanted if "*" in origin)

    def allows(self, origin: str, *, host: str) -> bool:
        """`host` is the request's own Host: a page that this server itself served may always call."""
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
    """Whether a Host header names this machine or its private network, as no page from elsewhere can make it do."""
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
    """Only an address of one of this machine's interfaces can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


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
        granted = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if scope["method"] == "OPTIONS":
            return await Response(status_code=204, headers=_PREFLIGHT_HEADERS | granted)(scope, receive, send)

        async def send_granted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(granted)
            await send(message)

        return await self._app(scope, receive, send_granted)
