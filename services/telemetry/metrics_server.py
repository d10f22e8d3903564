"""The HTTP server for a service's metrics: one thread per scrape, with limits on the number and the duration of scrapes."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

logger = logging.getLogger(__name__)

#: Maximum number of concurrent scrapes. Further connections are closed.
MAX_SCRAPES = 8
#: Maximum duration of a connection; after that it is shut down.
SCRAPE_TIMEOUT_S = 20.0


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Serves from construction until `close`. Raises OSError if it cannot bind the port."""

    daemon_threads = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry, *, scrape_s: float = SCRAPE_TIMEOUT_S) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self._scrape_s = scrape_s
        self._free = threading.BoundedSemaphore(MAX_SCRAPES)
        super().__init__((str(address[0]), port), _Handler)
        self.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(self._scrape_s, _end, args=(request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The scraper disconnected, or its time was up."""
        logger.debug("scrape failed: client=%s", client_address, exc_info=True)


def _end(request: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        request.shutdown(socket.SHUT_RDWR)
