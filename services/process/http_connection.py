"""A uvicorn connection with limits on header size, header time, pipelined requests and unread responses, which uvicorn does not have.

Limits on request bodies are up to the application.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.process.http_peers import Peers
from services.protocol.errors import BadRequest, CorralError, HeadersTooLarge, RequestTimedOut

#: Limit on pipelined requests: those that a client sends on one connection before an earlier one is answered.
MAX_PIPELINED = 32

_CLOSE = (b"connection", b"close")
_FRAMING_BYTES = len(": \r\n")


class Phase(enum.Enum):
    WAITING = "waiting"
    """Idle until the next request. uvicorn's keep-alive timer runs."""
    HEADER = "header"
    """Waiting for the rest of a request's header, which must arrive by `_header_due`."""
    SERVING = "serving"
    LAST = "last"
    """Serving the connection's last request: it closes after the response."""
    LINGERING = "lingering"
    """The last response is written. Incoming data is dropped, so that the peer can read the response before the connection is reset."""


class _ErrorBody(msgspec.Struct):
    error: str
    code: str


class BoundedConnection(HttpToolsProtocol):
    """HEAD is answered like GET, without the body. HTTP/1.0 responses are not chunked. If a response starts before the request's body is
    complete, the rest of the body is not read and the connection closes after the response."""

    def __init__(self, *args: Any, peers: Peers, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._peers = peers
        self._bounds = peers.bounds
        self._phase = Phase.HEADER
        self._header_due = 0.0
        self._header_bytes = 0
        self._undelivered = 0  # bytes fed to the parser since its last callback
        self._in_header = False
        self._reads_body = False
        self._stalled_since: float | None = None
        self._refusal: CorralError | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_header()
        if refusal := self._peers.enter(self):
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.LINGERING:
            return
        if self._phase is Phase.WAITING:
            self._expect_header()
        self._undelivered += len(data)
        super().data_received(data)
        self._bound_undelivered()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    @property
    def peer(self) -> str:
        return self.client[0] if self.client else ""

    def end_if_overdue(self, now: float) -> None:
        """Closes the connection if a header is late or if the peer has stopped reading."""
        if self._phase is Phase.HEADER and now >= self._header_due:
            self._give_up_on_header()
        elif not (self.transport.is_closing() or self.flow.write_paused):
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        elif now - self._stalled_since >= self._bounds.unread_s:
            self.transport.abort()

    def render(self, error: CorralError) -> tuple[bytes, str]:
        """The body and the media type of an error response that the connection sends itself."""
        return msgspec.json.encode(_ErrorBody(error.message, error.code)), "application/json"

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        self._in_header = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._grow_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow_header(len(name) + len(value) + _FRAMING_BYTES)
        if not self._reads_body:  # otherwise it is a trailer, which uvicorn would add to the headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = BadRequest("too many pipelined requests on one connection")
            raise self._refusal
        super().on_headers_complete()
        self._peers.hold_header(self, 0)
        self._undelivered = 0
        self._in_header = False
        self._reads_body = True
        if self._phase is Phase.HEADER:
            self._phase = Phase.SERVING

    def on_body(self, body: bytes) -> None:
        self._undelivered = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._undelivered = 0
        self._reads_body = False
        super().on_message_complete()

    # Called by uvicorn.

    def on_response_complete(self) -> None:
        if self._phase is Phase.LAST:
            self._linger()
            return
        more = bool(self.pipeline)
        super().on_response_complete()
        if not more and self._phase is Phase.SERVING:
            self._phase = Phase.WAITING
            if self._in_header:  # part of a pipelined request's header has arrived
                self._expect_header()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or BadRequest("not a valid HTTP request"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, self._framed(cycle, app))

    # Ours.

    def _framed(self, cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
        async def framed(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            assert scope["type"] == "http"
            if scope["method"] == "HEAD":  # uvicorn's own scope still has HEAD, so it leaves the body out
                scope = {**scope, "method": "GET"}
            if scope["http_version"] == "1.0":
                send = _unchunked(cycle, send)
            if cycle.more_body:
                send = self._ending_early(cycle, send)
            await app(scope, receive, send)

        return framed

    def _ending_early(self, cycle: RequestResponseCycle, send: ASGISendCallable) -> ASGISendCallable:
        """Closes the connection after a response that starts before the request's body is complete."""

        async def send_last(message: ASGISendEvent) -> None:
            early = message["type"] == "http.response.start" and cycle.more_body
            if message["type"] == "http.response.start" and early:
                message["headers"] = [*message.get("headers", ()), _CLOSE]
            await send(message)
            if early and self._phase is Phase.SERVING:
                self._phase = Phase.LAST
                cycle.keep_alive = True  # otherwise uvicorn resets the connection while the peer is still sending

        return send_last

    def _expect_header(self) -> None:
        self._phase = Phase.HEADER
        self._header_due = self.loop.time() + self._bounds.header_s

    def _grow_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._bounds.header_bytes:
            self._refusal = self._too_large()
            raise self._refusal

    def _bound_undelivered(self) -> None:
        if self._phase is Phase.LINGERING:  # a parser callback has already refused the request
            return
        if self._undelivered > self._bounds.header_bytes:
            self._refuse(self._too_large())
        elif self._phase is Phase.HEADER and (refusal := self._peers.hold_header(self, self._undelivered)):
            self._refuse(refusal)

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"the request header is larger than {self._bounds.header_bytes} bytes")

    def _give_up_on_header(self) -> None:
        if self._in_header:
            self._refuse(RequestTimedOut(f"the request header did not arrive within {self._bounds.header_s:g} s"))
        else:
            self.transport.abort()

    def _refuse(self, error: CorralError) -> None:
        """Sends the error and closes the connection. Aborts the connection without a response if a response has already started or if there
        are too many connections."""
        if self._peers.is_crowded or self._is_answering:
            self.transport.abort()
            return
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._peers.on_refusal(error)
        self.transport.write(_response(error, *self.render(error)))
        self._linger()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    def _linger(self) -> None:
        self._phase = Phase.LINGERING
        self._peers.hold_header(self, 0)
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(self._bounds.linger_s, self.transport.close)


def _unchunked(cycle: RequestResponseCycle, send: ASGISendCallable) -> ASGISendCallable:
    """For HTTP/1.0, which has no chunked encoding: a body of unknown length ends when the connection closes."""

    async def send_unchunked(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            cycle.chunked_encoding = False
        elif message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_unchunked


def _response(error: CorralError, body: bytes, media_type: str) -> bytes:
    headers = {"content-type": media_type, "content-length": str(len(body)), "connection": "close"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body
