"""A client of this machine's Docker Engine, with what a node agent needs. The only import of Docker's SDK.

Raises ModelLoadFailed with the engine's message if it refuses a call, and Unavailable if it does not answer. Removing or
signalling a container that is already gone is not an error.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import docker
from docker.errors import APIError, DockerException, NotFound
from requests.exceptions import RequestException

from services.node.containers.template import NODE_LABEL, REPLICA_LABEL
from services.node.runtime import last_line
from services.protocol.errors import ModelLoadFailed, Unavailable

#: Timeout of a call. A GPU driver that is waking up takes some seconds, also to pass its device to a container.
_ANSWER_TIMEOUT_S = 60
_CONNECTIONS = 32
_TAIL_LINES = 20
_EXPLANATION_LIMIT = 400
#: Compose creates a container's successor before it stops the container, and starts the successor after that.
_PROJECT, _SERVICE, _REPLACES = (f"com.docker.compose.{name}" for name in ("project", "service", "replace"))
#: HTTP statuses: no such container; not running, or being removed.
_DONE = (404, 409)
#: If a signal ended its process, a container's exit code is this plus the signal's number.
_SIGNALLED = 128
_LAST_SIGNAL = 64


class Container(NamedTuple):
    """A container. `exit_code` is valid only if it does not run; negative for a signal. `pid` is its first process's on the
    host. `memory_limit` in bytes, 0: none."""

    id: str
    replica: str
    runs: bool
    pid: int
    exit_code: int
    out_of_memory: bool
    memory_limit: int


class Listed(NamedTuple):
    """A container in a list. `status` is Docker's: created, running, paused, exited ..."""

    replica: str
    status: str


class Event(NamedTuple):
    """A container has ended. `exit_code` None: the kernel killed a process in it because it ran out of memory."""

    container: str
    exit_code: int | None


class Engine:
    """The Docker Engine, found through the environment (DOCKER_HOST) as the docker command does. Thread-safe. Raises
    Unavailable if it does not answer."""

    def __init__(self) -> None:
        with _answers("the Docker engine refuses this agent"):
            self._api: Any = docker.from_env(timeout=_ANSWER_TIMEOUT_S, max_pool_size=_CONNECTIONS).api
            self._api.trust_env = False  # otherwise REQUESTS_CA_BUNDLE would replace the engine's own CA
            info = self._api.info()
        self.cpus: int = info["NCPU"]
        self.memory_bytes: int = info["MemTotal"]
        self._stream: Any = None
        self._closed = False

    def close(self) -> None:
        """Closes the connection. Ends a running `events`."""
        self._closed = True
        self._end_stream()
        self._api.close()

    def require_image(self, image: str) -> None:
        with _answers(f"image {image}", missing=f"there is no image {image} on this node: build it here, pull it or load it"):
            self._api.inspect_image(image)

    def require_network(self, network: str) -> None:
        with _answers(f"network {network}", missing=f"there is no Docker network {network} on this node"):
            self._api.inspect_network(network)

    def require_volume(self, volume: str) -> None:
        """Raises ModelLoadFailed if the volume is missing. Docker itself would create an empty one and leave it."""
        with _answers(f"volume {volume}", missing=f"there is no Docker volume {volume} on this node"):
            self._api.inspect_volume(volume)

    def create(self, name: str, body: dict[str, Any]) -> str:
        """Creates a container and returns its id."""
        with _answers(f"the container {name} cannot be created"):
            container: str = self._api.create_container_from_config(body, name)["Id"]
        return container

    def start(self, container: str) -> None:
        with _answers("the worker's container cannot be started"):
            self._api.start(container)

    def find(self, container: str) -> Container | None:
        """The container with this name or id; None if there is none."""
        with _answers("a container cannot be inspected"):
            try:
                found = self._api.inspect_container(container)
            except NotFound:
                return None
        state = found["State"]
        return Container(
            id=found["Id"],
            replica=(found["Config"]["Labels"] or {}).get(REPLICA_LABEL, ""),
            runs=state["Running"],
            pid=state["Pid"],
            exit_code=_exit_code(state["ExitCode"]),
            out_of_memory=state["OOMKilled"],
            memory_limit=found["HostConfig"]["Memory"],
        )

    def workers(self, node: str) -> dict[str, Listed]:
        """The node's worker containers in any state, by id."""
        with _answers("containers cannot be listed"):
            found = self._api.containers(all=True, filters={"label": [f"{NODE_LABEL}={node}", REPLICA_LABEL]})
        return {entry["Id"]: Listed(entry["Labels"][REPLICA_LABEL], entry["State"]) for entry in found}

    def replaces_us(self) -> bool:
        """Whether Compose has created a successor of the container that this process runs in."""
        with _answers("containers cannot be listed"):
            try:
                ours = self._api.inspect_container(socket.gethostname())["Config"]["Labels"] or {}
            except NotFound:  # this process does not run in a container
                return False
            if _PROJECT not in ours:
                return False
            same = [f"{label}={ours[label]}" for label in (_PROJECT, _SERVICE)]
            return bool(self._api.containers(all=True, filters={"status": "created", "label": [*same, _REPLACES]}))

    def signal(self, container: str, name: str) -> None:
        """Sends a signal. Does nothing if the container does not run."""
        with _answers("a container cannot be signalled"), _already():
            self._api.kill(container, signal=name)

    def remove(self, container: str) -> None:
        """Removes the container with this name or id, even if it runs."""
        with _answers("a container cannot be removed"), _already():
            self._api.remove_container(container, force=True, v=True)

    def tail(self, container: str) -> bytes:
        """The last lines of the container's output; empty if it is gone."""
        tails: list[bytes] = []
        with _answers("a container's log cannot be read"), _already():
            tails.append(self._api.logs(container, tail=_TAIL_LINES))
        return b"".join(tails)

    def output(self, name: str, body: dict[str, Any]) -> bytes:
        """Runs a container to its end, removes it, and returns what it printed. Raises ModelLoadFailed if its exit code is not
        0."""
        self.remove(name)  # left by an agent that crashed
        container = self.create(name, body)
        try:
            self.start(container)
            with _answers(f"the container {name} did not end"):
                code = self._api.wait(container, timeout=_ANSWER_TIMEOUT_S)["StatusCode"]
                output: bytes = self._api.logs(container, stdout=True, stderr=False)
            if code:
                raise ModelLoadFailed(f"the container {name} ended with code {code}: {last_line(self.tail(container))}")
            return output
        finally:
            self.remove(container)

    def events(self, node: str, *, since: int, until: int) -> Iterator[Event]:
        """The events of the node's containers between two times, in seconds since the epoch. Ends early if the engine goes
        away. Only one thread may iterate at a time."""
        filters = {"type": "container", "event": ["die", "oom"], "label": f"{NODE_LABEL}={node}"}
        with _answers("the Docker engine sends no events"):
            self._stream = self._api.events(since=since, until=until, filters=filters, decode=True)
            if self._closed:
                self._end_stream()
            for event in self._stream:
                actor = event["Actor"]
                code = _exit_code(int(actor["Attributes"]["exitCode"])) if event["Action"] == "die" else None
                yield Event(actor["ID"], code)

    def _end_stream(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                self._stream.close()


def _exit_code(status: int) -> int:
    return _SIGNALLED - status if _SIGNALLED < status <= _SIGNALLED + _LAST_SIGNAL else status


@contextlib.contextmanager
def _answers(doing: str, *, missing: str = "") -> Iterator[None]:
    """Turns the SDK's errors into ours. `missing`: the message if the engine answers 404."""
    try:
        yield
    except APIError as error:
        if missing and isinstance(error, NotFound):
            raise ModelLoadFailed(missing) from error
        explanation = " ".join((error.explanation or type(error).__name__).split())[:_EXPLANATION_LIMIT]
        raise ModelLoadFailed(f"{doing}: {explanation}") from error
    except (DockerException, RequestException) as error:
        if not _is_outage(error):
            raise
        raise Unavailable(f"the Docker engine does not answer: {_cause(error)}") from error


@contextlib.contextmanager
def _already() -> Iterator[None]:
    """Ignores errors about a container that is gone, has ended, or is being removed."""
    try:
        yield
    except APIError as error:
        if error.status_code not in _DONE:
            raise


def _is_outage(error: BaseException) -> bool:
    """Whether an OSError caused it. The SDK's errors about our own call (InvalidArgument, NullResource) have no such cause."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _cause(error: BaseException) -> str:
    """The operating system's message, which the SDK wraps several times."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
