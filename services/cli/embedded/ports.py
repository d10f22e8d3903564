"""Checks and picks TCP ports on this machine."""

from __future__ import annotations

import errno
import socket

from services.cli.embedded import processes
from services.cli.errors import CommandError
from services.process.address import Address


def free_ports(count: int) -> list[int]:
    """Different loopback ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def require_free(address: Address) -> None:
    """Raises CommandError if we can't listen on the address, naming the process that uses the port if known."""
    try:
        family, _, _, _, target = socket.getaddrinfo(
            address.host or "0.0.0.0", address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(target)
            server.listen()
    except OSError as error:
        raise CommandError(_explain(address, error)) from None


def _explain(address: Address, error: OSError) -> str:
    here = f"{address.host}:{address.port}"
    if error.errno == errno.EADDRINUSE:
        pid = processes.listener(address.port)
        who = f" by {processes.name(pid)} (pid {pid})" if pid else ""
        return f"{here} is in use{who}; stop that process, or choose another address with CORRAL_HOST={address.host}:{address.port + 1}"
    if error.errno == errno.EACCES:
        return f"cannot listen on {here}: only root may use ports below 1024; choose another port with CORRAL_HOST"
    return f"cannot listen on {here} ({error.strerror or error}); set CORRAL_HOST to an address of this machine"
