"""A client's connection, which ends without losing a request that is on its way.

uvicorn, told to stop, closes connections that wait for a request at once. A client that sends its next one in that moment gets no answer, and
cannot know whether it was begun. Here they are served for LINGER_S more, and told to close behind the answer.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Busy clients send their next request within so long; what is idle for longer is closed.
LINGER_S = 1.0

_CLOSE = (b"connection", b"close")


class Connection(HttpToolsProtocol):
    _ending = False

    def shutdown(self) -> None:
        self._ending = True
        if self._idle:
            self.loop.call_later(LINGER_S, self._close_idle)
        else:
            self.cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        if self._ending:
            self.headers.append(_CLOSE)  # as if the client had asked for it: uvicorn then says so in the answer
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_idle(self) -> None:
        if self._idle:
            self.transport.close()
