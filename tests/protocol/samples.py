"""Messages with default values for the fields that a test does not need."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from services.protocol.engine import UNQUANTIZED, EngineSettings
from services.protocol.messages import GenerateRequest, new_id
from services.protocol.prefixes import Prefix, prefixes
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.reports import WorkerReport, WorkerState

VERSION = "a" * 64
OTHER_VERSION = "b" * 64

PIRATE = "You are a pirate and answer in rhymes. " * 200
PARROT = "You are a parrot and repeat what is said. " * 200

#: Longer than any test runs.
LEASE_MS = 600_000

_KV_TYPES = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
_COUNT = st.integers(0, 10**9)
_SHARE = st.floats(0, 1e6)
# Characters that an environment variable can hold.
_FILE = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\n"), min_size=1)
_ADAPTER = st.one_of(
    _FILE.map(lambda name: f"/{name}"), st.binary(min_size=32, max_size=32).map(lambda raw: f"sha256:{raw.hex()}")
)


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
    """Each worker reports once, which starts its lease."""
    for worker in workers:
        await queue.report(a_report(worker, version=version), lease_ms=lease_ms)


def engine_settings() -> st.SearchStrategy[EngineSettings]:
    """Any consistent engine settings."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "slots": st.integers(1, 256),
        "context_tokens": _COUNT,
        "kv_tokens": _COUNT,
        "kv_unified": st.booleans(),
        "kv_type_k": st.sampled_from(_KV_TYPES),
        "kv_type_v": st.sampled_from(_KV_TYPES),
        "flash_attention": st.sampled_from(["auto", "on", "off"]),
        "batch_tokens": st.integers(1, 10**6),
        "prefill_tokens": st.integers(0, 2**20),
        "threads": st.integers(0, 512),
        "gpu_layers": st.integers(-1, 10**5),
        "main_gpu": st.integers(0, 15),
        "split_mode": st.sampled_from(["none", "layer", "row"]),
        "tensor_split": st.lists(_SHARE, max_size=4).map(tuple),
        "mmap": st.booleans(),
        "mlock": st.booleans(),
        "lora": st.lists(st.tuples(_ADAPTER, st.floats(-10, 10)), max_size=3).map(tuple),
        "pooling": st.sampled_from(["", "none", "mean", "cls", "last", "rank"]),
        "rope_freq_base": _SHARE,
        "rope_freq_scale": _SHARE,
        "image": st.sampled_from(["", "corral-worker:dev-{backend}", "registry.example:5000/team/worker@sha256:" + "a" * 64]),
    }
    assert set(fields) == set(EngineSettings.__struct_fields__)
    agree = st.fixed_dictionaries({}, optional=fields).filter(
        lambda given: given.get("kv_type_v", "f16") in UNQUANTIZED or given.get("flash_attention") != "off"
    )
    return agree.map(lambda given: EngineSettings(**given))


def begins(text: str) -> tuple[Prefix, ...]:
    return prefixes(a_request(text=text))


async def put(queue: Queue, request: str, text: str = PIRATE) -> None:
    await queue.enqueue(a_request(request, text=text), cost=10, limit=100, begins=begins(text))
