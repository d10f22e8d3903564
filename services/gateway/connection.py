"""A client connection that shuts down without losing a request in transit.

On shutdown, uvicorn closes idle keep-alive connections at once. A client that sends its next request at that moment gets no
answer and can't tell whether the request was processed. This class keeps serving such connections for LINGER_TIMEOUT_S, and closes each
one after its next response.
"""

from __future__ import annotations

from services.gateway.errors import in_dialect
from services.process.http_connection import BoundedConnection
from services.protocol.errors import CorralError

#: How long an idle connection stays open during shutdown. Busy clients send their next request within this time.
LINGER_TIMEOUT_S = 1.0

_CLOSE = (b"connection", b"close")


class Connection(BoundedConnection):
    _ending = False

    def shutdown(self) -> None:
        self._ending = True
        if self._idle:
            self.loop.call_later(LINGER_TIMEOUT_S, self._close_idle)
        else:
            self.cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        if self._ending:
            self.headers.append(_CLOSE)  # as if the client had sent it, so that uvicorn puts it into the response
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False

    def render(self, error: CorralError) -> tuple[bytes, str]:
        """Renders the error in the dialect of the path, if the path has arrived."""
        path = getattr(self, "url", b"").decode("ascii", errors="replace").partition("?")[0]
        return in_dialect(path, error)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_idle(self) -> None:
        if self._idle:
            self.transport.close()
