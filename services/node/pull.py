"""One pull: fetches a model, checks the file, and writes it to the store. The store does not change before the last step."""

from __future__ import annotations

from services.node import manifests
from services.node.model_file import FetchedFile, Role
from services.node.progress import Progress
from services.node.sources import Sources
from services.node.store import StagedBlob, Staging, Store
from services.protocol.errors import InvalidModelFile
from services.protocol.jobs import Layer, Pull, PulledModel
from services.protocol.names import ModelName
from services.protocol.source_url import shown
from services.weights import gguf
from services.weights.gguf import Gguf

_MEDIA_TYPES = {Role.MODEL: manifests.MODEL_TYPE, Role.LICENSE: manifests.LICENSE_TYPE}


def pull(job: Pull, store: Store, progress: Progress, sources: Sources) -> PulledModel:
    """Raises InvalidModelFile if the file is not a model, Stopping if the agent stops, and what the source raises."""
    name = ModelName.parse(job.name)
    source = sources.open(job.source)
    progress.say("pulling manifest")
    with store.staging() as staging:
        try:
            files = source.fetch(staging, progress)
            progress.say("verifying sha256 digest")
            model = _inspect(_blob(files, Role.MODEL))
        except InvalidModelFile as error:
            raise InvalidModelFile(f"{shown(job.source)}: {error.message}") from error
        progress.say("writing manifest")
        return _publish(name, model, files, staging, store)


def _blob(files: tuple[FetchedFile, ...], role: Role) -> StagedBlob:
    """The one file in this role."""
    (blob,) = (file.blob for file in files if file.role is role)
    return blob


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


def _publish(name: ModelName, model: Gguf, files: tuple[FetchedFile, ...], staging: Staging, store: Store) -> PulledModel:
    blobs = [file.blob for file in files]
    layers = tuple(Layer(_MEDIA_TYPES[file.role], file.blob.digest, file.blob.size) for file in files)
    manifest = manifests.build(model, layers)
    blobs.append(staging.write([manifest.config_text.encode()]))
    licenses = [file.blob.path.read_text(encoding="utf-8") for file in files if file.role is Role.LICENSE]
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
        license="\n".join(licenses),
        parameters={},
    )
