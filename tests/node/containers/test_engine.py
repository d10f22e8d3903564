"""How an agent in a container learns that Compose is about to replace it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from services.node.containers.engine import Engine
from services.protocol.messages import new_id

pytestmark = pytest.mark.docker

COMPOSE = "com.docker.compose"


@pytest.fixture
def service(engine: Any, image: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes containers of one service of Compose; this process takes itself for being in the first."""
    name = f"corral-test-{new_id()}"
    monkeypatch.setattr(socket, "gethostname", lambda: f"{name}-0")
    made: list[str] = []

    def make(**labels: str) -> str:
        told = {f"{COMPOSE}.project": name, f"{COMPOSE}.service": "node"}
        told |= {f"{COMPOSE}.{label}": value for label, value in labels.items()}
        made.append(engine.create_container(image, ["python", "--version"], name=f"{name}-{len(made)}", labels=told)["Id"])
        return made[-1]

    yield make
    for container in made:
        engine.remove_container(container, force=True, v=True)


def test_an_agent_outside_of_containers_is_replaced_by_nobody(engine: Any) -> None:
    assert not Engine().replaces_us()


def test_a_successor_is_there_before_it_is_started(engine: Any, service: Any) -> None:
    service()
    assert not Engine().replaces_us()
    service()
    assert not Engine().replaces_us(), "another one of the same service is no successor"
    successor = service(replace="the first")
    assert Engine().replaces_us()
    engine.start(successor)
    engine.wait(successor)
    assert not Engine().replaces_us()


def test_the_successor_of_another_service_does_not_count(service: Any) -> None:
    service()
    service(service="gateway", replace="another")
    assert not Engine().replaces_us()
