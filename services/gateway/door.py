"""Takes the listening socket from the door process, which lets one gateway replace another without a refused connection.

The door (ops/door/door.py) owns the published port and shares its socket with every gateway. While no gateway accepts,
connections wait in the kernel's queue. If the door exits, the port closes, and the gateway stops so that its supervisor
restarts it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

#: How long to wait for the door, which normally answers at once.
ANSWER_TIMEOUT_S = 10.0


def listen_at(door: Path) -> socket.socket:
    """Returns the door's listening socket. From then on, this process gets SIGTERM when the door exits.

    Raises OSError if the door can't be reached or doesn't hand out a socket.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_TIMEOUT_S)
    try:
        connection.connect(str(door))
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        if not descriptors:
            raise ConnectionError("it did not send a socket")
    except OSError:
        connection.close()
        raise
    connection.settimeout(None)
    threading.Thread(target=_watch, args=(connection,), name="door", daemon=True).start()
    return socket.socket(fileno=descriptors[0])


def _watch(connection: socket.socket) -> None:
    try:
        connection.recv(1)
    except OSError as error:
        logger.warning("door connection failed: error=%r", str(error))
    logger.error("door exited, the published port is closed: the gateway stops so that its supervisor restarts it")
    os.kill(os.getpid(), signal.SIGTERM)
