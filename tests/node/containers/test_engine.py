"""How an agent in a container detects that Compose is about to replace it."""

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
    """Creates containers of one Compose service; this process appears to run in the first one."""
    name = f"corral-test-{new_id()}"
    monkeypatch.setattr(socket, "gethostname", lambda: f"{name}-0")
    made: list[str] = []

    def make(**labels: str) -> str:
        all_labels = {f"{COMPOSE}.project": name, f"{COMPOSE}.service": "node"}
        all_labels |= {f"{COMPOSE}.{label}": value for label, value in labels.items()}
        made.append(
            engine.create_container(image, ["python", "--version"], name=f"{name}-{len(made)}", labels=all_labels)["Id"]
        )
        return made[-1]

    yield make
    for container in made:
        engine.remove_container(container, force=True, v=True)


def test_an_agent_outside_of_containers_is_not_replaced(engine: Any) -> None:
    assert not Engine().replaces_us()


def test_a_successor_exists_until_it_has_started(engine: Any, service: Any) -> None:
    service()
    assert not Engine().replaces_us()
    service()
    assert not Engine().replaces_us(), "another one of the same service is no successor"
    successor = service(replace="the first")
    assert Engine().replaces_us()
    engine.start(successor)
    engine.wait(successor)
    assert not Engine().replaces_us()


def test_a_successor_of_another_service_does_not_count(service: Any) -> None:
    service()
    service(service="gateway", replace="another")
    assert not Engine().replaces_us()
