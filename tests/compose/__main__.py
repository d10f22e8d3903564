"""`python -m tests.compose [CHAPTER...]`: the cluster of compose.yaml on a real Docker Engine, as its users meet it, and what they do to it.

Where no engine can be had nothing is tested, which is said loudly and is no failure; nor is it one where it takes too long to get an engine
and the images of others, since that is the mirrors' doing. Everything after that is ours. SIGTERM ends a run as Ctrl-C does: it has failed,
and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.compose import airgap, refusals, story, wheel
from tests.compose.cluster import ROOT, Cluster, Failed

CHAPTERS: dict[str, Sequence[Callable[[Cluster], None]]] = {
    "story": story.CHECKS,
    "refusals": refusals.CHECKS,
    "airgap": airgap.CHECKS,
}

DEFAULT = ("story", "refusals")

NO_ENGINE = 3
#: For the engine, and for the images that everything is built on. Measured: 95 s where no image is there yet.
PREPARATION_S = 480


def main(*chapters: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAILED: ended by a signal, as when the time is over"))
    started = time.monotonic()
    checks = [check for chapter in chapters or DEFAULT for check in CHAPTERS[chapter]]
    with tempfile.TemporaryDirectory(prefix="corral-compose-") as name:
        folder, engine = Path(name), Path(name) / "engine.pid"
        try:
            if reason := no_engine(engine):
                print(f"SKIPPED: the cluster under Docker was not tested: {reason}")
                return 0
            failed = test(folder, checks)
        finally:
            end_engine(engine)
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if failed else 0


def test(folder: Path, checks: Sequence[Callable[[Cluster], None]]) -> int:
    """How many failed."""
    prepare(folder)
    cluster = Cluster(folder, port=free_port(), grafana_port=free_port())
    passed, failed = 0, 0
    try:
        for check in checks:
            if not attempt(check, cluster):
                failed += 1
                break  # each stands on the one before
            passed += 1
    finally:
        cluster.run("ops/cluster.sh", "down", "--volumes")
    if remains := cluster.remains():
        print(f"FAILED: left behind:\n{remains}")
        failed += 1
    print(f"{passed} passed, {failed} failed")
    return failed


def no_engine(started: Path | None = None) -> str:
    """Why there is none; empty where there is one, with the images that everything is built on. `started` is for `end_engine`."""
    deadline = time.monotonic() + PREPARATION_S
    for script, *arguments in (("engine.sh", str(started or "")), ("standins.sh",)):
        try:
            code, said = output([str(ROOT / "tests" / "compose" / script), *arguments], timeout_s=deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            return f"{script} did not end within {PREPARATION_S / 60:.0f} min"
        print(said, flush=True)
        if code:
            lines = said.splitlines()
            return lines[-1] if code == NO_ENGINE and lines else f"{script} ended with {code}"
    return ""


def output(command: Sequence[str], *, timeout_s: float) -> tuple[int, str]:
    """Exit code and what was printed. Raises TimeoutExpired; what the command started has ended then too."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said.strip()


def end_engine(started: Path) -> None:
    """One that was started for this run; images and caches stay for the next."""
    with contextlib.suppress(FileNotFoundError):
        engine = int(started.read_text())
        os.kill(engine, signal.SIGTERM)
        story.until(lambda: not Path(f"/proc/{engine}").exists(), "the engine's end")


def prepare(folder: Path) -> None:
    """Secrets, and the images, of what was compiled already where that will do."""
    files = ["compose.yaml"]
    (folder / ".env").write_text("CORRAL_NODE=node-of-tests\nCORRAL_SLOTS=4\nCORRAL_CONTEXT_TOKENS=2048\n")
    if wheel.fits():
        print(f"llama.cpp of this environment: {wheel.write(folder).name}", flush=True)
        files.append("tests/compose/wheels.yaml")
    cluster = Cluster(folder, port=0, grafana_port=0, files=files).with_variables(CORRAL_TEST_WHEELS=str(folder))
    cluster.run("ops/secrets.sh")
    began = time.monotonic()
    try:
        cluster.compose("build", "registry", "worker-image", timeout_s=3600)
    except Failed as failure:
        print(f"the images are built once more, since a download may have broken off:\n{failure}", flush=True)
        cluster.compose("build", "registry", "worker-image", timeout_s=3600)
    print(f"images built in {time.monotonic() - began:.0f} s", flush=True)


def attempt(check: Callable[[Cluster], None], cluster: Cluster) -> bool:
    title = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
    began = time.monotonic()
    try:
        check(cluster)
    except (Exception, SystemExit):
        print(f"FAILED  {title}\n{traceback.format_exc()}", flush=True)
        print(cluster.compose("ps", "--all"), cluster.compose("logs", "--tail", "30"), sep="\n", flush=True)
        return False
    print(f"ok  {time.monotonic() - began:5.1f} s  {title}", flush=True)
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
