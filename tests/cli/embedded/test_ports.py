from __future__ import annotations

import os
import socket

import pytest

from services.cli.embedded import processes
from services.cli.embedded.ports import free_ports, require_free
from services.cli.errors import CommandError
from services.process.address import Address


def at(port: int, host: str = "127.0.0.1") -> Address:
    return Address("http", host, port, "")


def test_a_port_in_use_names_the_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        who = rf"127\.0\.0\.1:{port} is in use by {processes.name(os.getpid())} \(pid {os.getpid()}\); stop that process, or choose another"
        with pytest.raises(CommandError, match=who):
            require_free(at(port))
    require_free(at(port))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CommandError, match=r"^cannot listen on 192\.0\.2\.1:11434 .*address of this machine$"):
        require_free(at(11434, "192.0.2.1"))


def test_free_ports_are_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        require_free(at(port))
