"""A web server on loopback that holds one file, and fails in the ways that servers fail."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, cast

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_PIECE_BYTES = 16 * 1024


class Asked(NamedTuple):
    """A request: its path with the query, and the range as (first, stop), or None."""

    path: str
    part: tuple[int, int] | None


class FileServer:
    """`/model.gguf` is the file. `/signed` redirects to it with a signature that is valid for `signature_uses` requests.

    The switches may be changed while requests are answered; `statuses`, `cuts` and `flips` count for requests for more than the
    first bytes of the file, which every pull asks for at its start.
    """

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.data = b""
        self.etag = '"1"'
        #: False: answers every request with the whole file.
        self.ranges = True
        #: The next answers have these statuses and no body.
        self.statuses: deque[int] = deque()
        #: The next answers end after so many bytes, with a broken connection.
        self.cuts: deque[int] = deque()
        #: The first byte of so many of the next answers is wrong.
        self.flips = 0
        #: Of each connection; None: as fast as it goes.
        self.bytes_per_s: int | None = None
        #: No more bytes than this are sent, until it is raised; None: all.
        self.limit: int | None = None
        #: How many requests a signature is good for; None: all.
        self.signature_uses: int | None = None
        #: While it is clear, answers stop after their first half.
        self.gate = threading.Event()
        self.gate.set()
        self.stalled = threading.Event()
        #: Called after the answer to a request for the first bytes.
        self.after_beginning: Callable[[], None] = lambda: None
        #: Called before the request for a body with this number.
        self.after_bodies: dict[int, Callable[[], None]] = {}
        #: Every request is redirected there.
        self.redirect = ""
        #: What follows the part in each body.
        self.excess = b""
        self.content_encoding = ""
        self.claimed_range = ""
        self.asked: list[Asked] = []
        self.headers_seen: list[dict[str, str]] = []
        self.sent = 0
        self.lock = threading.Lock()
        self._signature = 0
        self._uses = 0
        self._server = server
        self._port = server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/model.gguf"

    @property
    def signed_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/signed"

    @property
    def bodies(self) -> list[Asked]:
        """The requests for more than the first bytes."""
        return [asked for asked in self.asked if asked.part is None or asked.part[1] - asked.part[0] > 4]

    def secure(self, context: ssl.SSLContext) -> None:
        """From now on by HTTPS."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def new_signature(self) -> int:
        with self.lock:
            self._signature, self._uses = self._signature + 1, 0
            return self._signature

    def accepts(self, signature: str) -> bool:
        with self.lock:
            self._uses += 1
            return signature == str(self._signature) and (self.signature_uses is None or self._uses <= self.signature_uses)


@contextmanager
def serve_file(data: bytes) -> Iterator[FileServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    files = FileServer(server)
    files.data = data
    _Handler.files[server.server_port] = files
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield files
    finally:
        files.gate.set()
        files.bytes_per_s = files.limit = None
        server.shutdown()
        thread.join()
        server.server_close()
        del _Handler.files[server.server_port]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: By port.
    files: dict[int, FileServer] = {}

    def do_GET(self) -> None:
        files = self.files[cast(ThreadingHTTPServer, self.server).server_port]
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        part = (int(match[1]), min(int(match[2]) + 1, len(files.data))) if match else None
        with files.lock:
            files.asked.append(Asked(self.path, part))
            files.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        # A client of a proxy sends the whole URL.
        path, _, query = re.sub(r"^http://[^/]+", "", self.path).partition("?")
        if files.redirect:
            self._redirect(files.redirect)
        elif path == "/signed":
            self._redirect(f"/model.gguf?signature={files.new_signature()}")
        elif path != "/model.gguf":
            self._status(404)
        elif query and not files.accepts(query.removeprefix("signature=")):
            self._status(403)
        elif part and part[1] - part[0] <= 4:
            self._send(files, part if files.ranges else None, is_beginning=True)
            files.after_beginning()
        else:
            files.after_bodies.pop(len(files.bodies), lambda: None)()
            self._send(files, part if files.ranges else None, is_beginning=False)

    def _redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _status(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, files: FileServer, part: tuple[int, int] | None, *, is_beginning: bool) -> None:
        start, stop = part or (0, len(files.data))
        body, cut = files.data[start:stop], None
        if not is_beginning:
            with files.lock:
                if files.statuses:
                    self._status(files.statuses.popleft())
                    return
                cut = files.cuts.popleft() if files.cuts else None
                if files.flips:
                    files.flips -= 1
                    body = bytes([body[0] ^ 1]) + body[1:]
                body += files.excess
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", files.claimed_range or f"bytes {start}-{stop - 1}/{len(files.data)}")
        if files.etag:
            self.send_header("ETag", files.etag)
        if files.content_encoding:
            self.send_header("Content-Encoding", files.content_encoding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self._write(files, body if cut is None else body[:cut])
            if cut is not None:
                self.close_connection = True
        except OSError:
            self.close_connection = True

    def _write(self, files: FileServer, body: bytes) -> None:
        for start in range(0, len(body), _PIECE_BYTES):
            if start >= len(body) // 2 and not files.gate.is_set() and len(body) > 4:
                files.stalled.set()
                files.gate.wait()
            while files.limit is not None and files.sent >= files.limit:
                time.sleep(0.01)
            piece = body[start : start + _PIECE_BYTES]
            if files.bytes_per_s:
                time.sleep(len(piece) / files.bytes_per_s)
            self.wfile.write(piece)
            with files.lock:
                files.sent += len(piece)

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_args: object) -> None:
        pass
