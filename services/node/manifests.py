"""Builds a model's manifest and config, as Ollama writes them. Pure.

The sha256 of the manifest's text is the version's digest. The text depends only on the files, so the same files give the same
digest on every node and under every name.
"""

from __future__ import annotations

import hashlib
import json
import math

import msgspec

from services.protocol.jobs import Layer
from services.weights.gguf import Gguf

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MODEL_TYPE = "application/vnd.ollama.image.model"
LICENSE_TYPE = "application/vnd.ollama.image.license"


class Manifest(msgspec.Struct, frozen=True):
    """A manifest. `text` is its file, `config_text` the contents of the blob that `config` describes."""

    text: str
    config_text: str
    config: Layer
    layers: tuple[Layer, ...]


class _Reference(msgspec.Struct):
    digest: str


class _References(msgspec.Struct):
    config: _Reference
    layers: list[_Reference]


def build(model: Gguf, layers: tuple[Layer, ...]) -> Manifest:
    """The manifest for these layers, in this order; the model comes first."""
    config_text = _compact(
        {
            "model_format": "gguf",
            "model_family": model.architecture,
            "model_families": [model.architecture],
            "model_type": human_number(model.parameter_count),
            "file_type": model.quantization,
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    config = layer_of(CONFIG_TYPE, config_text.encode())
    text = _compact(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _entry(config),
            "layers": [_entry(layer) for layer in layers],
        }
    )
    return Manifest(text, config_text, config, layers)


def layer_of(media_type: str, data: bytes) -> Layer:
    return Layer(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


def references(text: bytes) -> set[str]:
    """The digests of the blobs that a manifest needs. Raises msgspec.MsgspecError if `text` is not a manifest."""
    manifest = msgspec.json.decode(text, type=_References)
    return {manifest.config.digest, *(layer.digest for layer in manifest.layers)}


def human_number(count: int) -> str:
    """A parameter count as Ollama prints it: 3.2B, 134.52M, 7B, 12K."""
    for scale, unit, decimals in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= scale:
            number = count / scale
            return f"{number:.{0 if number == math.floor(number) else decimals}f}{unit}"
    return str(count)


def _compact(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _entry(layer: Layer) -> dict[str, object]:
    return {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
