"""A real Docker engine and an image for workers. Everything that a test creates is removed afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import docker
import pytest
from docker.errors import DockerException, NotFound

from services.protocol.messages import new_id
from tests.node.containers.images import import_image


@cache
def _connection_error() -> str | None:
    """Why no Docker engine answers, or None if one does."""
    try:
        docker.from_env(version="auto").close()
    except DockerException as error:
        return str(error)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips in one place, so that pytest prints one line with the number of skipped tests."""
    if item.get_closest_marker("docker") and (error := _connection_error()):
        pytest.skip(f"the Docker tests were skipped because no Docker Engine answers: {error}")


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """The engine's API, to check the runtime's effects."""
    client = docker.from_env(version="auto")
    yield client.api
    client.close()


@pytest.fixture(scope="session")
def image(engine: Any) -> Iterator[str]:
    tag = f"corral-test-worker:{new_id()}-cpu"
    import_image(engine, tag)
    yield tag
    engine.remove_image(tag, force=True)


@pytest.fixture
def node(engine: Any) -> Iterator[str]:
    """A fresh node name; its containers are removed after the test."""
    name = f"test-{new_id()}"
    yield name
    for container in engine.containers(all=True, filters={"label": f"ai.corral.node={name}"}):
        engine.remove_container(container["Id"], force=True, v=True)


@pytest.fixture
def network(engine: Any, node: str) -> Iterator[str]:
    engine.create_network(node, driver="bridge", internal=True)
    yield node
    for container in engine.containers(all=True, filters={"label": f"ai.corral.node={node}"}):
        engine.remove_container(container["Id"], force=True, v=True)
    try:
        engine.remove_network(node)
    except NotFound:
        return
