"""`python door.py SOCKET PORT`: holds the published port for the gateways, so that they can be replaced without anybody being refused.

It listens and accepts nothing: every gateway that connects to SOCKET is handed the listening socket itself, and accepts from it. While there is
no gateway, connections wait in the kernel's queue. It sees no byte of what is said. A gateway keeps its connection to SOCKET open, and so
learns when the door, and with it the port, is gone.

It changes with compose.yaml and not with a release, since replacing it does cost connections: nothing of Corral is imported here.
"""

import os
import selectors
import signal
import socket
import sys

#: Connections that may wait; the kernel takes no more than net.core.somaxconn, 4096 where nobody changed it.
BACKLOG = 4096


def main(path: str, port: int) -> None:
    # The first process of a container ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = socket.create_server(("", port), backlog=BACKLOG)
    if os.path.exists(path):
        os.unlink(path)
    door = socket.socket(socket.AF_UNIX)
    door.bind(path)
    door.listen()
    with selectors.DefaultSelector() as waiting:
        waiting.register(door, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is door:
                    gateway, _ = door.accept()
                    socket.send_fds(gateway, [b"1"], [listener.fileno()])
                    waiting.register(gateway, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):  # gateways say nothing: this one has ended
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()


main(sys.argv[1], int(sys.argv[2]))
