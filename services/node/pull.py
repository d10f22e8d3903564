"""One pull: fetches a model, checks the file, and writes it to the store. The store does not change before the last step."""

from __future__ import annotations

from collections.abc import Mapping

from services.node import manifests
from services.node.progress import Progress
from services.node.sources import Fetched, open_source
from services.node.store import StagedBlob, Staging, Store
from services.protocol.errors import InvalidModelFile
from services.protocol.jobs import Layer, Pull, PulledModel
from services.protocol.names import ModelName
from services.weights import gguf
from services.weights.gguf import Gguf


def pull(job: Pull, store: Store, progress: Progress, *, environment: Mapping[str, str]) -> PulledModel:
    """Raises InvalidModelFile if the file is not a model, Stopping if the agent stops, and what the source raises."""
    name = ModelName.parse(job.name)
    source = open_source(job.source, environment=environment)
    progress.say("pulling manifest")
    with store.staging() as staging:
        try:
            fetched = source.fetch(staging, progress)
            progress.say("verifying sha256 digest")
            model = _inspect(fetched.model)
        except InvalidModelFile as error:
            raise InvalidModelFile(f"{job.source}: {error.message}") from error
        progress.say("writing manifest")
        return _publish(name, model, fetched, staging, store)


def _inspect(blob: StagedBlob) -> Gguf:
    model = gguf.read(blob.path)
    kind = model.metadata.get("general.type", "model")
    if kind != "model":
        raise InvalidModelFile(f"is not a model: its general.type is {str(kind)[:64]}")
    if not model.tensor_count:
        raise InvalidModelFile("contains only a vocabulary, not a model")
    if not model.shape.layers or not model.shape.embedding:
        raise InvalidModelFile(f"has no {model.architecture}.block_count or {model.architecture}.embedding_length")
    if model.metadata.get("split.count", 1) not in (0, 1):
        raise InvalidModelFile("is one part of a split GGUF; merge the parts first")
    return model


def _publish(name: ModelName, model: Gguf, fetched: Fetched, staging: Staging, store: Store) -> PulledModel:
    blobs = [fetched.model]
    layers = [Layer(manifests.MODEL_TYPE, fetched.model.digest, fetched.model.size)]
    if fetched.license:
        license_blob = staging.write([fetched.license.encode()])
        blobs.append(license_blob)
        layers.append(Layer(manifests.LICENSE_TYPE, license_blob.digest, license_blob.size))
    manifest = manifests.build(model, tuple(layers))
    blobs.append(staging.write([manifest.config_text.encode()]))
    store.publish(name, manifest.text, blobs)
    return PulledModel(
        name=name.full,
        manifest=manifest.text,
        config=manifest.config,
        layers=manifest.layers,
        metadata=model.metadata,
        parameter_count=model.parameter_count,
        quantization=model.quantization,
        tensor_bytes=model.tensor_bytes,
        template=model.template,
        system="",
        license=fetched.license,
        parameters={},
    )
