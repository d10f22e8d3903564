"""Limits of a connection: the size of headers, the number of connections, unread answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.app import create_app
from services.gateway.config import Settings
from services.process.http_peers import MAX_REFUSED, Bounds, network_of
from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.doubles.worker import Worker
from tests.gateway.conftest import ready
from tests.gateway.raw_http import answer_to, connected, status_of
from tests.gateway.servers import serving

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("path", ["/healthz", "/api/tags", "/v1/models"])
async def test_headers_over_the_limit_are_refused(shared_url: str, path: str) -> None:
    start = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
    for header in (
        b"X: " + b"x" * 70_000 + b"\r\n\r\n",
        b"X: " + b"x" * 70_000,  # incomplete
        b"".join(b"X%d: %s\r\n" % (number, b"x" * 100) for number in range(700)) + b"\r\n",
        b"X: y\r\n" * 11_000,
    ):
        answer = await answer_to(shared_url, start + header)
        assert status_of(answer) == 431
        assert b"connection: close" in answer
        assert b"larger than 65536 bytes" in answer
        assert (b'"code":"headers_too_large"' in answer) == path.startswith("/v1")
    answer = await answer_to(shared_url, b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n")
    assert status_of(answer) == 431


async def test_large_headers_within_the_limit(shared_url: str) -> None:
    answer = await answer_to(shared_url, GET + b"X: " + b"x" * 60_000 + b"\r\nConnection: close\r\n\r\n")
    assert status_of(answer) == 200


async def test_a_header_of_many_megabytes_is_not_read(shared_url: str) -> None:
    """The response arrives while the client is still sending, and other clients are served meanwhile."""
    sent = 0
    async with connected(shared_url) as (reader, writer), httpx.AsyncClient(base_url=shared_url) as other:
        answer = asyncio.create_task(reader.read())
        writer.write(GET + b"X: ")
        with contextlib.suppress(ConnectionError):
            while not answer.done() and sent < 2**30:
                writer.write(b"x" * 2**16)
                await writer.drain()
                sent += 2**16
                if sent % 2**22 == 0:
                    assert (await other.get("/healthz")).status_code == 200
        assert status_of(await answer) == 431
    assert sent < 2**30


async def test_trailers_are_limited_and_not_treated_as_headers(shared_url: str) -> None:
    post = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    answer = await answer_to(shared_url, post, b"X: ", b"x" * 700_000)
    assert status_of(answer) == 431
    answer = await answer_to(shared_url, post + b"X: " + b"x" * 100 + b"\r\n\r\n" + GET + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")  # from the route: the model is missing
    assert answer.count(b"HTTP/1.1 200") == 1


async def headers_seen(scope: Any, receive: Any, send: Any) -> None:
    """An application that responds with its request's headers, as they are after the body."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    body = json.dumps([[name.decode(), value.decode()] for name, value in scope["headers"]]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("trailer", ["Authorization: Bearer x", "X:", "A: 1\r\nX:\r\nB: 2"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_trailers_do_not_reach_any_request(trailer: str, at_once: bool) -> None:
    """Neither their own request nor the next one on the connection, which may be another client's behind a proxy."""
    first = f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n{trailer}\r\n\r\n".encode()
    second = b"GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
    async with serving(headers_seen) as url, connected(url) as (reader, writer), asyncio.timeout(20):
        writer.write(first + second if at_once else first)
        seen = await reader.readuntil(b"]]")
        if not at_once:
            writer.write(second)
        seen += await reader.read()
    assert [json.loads(headers) for headers in re.findall(rb"\[\[.*?\]\]", seen)] == [
        [["host", "a"], ["transfer-encoding", "chunked"]],
        [["host", "b"], ["connection", "close"]],
    ]


async def test_invalid_http_gets_400(shared_url: str) -> None:
    answer = await answer_to(shared_url, b"hello there\r\n\r\n")
    assert status_of(answer) == 400
    assert answer.endswith(b'{"error":"not a valid HTTP request"}')


async def test_pipelined_requests_are_limited(shared_url: str) -> None:
    ahead = await answer_to(shared_url, (GET + b"\r\n") * 20 + GET + b"Connection: close\r\n\r\n")
    assert ahead.count(b"HTTP/1.1 200") == 21
    assert (await answer_to(shared_url, (GET + b"\r\n") * 3000)).count(b"HTTP/1.1 200") < 3000


async def test_a_late_header_times_out(settings: Settings, routes: Routes) -> None:
    async with serving(create_app(settings), bounds=Bounds(header_s=0.5)) as url:
        await ready(url)
        assert await answer_to(url) == b""
        answer = await answer_to(url, GET)
        assert status_of(answer) == 408
        assert b"did not arrive within 0.5 s" in answer
        answer = await answer_to(url, GET + b"\r\n", GET)
        assert answer.count(b"HTTP/1.1 200") == 1
        assert answer.count(b"HTTP/1.1 408") == 1


async def test_a_header_that_trickles_times_out(settings: Settings, routes: Routes) -> None:
    async with serving(create_app(settings), bounds=Bounds(header_s=0.5)) as url:
        await ready(url)
        async with connected(url) as (reader, writer):
            answer = asyncio.create_task(reader.read())
            writer.write(GET)

            async def one_byte_more() -> bool:
                with contextlib.suppress(ConnectionError):
                    writer.write(b"x")
                    await writer.drain()
                return answer.done()

            await eventually(one_byte_more)
            assert status_of(await answer) == 408


async def test_idle_connections_stay_open(settings: Settings, routes: Routes) -> None:
    async with serving(create_app(settings), bounds=Bounds(header_s=0.2)) as url:
        await ready(url)
        async with connected(url) as (reader, writer):
            for pause_s in (0, 1.0):
                await asyncio.sleep(pause_s)
                writer.write(GET + b"\r\n")
                assert status_of(await reader.readuntil(b'{"status":"ok"}')) == 200


async def test_connections_over_the_limit_get_503(settings: Settings, routes: Routes) -> None:
    async with serving(create_app(settings), bounds=Bounds(connections=3)) as url, contextlib.AsyncExitStack() as stack:
        await ready(url)
        for _ in range(3):
            _, writer = await stack.enter_async_context(connected(url))
            writer.write(GET)
            await writer.drain()

        async def is_refused() -> bool:
            answer = await answer_to(url, GET + b"Connection: close\r\n\r\n")
            return status_of(answer) == 503 and b"retry-after: 1\r\n" in answer and b"3 open connections" in answer

        await eventually(is_refused)
    async with serving(create_app(settings), bounds=Bounds(connections=3)) as url:
        await ready(url)
        for _ in range(10):
            assert status_of(await answer_to(url, GET + b"Connection: close\r\n\r\n")) == 200


async def test_connections_over_the_limit_of_one_address_get_503(settings: Settings, routes: Routes) -> None:
    bounds = Bounds(connections_per_peer=2)
    async with serving(create_app(settings), bounds=bounds) as url, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(connected(url))

        async def is_refused() -> bool:
            answer = await answer_to(url, GET + b"Connection: close\r\n\r\n")
            return status_of(answer) == 503 and b"your address has 2 open connections" in answer

        await eventually(is_refused)


async def test_connections_far_over_the_limit_are_reset(settings: Settings, routes: Routes) -> None:
    async with (
        serving(create_app(settings), bounds=Bounds(connections=1, linger_s=20)) as url,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(MAX_REFUSED + 1):
            await stack.enter_async_context(connected(url))

        async def is_reset() -> bool:
            async with connected(url) as (reader, _):
                try:
                    return await reader.read() == b""
                except ConnectionError:
                    return True

        await eventually(is_reset)


async def test_headers_of_all_connections_share_a_limit(settings: Settings, routes: Routes) -> None:
    bounds = Bounds(headers_bytes=100_000)
    async with serving(create_app(settings), bounds=bounds) as url, contextlib.AsyncExitStack() as stack:
        _, first = await stack.enter_async_context(connected(url))
        first.write(GET + b"X: " + b"x" * 60_000)
        await first.drain()

        async def is_refused() -> bool:
            answer = await answer_to(url, GET + b"X: " + b"x" * 50_000)
            return status_of(answer) == 503 and b"incomplete request headers" in answer

        await eventually(is_refused)
        assert status_of(await answer_to(url, GET + b"Connection: close\r\n\r\n")) == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unread_answer_is_given_up(settings: Settings, routes: Routes, worker: Worker, stream: bool) -> None:
    body = json.dumps({"model": "smollm2:135m", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}).encode()
    head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with serving(create_app(settings), bounds=Bounds(connections=1, unread_s=0.5)) as url:
        await ready(url)
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head + body)
            answer = await worker.take()
            await answer.started()
            for _ in range(20):
                await answer.frame("x" * 500_000)
            if stream:
                await eventually(lambda: worker.cancelled == [answer.request.id])
            else:
                await answer.finished()

            async def is_accepted_again() -> bool:
                return status_of(await answer_to(url, GET + b"Connection: close\r\n\r\n")) == 200

            await eventually(is_accepted_again)


async def test_http_1_0_gets_no_chunks(shared_url: str) -> None:
    for path in ("/healthz", "/api/tags", "/registry/v1/pulls"):
        answer = await answer_to(shared_url, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        header, _, body = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in header.lower()
        assert body.startswith(b"{")
        assert body.endswith(b"}")


async def test_head_is_get_without_a_body(shared_http: httpx.AsyncClient) -> None:
    for path in (
        "/",
        "/api/tags",
        "/api/ps",
        "/v1/models",
        "/v1/models/smollm2:135m",
        "/api/queue",
        "/healthz",
        "/health",
        "/readyz",
    ):
        got, head = await shared_http.get(path), await shared_http.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
        assert head.headers["content-length"] == got.headers["content-length"]
    assert (await shared_http.head("/registry/v1/nodes")).status_code == 200
    assert (await shared_http.head("/v1/models/nope")).status_code == 404
    assert (await shared_http.head("/api/chat")).status_code == 405


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::1", "::"),
        ("", ""),
    ],
)
def test_addresses_of_one_network_are_one_peer(address: str, network: str) -> None:
    assert network_of(address) == network


@given(st.ip_addresses(v=6))
def test_the_network_of_a_network_is_itself(address: object) -> None:
    assert network_of(network_of(str(address))) == network_of(str(address))
