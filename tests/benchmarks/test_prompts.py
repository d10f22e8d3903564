"""Prompts have the requested length, and each seed gives another text."""

from __future__ import annotations

from pathlib import Path

import pytest

from comparison.prompts import prose
from services.protocol.engine import EngineSettings
from services.worker.engine.llama import LlamaRunner


@pytest.mark.parametrize("tokens", [100, 1250])
def test_prompts_have_the_requested_length(smollm2_path: Path, tokens: int) -> None:
    runner = LlamaRunner(smollm2_path, EngineSettings(slots=1, context_tokens=256))
    try:
        assert abs(len(runner.tokenize(prose("seed", tokens), special=False)) - tokens) <= 7
    finally:
        runner.close()


def test_each_seed_gives_another_text() -> None:
    assert prose("1", 100) == prose("1", 100)
    assert len({prose(str(seed), 26) for seed in range(50)}) == 50
