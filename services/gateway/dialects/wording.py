"""How errors are worded for callers. Clients of Ollama look for some sentences, so these are Ollama's own."""

from __future__ import annotations

from services.protocol.errors import CorralError, QueueFull, WorkerLost

_OLLAMAS_WORDS = {
    QueueFull.code: "server busy, please try again.  maximum pending requests exceeded",
    WorkerLost.code: "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error",
}


def wording(error: CorralError) -> str:
    return _OLLAMAS_WORDS.get(error.code, error.message)
