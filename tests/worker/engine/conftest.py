"""Grammars over bytes, which are cheap to compute, and over the vocabulary of a real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.protocol.engine import EngineSettings
from services.worker.engine.fake import FakeRunner
from services.worker.engine.grammar import GrammarCompiler
from services.worker.engine.llama import LlamaRunner


@pytest.fixture(scope="session")
def byte_grammars() -> GrammarCompiler:
    """Over FakeRunner's vocabulary: 256 bytes and one end token."""
    return GrammarCompiler(FakeRunner())


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[LlamaRunner]:
    # One thread: on a busy machine several threads mostly wait for each other.
    runner = LlamaRunner(smollm2_path, EngineSettings(slots=16, context_tokens=192, batch_tokens=512, threads=1))
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def smollm2_grammars(smollm2: LlamaRunner) -> GrammarCompiler:
    return GrammarCompiler(smollm2)
