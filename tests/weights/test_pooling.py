"""Which pooling a model uses, by its file and its deployment."""

from __future__ import annotations

from typing import Any

import pytest

from services.weights.pooling import pooling_of
from services.weights.shape import ModelShape


@pytest.mark.parametrize(
    ("metadata", "wanted", "pooling"),
    [
        ({"general.architecture": "llama"}, "", "none"),
        ({"general.architecture": "llama", "llama.pooling_type": 0}, "", "none"),
        ({"general.architecture": "bert", "bert.pooling_type": 1}, "", "mean"),
        ({"general.architecture": "bert", "bert.pooling_type": 2}, "", "cls"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, "", "last"),
        ({"general.architecture": "bert", "bert.pooling_type": 4}, "", "rank"),
        ({"general.architecture": "nomic-bert"}, "", "mean"),
        ({"general.architecture": "bert", "bert.pooling_type": 0}, "", "mean"),
        ({"general.architecture": "bert", "bert.pooling_type": [1]}, "", "mean"),
        ({"general.architecture": "llama", "llama.pooling_type": 99}, "", "none"),
        ({}, "", "none"),
        ({"general.architecture": "llama"}, "last", "last"),
        ({"general.architecture": "bert", "bert.pooling_type": 1}, "cls", "cls"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, "none", "none"),
        ({"general.architecture": "bert", "bert.pooling_type": 1}, "none", "mean"),
    ],
)
def test_pooling_of_a_model(metadata: dict[str, Any], wanted: Any, pooling: str) -> None:
    assert pooling_of(ModelShape.of(metadata), wanted) == pooling
