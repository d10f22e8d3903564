"""A generation becomes an HTTP response: SSE or NDJSON as it is generated, or one JSON body at its end.

A client that leaves is noticed at once, while its request waits and while nothing is streamed too, and the request is given
up. Headers are sent with the first part of the answer, so that an error before it has its own status; not for a client that wants to
be told of its place in the queue meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.gateway.dialects.reply import Reply
from services.gateway.generation import ClientGone, Generation
from services.gateway.observation import Observation
from services.protocol.errors import CorralError, Unavailable
from services.protocol.messages import Finished
from services.protocol.waiting import Place

logger = logging.getLogger(__name__)

#: Proxies that buffer would undo the streaming.
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


#: How often a client that wants to know is told of its place.
_UPDATE_S = 1.0


class GenerationResponse(Response):
    """Raises what fails before the first part, for the app's error handler to answer. `abandon` is called when the client
    leaves and when the response is over, however it ended. `place_of` is asked where the client wants comments that say where its request
    stands; only SSE has comments."""

    def __init__(
        self,
        generation: Generation,
        reply: Reply,
        *,
        abandon: Callable[[Generation], None],
        observation: Observation,
        place_of: Callable[[Generation], Awaitable[Place | None]] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self._generation = generation
        self._reply = reply
        self._abandon = abandon
        self._observation = observation
        self._place_of = place_of
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        departure = asyncio.ensure_future(self._notice_departure(receive))
        try:
            await (self._send_stream(send) if self._reply.stream else self._send_whole(send))
            self._observation.answered()
        except ClientGone:
            self._observation.cancelled()
            logger.debug("request %s: the client left", self._generation.request.id)
        except asyncio.CancelledError as cancelled:  # by uvicorn, of an answer that takes longer than CORRAL_SHUTDOWN_S
            stopped = Unavailable("the gateway was stopped before the answer was complete")
            if not await self._tell(send, stopped):
                raise stopped from cancelled
        except Exception as error:
            if not await self._tell(send, error):
                raise
        finally:
            departure.cancel()
            self._abandon(self._generation)

    async def _tell(self, send: Send, error: Exception) -> bool:
        """In the stream, where it has begun; otherwise the answer is the app's error handler's to give."""
        self._observation.failed(error)
        if not self._begun or not isinstance(error, CorralError):
            return False
        logger.info("request %s failed after it began: %s", self._generation.request.id, error.message)
        await send({"type": "http.response.body", "body": self._reply.render_error(error)})
        return True

    async def _notice_departure(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._abandon(self._generation)

    async def _send_whole(self, send: Send) -> None:
        body, ended = b"", False
        while not ended:
            part, ended = await self._next_part()
            body += part
        await self._start(send, (b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(self, send: Send) -> None:
        if self._place_of is not None:
            await self._send_places(send, self._place_of)
        ended = False
        while not ended:
            part, ended = await self._next_part()
            if part:  # the end goes with the last part: a write of its own would cost as much as the part's
                await self._send_part(send, part, ended=ended)

    async def _send_places(self, send: Send, place_of: Callable[[Generation], Awaitable[Place | None]]) -> None:
        """Until the request has left the queue."""
        place = self._generation.place
        while place is not None and place.position > 0:
            await self._send_part(send, b": queue position %d\n\n" % place.position, ended=False)
            if await self._generation.arrives(within_s=_UPDATE_S):
                return
            place = await place_of(self._generation)

    async def _send_part(self, send: Send, part: bytes, *, ended: bool) -> None:
        if not self._begun:
            await self._start(send, *_STREAM_HEADERS)
            self._begun = True
        await send({"type": "http.response.body", "body": part, "more_body": not ended})

    async def _next_part(self) -> tuple[bytes, bool]:
        """All that had arrived, which may have nothing to say, and whether it is the end. A stream's end has something to say."""
        events = await self._generation.events()
        self._observation.handed_on(events, sum(map(len, self._generation.committed)))
        return b"".join([self._reply.render(event) for event in events]), isinstance(events[-1], Finished)

    async def _start(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        content_type = (b"content-type", self._reply.content_type.encode())
        request = (b"x-request-id", self._generation.request.id.encode())
        every = [content_type, request, *_place_headers(self._generation.place), *headers]
        await send({"type": "http.response.start", "status": self.status_code, "headers": every})


def _place_headers(place: Place | None) -> list[tuple[bytes, bytes]]:
    """Where the request stood when it came in; the wait in seconds where it could be estimated."""
    if place is None:
        return []
    position = (b"x-queue-position", b"%d" % place.position)
    return [position] if place.wait_s is None else [position, (b"x-queue-estimated-wait", b"%.1f" % place.wait_s)]
