"""Messages with whatever a test does not care about filled in."""

from __future__ import annotations

from services.protocol.messages import GenerateRequest, new_id
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.reports import WorkerReport, WorkerState

VERSION = "a" * 64
OTHER_VERSION = "b" * 64

#: Longer than any test runs.
LEASE_MS = 600_000


def a_request(
    request_id: str = "", *, version: str = VERSION, gateway: str = "gateway-1", caller: str = "alice", text: str = "hello"
) -> GenerateRequest:
    return GenerateRequest(id=request_id or new_id(), version=version, gateway=gateway, caller=caller, prompt=TextPrompt(text))


def a_report(
    worker: str = "worker-1",
    *,
    version: str = VERSION,
    state: WorkerState = WorkerState.READY,
    slots: int = 8,
    running: int = 0,
) -> WorkerReport:
    return WorkerReport(
        worker=worker, replica=f"replica-of-{worker}", version=version, node="node-1", state=state, slots=slots, running=running
    )


async def join(queue: Queue, *workers: str, version: str = VERSION, lease_ms: int = LEASE_MS) -> None:
    """The workers take up their leases."""
    for worker in workers:
        await queue.report(a_report(worker, version=version), lease_ms=lease_ms)
