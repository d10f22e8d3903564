"""The container runtime on a real Docker engine, with small scripts as workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError, NotFound

from services.node.containers.runtime import ContainerRuntime
from services.node.containers.template import Template
from services.node.runtime import StartSpec
from services.protocol.engine import EngineSettings
from services.protocol.errors import BadRequest, ModelLoadFailed, ModelRefused, Unavailable
from services.protocol.reports import Device, ProcessReport
from tests.conditions import eventually_sync
from tests.node.containers.relay import Relay

pytestmark = pytest.mark.docker

PATIENT = (
    "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); print('up', flush=True)\nwhile True: signal.pause()"
)
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
BROKEN = "print('loading'); print('model is broken\\n'); exit(3)"
GREEDY = "print('loading', flush=True)\nhoard = []\nwhile True: hoard.append(bytearray(b'x' * 2**20))"
GPUS = 'print(\'[{"kind":"cuda","name":"A card","memory_bytes":16},{"kind":"cuda","name":"A card","memory_bytes":16}]\')'
LOOKS_AROUND = """
import json, os, pathlib, sys

def may(act):
    try:
        act()
        return True
    except OSError:
        return False

status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
store = pathlib.Path(os.environ["CORRAL_MODEL_PATH"])
print(json.dumps({
    "environment": dict(os.environ),
    "user": [os.getuid(), os.getgid()],
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "gains": status["NoNewPrivs"].strip() == "0",
    "init": pathlib.Path("/proc/1/comm").read_text().strip() != pathlib.Path("/proc/self/comm").read_text().strip(),
    "reads": store.read_text(),
    "writes_store": may(lambda: (store.parent / "new").write_text("")),
    "writes_root": may(lambda: pathlib.Path("/new").write_text("")),
    "writes_tmp": may(lambda: pathlib.Path("/tmp/new").write_text("")),
}))
"""

MakeRuntime = Callable[..., ContainerRuntime]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "blob").write_text("weights")
    return tmp_path / "store"


@pytest.fixture
def make_runtime(node: str, image: str, store: Path) -> Iterator[MakeRuntime]:
    made: list[ContainerRuntime] = []

    def make(script: str = PATIENT, *, backend: Any = "cpu", image: str = image, **template: Any) -> ContainerRuntime:
        facts = {
            "node": node,
            "store": store,
            "volume": str(store),
            "network": "none",
            "environment": {"MARK": "set"},
            "drain_s": 5.0,
            "command": ("python", "-c", script),
            "accelerators_command": ("python", "-c", GPUS),
        }
        made.append(ContainerRuntime(Template(**{**facts, **template}), image=image, backend=backend))
        return made[-1]

    yield make
    for runtime in made:
        runtime.hurry()
        runtime.close()


def spec(store: Path, replica: str = "r1", *, memory_bytes: int = 0, **engine: Any) -> StartSpec:
    return StartSpec(replica, "f" * 64, store / "blob", EngineSettings(slots=3, **engine), memory_bytes)


def only(runtime: ContainerRuntime) -> ProcessReport:
    (report,) = runtime.reports()
    return report


def containers(engine: Any, node: str) -> list[dict[str, Any]]:
    found = engine.containers(all=True, filters={"label": f"ai.corral.node={node}"})
    return [engine.inspect_container(entry["Id"]) for entry in found]


def the_container(engine: Any, node: str) -> dict[str, Any]:
    (found,) = containers(engine, node)
    return found


def up(engine: Any, node: str, replica: str = "r1") -> None:
    eventually_sync(lambda: b"up" in engine.logs(f"corral-{node}-{replica}"), what="the worker")


def test_a_worker_is_started_and_stopped(make_runtime: MakeRuntime, engine: Any, node: str, store: Path) -> None:
    runtime = make_runtime()
    runtime.start(spec(store))
    up(engine, node)
    found = the_container(engine, node)
    assert found["Name"] == f"/corral-{node}-r1"
    labels = {"ai.corral.node": node, "ai.corral.replica": "r1", "ai.corral.version": "f" * 64}
    assert found["Config"]["Labels"] == labels
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "no"
    assert found["HostConfig"]["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert only(runtime) == ProcessReport("r1", found["State"]["Pid"], None, "")
    assert runtime.running() == {"r1"}
    runtime.stop("r1")
    assert (runtime.running(), runtime.reports(), containers(engine, node)) == (frozenset(), (), [])


def test_what_a_worker_may_access(make_runtime: MakeRuntime, engine: Any, node: str, store: Path) -> None:
    runtime = make_runtime(LOOKS_AROUND)
    runtime.start(spec(store, memory_bytes=2**30))
    eventually_sync(lambda: only(runtime).exit_code == 0, what="the script")
    seen = json.loads(engine.logs(f"corral-{node}-r1"))
    environment = seen.pop("environment")
    expected_user = [os.getuid(), os.getgid()] if os.getuid() else [65534, 65534]
    assert seen == {
        "user": expected_user,
        "capabilities": 0,
        "gains": False,
        "init": True,
        "reads": "weights",
        "writes_store": False,
        "writes_root": False,
        "writes_tmp": True,
    }
    assert (environment["CORRAL_REPLICA"], environment["CORRAL_VERSION"]) == ("r1", "f" * 64)
    assert (environment["CORRAL_SLOTS"], environment["CORRAL_DRAIN_S"], environment["MARK"]) == ("3", "5.0", "set")
    host = the_container(engine, node)["HostConfig"]
    assert (host["Memory"], host["PidsLimit"]) == (int(1.25 * 2**30) + 256 * 2**20, 2048)


def test_starting_twice_does_nothing(make_runtime: MakeRuntime, engine: Any, node: str, store: Path) -> None:
    runtime = make_runtime()
    runtime.start(spec(store))
    first = only(runtime)
    runtime.start(spec(store))
    assert only(runtime) == first
    assert len(containers(engine, node)) == 1


def test_stopping_an_unknown_worker_does_nothing(make_runtime: MakeRuntime) -> None:
    make_runtime().stop("r1")


def test_an_exit_is_reported_until_the_next_start(make_runtime: MakeRuntime, engine: Any, node: str, store: Path) -> None:
    runtime = make_runtime(BROKEN)
    runtime.start(spec(store))
    eventually_sync(lambda: only(runtime).exit_code is not None)
    first = only(runtime)
    assert (first.exit_code, first.last_line, first.reason) == (3, "model is broken", "")
    before = the_container(engine, node)["Id"]
    runtime.start(spec(store))
    assert the_container(engine, node)["Id"] != before


def test_an_exited_worker_is_removed_after_a_while(
    make_runtime: MakeRuntime, engine: Any, node: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.node.containers.runtime.ENDED_KEPT_S", 0.1)
    monkeypatch.setattr("services.node.containers.runtime.EVENTS_TIMEOUT_S", 1)
    runtime = make_runtime(BROKEN)
    runtime.start(spec(store))
    eventually_sync(lambda: runtime.reports() != () and only(runtime).exit_code == 3)
    eventually_sync(lambda: runtime.reports() == (), what="the end of its report")
    assert containers(engine, node) == []


def test_a_killed_worker_is_reported_within_half_a_second(
    make_runtime: MakeRuntime, engine: Any, node: str, store: Path
) -> None:
    runtime = make_runtime()
    runtime.start(spec(store))
    up(engine, node)
    os.kill(only(runtime).pid, signal.SIGKILL)
    eventually_sync(lambda: not runtime.running(), timeout_s=0.5)
    report = only(runtime)
    assert (report.exit_code, report.reason, report.crashed) == (-signal.SIGKILL, "", False)


def test_reports_do_not_query_the_engine(make_runtime: MakeRuntime, store: Path) -> None:
    runtime = make_runtime()
    runtime.start(spec(store))
    started = time.monotonic()
    for _ in range(1000):
        assert runtime.running() == {"r1"}
        assert len(runtime.reports()) == 1
    assert time.monotonic() - started < 0.5


def test_a_worker_that_runs_out_of_memory_reports_it(make_runtime: MakeRuntime, store: Path) -> None:
    runtime = make_runtime(GREEDY)
    runtime.start(spec(store, memory_bytes=2**20))
    eventually_sync(lambda: only(runtime).exit_code is not None, timeout_s=60)
    report = only(runtime)
    assert (report.exit_code, report.last_line) == (-signal.SIGKILL, "loading")
    assert (report.reason, report.error_code) == ("ran out of memory: limit 0.3 GiB", "insufficient_memory")
    assert report.crashed, "by its own fault, unlike one that somebody killed"


def test_a_worker_that_does_not_drain_is_killed(
    make_runtime: MakeRuntime, engine: Any, node: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.node.drain.KILL_GRACE_S", 0.5)
    runtime = make_runtime(STUBBORN, drain_s=0.1)
    runtime.start(spec(store))
    up(engine, node)
    runtime.stop("r1")
    assert (runtime.reports(), containers(engine, node)) == ((), [])


def test_a_hurried_stop_does_not_wait_for_the_drain(make_runtime: MakeRuntime, engine: Any, node: str, store: Path) -> None:
    runtime = make_runtime(STUBBORN, drain_s=60)
    runtime.start(spec(store))
    up(engine, node)
    runtime.hurry()
    started = time.monotonic()
    runtime.close()
    assert time.monotonic() - started < 10
    assert containers(engine, node) == []


def test_nothing_starts_after_close(make_runtime: MakeRuntime, engine: Any, node: str, store: Path) -> None:
    runtime = make_runtime()
    runtime.close()
    with pytest.raises(ModelLoadFailed, match="stopping"):
        runtime.start(spec(store))
    assert containers(engine, node) == []


@pytest.mark.parametrize("replica", ["", "../r", "a/b", "a\0b", ".hidden", "x" * 200])
def test_invalid_replica_ids_are_refused(make_runtime: MakeRuntime, store: Path, replica: str) -> None:
    with pytest.raises(BadRequest):
        make_runtime().start(spec(store, replica))


def start_from_another_process(node: str, image: str, store: Path, script: str) -> int:
    """Starts a worker as an agent that then dies. Returns the worker's pid."""
    code = f"""
import os
from pathlib import Path
from services.node.containers.runtime import ContainerRuntime
from services.node.containers.template import Template
from services.node.runtime import StartSpec
from services.protocol.engine import EngineSettings
store = Path({str(store)!r})
template = Template(node={node!r}, network="none", store=store, volume=str(store), environment={{}}, drain_s=5,
                    command=("python", "-c", {script!r}))
runtime = ContainerRuntime(template, image={image!r}, backend="cpu")
runtime.start(StartSpec("r1", "f" * 64, store / "blob", EngineSettings()))
print(runtime.reports()[0].pid, flush=True)
os._exit(1)
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stdout)


def test_workers_of_an_agent_that_crashed_are_adopted(
    make_runtime: MakeRuntime, engine: Any, node: str, image: str, store: Path
) -> None:
    pid = start_from_another_process(node, image, store, PATIENT)
    up(engine, node)
    runtime = make_runtime()
    assert (only(runtime), runtime.running()) == (ProcessReport("r1", pid, None, ""), frozenset({"r1"}))
    runtime.start(spec(store))
    assert only(runtime).pid == pid, "never doubled"
    assert len(containers(engine, node)) == 1
    os.kill(pid, signal.SIGKILL)
    eventually_sync(lambda: not runtime.running(), timeout_s=0.5, what="an adopted worker's end")
    runtime.stop("r1")
    assert (runtime.reports(), containers(engine, node)) == ((), [])


def test_an_exit_while_no_agent_ran_is_reported(
    make_runtime: MakeRuntime, engine: Any, node: str, image: str, store: Path
) -> None:
    start_from_another_process(node, image, store, BROKEN)
    eventually_sync(lambda: the_container(engine, node)["State"]["Status"] == "exited")
    runtime = make_runtime()
    assert (only(runtime).exit_code, only(runtime).last_line, runtime.running()) == (3, "model is broken", frozenset())
    runtime.stop("r1")
    assert containers(engine, node) == []


def test_a_container_that_was_never_started_is_removed(
    make_runtime: MakeRuntime, engine: Any, node: str, image: str, store: Path
) -> None:
    template = Template(node=node, network="none", store=store, volume=str(store), environment={}, drain_s=5)
    engine.create_container_from_config(template.worker(spec(store), image, "cpu", (), cpus=1), template.name("r1"))
    runtime = make_runtime()
    assert (runtime.reports(), containers(engine, node)) == ((), [])


def test_another_nodes_workers_are_not_touched(
    make_runtime: MakeRuntime, engine: Any, node: str, image: str, store: Path
) -> None:
    other = Template(node=f"{node}-b", network="none", store=store, volume=str(store), environment={}, drain_s=5)
    made = engine.create_container_from_config(other.worker(spec(store), image, "cpu", (), cpus=1), other.name("r1"))
    try:
        assert make_runtime().reports() == ()
        assert engine.inspect_container(made["Id"])["State"]["Status"] == "created"
    finally:
        engine.remove_container(made["Id"], force=True)


def test_a_container_removed_by_hand_is_reported_as_ended(
    make_runtime: MakeRuntime, engine: Any, node: str, store: Path
) -> None:
    runtime = make_runtime()
    runtime.start(spec(store))
    up(engine, node)
    engine.remove_container(f"corral-{node}-r1", force=True)
    eventually_sync(lambda: only(runtime).exit_code is not None)
    assert runtime.running() == frozenset()
    runtime.start(spec(store))
    assert runtime.running() == {"r1"}


def test_workers_join_their_network(make_runtime: MakeRuntime, engine: Any, node: str, network: str, store: Path) -> None:
    make_runtime(network=network).start(spec(store))
    assert set(the_container(engine, node)["NetworkSettings"]["Networks"]) == {network}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"image": "corral-worker:nowhere-{backend}"}, "there is no image corral-worker:nowhere-cpu on this node"),
        ({"network": "corral_nowhere"}, "there is no Docker network corral_nowhere on this node"),
        ({"volume": "corral_nowhere"}, "there is no Docker volume corral_nowhere on this node"),
        ({"volume": "/nowhere/at/all"}, "cannot be created: .*/nowhere/at/all"),
    ],
)
def test_a_missing_resource_is_named_and_nothing_is_left(
    make_runtime: MakeRuntime, engine: Any, node: str, store: Path, facts: dict[str, Any], message: str
) -> None:
    runtime = make_runtime(**facts)
    with pytest.raises(ModelLoadFailed, match=message) as refusal:
        runtime.start(spec(store))
    assert "\n" not in refusal.value.message
    assert (runtime.reports(), runtime.running(), containers(engine, node)) == ((), frozenset(), [])
    with pytest.raises(NotFound):
        engine.inspect_volume("corral_nowhere")


def test_a_container_that_cannot_be_started_is_removed(make_runtime: MakeRuntime, engine: Any, node: str, store: Path) -> None:
    runtime = make_runtime(store=Path("/proc/store"))  # where nothing can be mounted
    with pytest.raises(ModelLoadFailed, match="the worker's container cannot be started: .*/proc") as refusal:
        runtime.start(spec(store))
    assert "\n" not in refusal.value.message
    assert (runtime.reports(), runtime.running(), containers(engine, node)) == ((), frozenset(), [])


def test_a_missing_program_is_reported(make_runtime: MakeRuntime, store: Path) -> None:
    runtime = make_runtime(command=("/nowhere/worker",))
    runtime.start(spec(store))
    eventually_sync(lambda: only(runtime).exit_code == 127)
    assert "/nowhere/worker failed: No such file or directory" in only(runtime).last_line


def test_a_deployments_image_overrides_the_nodes(
    make_runtime: MakeRuntime, engine: Any, node: str, image: str, store: Path
) -> None:
    runtime = make_runtime(image="corral-worker:nowhere")
    runtime.start(spec(store, image=image.replace("-cpu", "-{backend}")))
    assert the_container(engine, node)["Config"]["Image"] == image


def test_an_adapter_outside_the_store_is_refused(make_runtime: MakeRuntime, store: Path) -> None:
    runtime = make_runtime()
    with pytest.raises(ModelRefused, match="/elsewhere/a.gguf is not in the node's store"):
        runtime.start(spec(store, lora=(("/elsewhere/a.gguf", 1.0),)))
    runtime.start(spec(store, lora=((str(store / "blob"), 1.0),)))


@pytest.fixture(scope="session")
def supports_gpus(engine: Any, image: str) -> bool:
    """True if the engine accepts a request for a GPU."""
    request = {"Count": -1, "Capabilities": [["gpu"]]}
    body = {"Image": image, "Entrypoint": ["python", "-V"], "HostConfig": {"DeviceRequests": [request]}}
    made = engine.create_container_from_config(body)["Id"]
    try:
        engine.start(made)
    except APIError:
        return False
    finally:
        engine.remove_container(made, force=True)
    return True


def test_an_engine_without_gpu_support_is_an_error(
    make_runtime: MakeRuntime, engine: Any, node: str, store: Path, supports_gpus: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if supports_gpus:
        pytest.skip("this engine gives GPUs, or says so")
    runtime = make_runtime(backend="cuda")
    assert runtime.devices() is None
    assert "could not select device driver" in caplog.text
    with pytest.raises(ModelLoadFailed, match="could not select device driver"):
        runtime.start(spec(store))
    assert (runtime.reports(), containers(engine, node)) == ((), [])


def has_printed(engine: Any, container: str, output: bytes) -> bool:
    return bool(engine.logs(container) == output)


def test_cards_are_requested_by_number(
    make_runtime: MakeRuntime, engine: Any, node: str, store: Path, supports_gpus: bool
) -> None:
    if not supports_gpus:
        pytest.skip("this engine has no runtime for GPUs")
    runtime = make_runtime(
        "import os, time; print(os.environ['NVIDIA_VISIBLE_DEVICES'], flush=True); time.sleep(60)", backend="cuda"
    )
    assert runtime.devices() == (Device("cuda", "A card", 16),) * 2
    runtime.start(spec(store, split_mode="none", main_gpu=1))
    runtime.start(spec(store, "r2"))
    runtime.start(spec(store, "r3", gpu_layers=0))
    for replica, visible in (("r1", b"1\n"), ("r2", b"0,1\n"), ("r3", b"void\n")):
        eventually_sync(partial(has_printed, engine, f"corral-{node}-{replica}", visible), what=replica)


def test_the_cpu_backend_has_no_devices(make_runtime: MakeRuntime) -> None:
    assert make_runtime(backend="cpu").devices() == ()


def test_cpus_and_memory_are_the_engines(make_runtime: MakeRuntime, engine: Any) -> None:
    runtime, info = make_runtime(), engine.info()
    assert (runtime.cpus(), runtime.memory().total) == (info["NCPU"], info["MemTotal"])
    assert 0 < runtime.memory().available <= runtime.memory().total


def test_the_runtime_survives_an_engine_outage(
    make_runtime: MakeRuntime, engine: Any, node: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    with Relay(tmp_path / "docker.sock", Path(socket.removeprefix("unix://"))) as relay:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{relay.path}")
        runtime = make_runtime()
        runtime.start(spec(store))
        runtime.start(spec(store, "r2"))
        up(engine, node)
        relay.cut()
        assert runtime.running() == {"r1", "r2"}, "nothing is concluded from silence"
        with pytest.raises(Unavailable, match="the Docker engine does not answer: (Connection refused|No such file)"):
            runtime.start(spec(store, "r3"))
        with pytest.raises(Unavailable):
            runtime.stop("r2")
        engine.kill(f"corral-{node}-r1")
        relay.mend()
        eventually_sync(lambda: runtime.running() == {"r2"}, what="what was missed meanwhile")
        runtime.start(spec(store, "r3"))
        assert runtime.running() == {"r2", "r3"}
        runtime.hurry()
        runtime.close()
    assert containers(engine, node) == []
