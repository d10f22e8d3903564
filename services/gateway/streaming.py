"""The HTTP response to an admitted request: SSE or NDJSON as tokens arrive, or one JSON body at the end.

When the client leaves, the request is abandoned at once, even while it waits in the queue. Headers are sent with the first part of the
answer, so that an error before it has its own status. A client that asked for queue updates gets them, and the headers, earlier.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from services.gateway.dialects import ollama, openai
from services.gateway.dialects.reply import Reply
from services.gateway.requests.pending_request import ClientGone, PendingRequest
from services.gateway.requests.telemetry import Observation
from services.protocol.errors import CorralError, Unavailable
from services.protocol.messages import Finished
from services.protocol.waiting import QueuePosition

logger = logging.getLogger(__name__)

#: Proxies that buffer would undo the streaming.
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


#: Between two queue updates.
_UPDATE_INTERVAL_S = 1.0

#: A queue update: a comment in SSE, a separate line in NDJSON.
_QUEUE_UPDATE = {openai.SSE: b": queue position %d\n\n", ollama.NDJSON: b'{"queue_position":%d,"done":false}\n'}


class AnswerResponse:
    """An ASGI application. Raises what fails before the first part, for the app's error handler to answer.

    `abandon` is called when the client leaves and when the response is over, however it ended. `position_of` is given for a stream
    whose client asked for queue updates.
    """

    def __init__(
        self,
        pending: PendingRequest,
        reply: Reply,
        *,
        abandon: Callable[[PendingRequest], None],
        observation: Observation,
        position_of: Callable[[PendingRequest], Awaitable[QueuePosition | None]] | None = None,
    ) -> None:
        self._pending = pending
        self._reply = reply
        self._abandon = abandon
        self._observation = observation
        self._position_of = position_of
        self._headers_sent = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnect_watch = asyncio.ensure_future(self._watch_for_disconnect(receive))
        try:
            await (self._send_stream(send) if self._reply.stream else self._send_whole(send))
            self._observation.answered()
        except ClientGone:
            self._observation.cancelled()
            logger.debug("client disconnected: request=%s", self._pending.id)
        except asyncio.CancelledError as cancelled:  # by uvicorn, of an answer that takes longer than CORRAL_SHUTDOWN_S
            stopped = Unavailable("the gateway was stopped before the answer was complete")
            if not await self._send_error(send, stopped):
                raise stopped from cancelled
        except Exception as error:
            if not await self._send_error(send, error):
                raise
        finally:
            disconnect_watch.cancel()
            self._abandon(self._pending)

    async def _send_error(self, send: Send, error: Exception) -> bool:
        """In the stream, where it has begun; otherwise the answer is the app's error handler's to give."""
        self._observation.failed(error)
        if not self._headers_sent or not isinstance(error, CorralError):
            return False
        logger.info("answer failed after its first bytes: request=%s error=%r", self._pending.id, error.message)
        await send({"type": "http.response.body", "body": self._reply.render_error(error)})
        return True

    async def _watch_for_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._abandon(self._pending)

    async def _send_whole(self, send: Send) -> None:
        body, ended = b"", False
        while not ended:
            part, ended = await self._next_part()
            body += part
        await self._start(send, (b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(self, send: Send) -> None:
        if self._position_of is not None:
            await self._send_positions(send, self._position_of, _QUEUE_UPDATE[self._reply.content_type])
        ended = False
        while not ended:
            part, ended = await self._next_part()
            if part:  # the end goes with the last part: a write of its own would cost as much as the part's
                await self._send_part(send, part, ended=ended)

    async def _send_positions(
        self, send: Send, position_of: Callable[[PendingRequest], Awaitable[QueuePosition | None]], rendered: bytes
    ) -> None:
        """Until the request has left the queue."""
        position = self._pending.position
        while position is not None and position.position > 0:
            await self._send_part(send, rendered % position.position, ended=False)
            if await self._pending.arrives(within_s=_UPDATE_INTERVAL_S):
                return
            position = await position_of(self._pending)

    async def _send_part(self, send: Send, part: bytes, *, ended: bool) -> None:
        if not self._headers_sent:
            await self._start(send, *_STREAM_HEADERS)
            self._headers_sent = True
        await send({"type": "http.response.body", "body": part, "more_body": not ended})

    async def _next_part(self) -> tuple[bytes, bool]:
        """All that had arrived, which may have nothing to say, and whether it is the end. A stream's end has something to say."""
        events = await self._pending.events()
        self._observation.delivered(events, sum(map(len, self._pending.committed)))
        return b"".join([self._reply.render(event) for event in events]), isinstance(events[-1], Finished)

    async def _start(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        content_type = (b"content-type", self._reply.content_type.encode())
        request = (b"x-request-id", self._pending.id.encode())
        every = [content_type, request, *_position_headers(self._pending.position), *headers]
        await send({"type": "http.response.start", "status": 200, "headers": every})


def _position_headers(position: QueuePosition | None) -> list[tuple[bytes, bytes]]:
    """The position at admission; the estimated wait in seconds if there is an estimate."""
    if position is None:
        return []
    place = (b"x-queue-position", b"%d" % position.position)
    return [place] if position.wait_s is None else [place, (b"x-queue-estimated-wait", b"%.1f" % position.wait_s)]
