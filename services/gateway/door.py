"""A listening socket that somebody else holds and several gateways share: how one takes over from another without a connection refused.

The door (ops/door/door.py) owns the published port. What arrives while no gateway accepts waits in the kernel's queue. The door's end is the
end of the port: a gateway then stops, and whoever started it starts it again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

#: The door answers at once; longer than this it is no door.
ANSWER_S = 10.0


def listen_at(door: Path) -> socket.socket:
    """The listening socket of the door. From now on this process gets SIGTERM when the door goes. Raises OSError where there is none."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_S)
    try:
        connection.connect(str(door))
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        if not descriptors:
            raise ConnectionError("it hands out no socket")
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
        logger.warning("the door: %s", error)
    logger.error("the door is gone, and with it the port that people reach; this gateway stops, to be started anew")
    os.kill(os.getpid(), signal.SIGTERM)
