"""Response bodies of /api/tags, /api/ps and /api/show."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from services.protocol.queue import Demand
from services.protocol.reports import WorkerReport
from services.protocol.routes import ReplicaRoute, RoutesSnapshot, VersionRoute

#: Replicas in these states hold memory.
_LOADED = ("starting", "ready", "draining")
#: Go's longest duration, which Ollama's command line shows as "Forever".
_FOREVER = timedelta(days=292 * 365)


class Details(msgspec.Struct):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int
    embedding_length: int


class _Tag(msgspec.Struct):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: Sequence[str]


class _Tags(msgspec.Struct):
    models: list[_Tag]


class _Running(msgspec.Struct):
    """`size` and `size_vram` are bytes, summed over all replicas. `nodes`, `replicas` and `queued` are Corral's additions."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int
    nodes: list[str]
    replicas: int
    queued: int


class _RunningModels(msgspec.Struct):
    models: list[_Running]


class RegistryModel(msgspec.Struct):
    """The registry's description of one model."""

    name: str
    modified_at: str
    digest: str
    details: dict[str, Any] = {}
    model_info: dict[str, Any] = {}
    template: str = ""
    system: str = ""
    license: str = ""
    parameters: dict[str, Any] = {}
    capabilities: list[str] = []


class _Shown(msgspec.Struct, omit_defaults=True):
    modelfile: str
    template: str
    details: dict[str, Any]
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: str = ""
    parameters: str = ""
    system: str = ""


decode_registry_model = msgspec.json.Decoder(RegistryModel).decode


def tags_body(snapshot: RoutesSnapshot) -> bytes:
    """Lists the models, newest first."""
    newest_first = sorted(snapshot.tags.values(), key=lambda tag: tag.modified_at, reverse=True)
    models = [_tag(tag.name, tag.modified_at, snapshot.versions[tag.version]) for tag in newest_first]
    return msgspec.json.encode(_Tags(models))


def ps_body(snapshot: RoutesSnapshot, demands: Sequence[Demand], workers: Sequence[WorkerReport], *, now: datetime) -> bytes:
    """One entry per loaded version, the one with the most time left first."""
    replicas: defaultdict[str, list[ReplicaRoute]] = defaultdict(list)
    for replica in snapshot.replicas:
        if replica.state in _LOADED and replica.version in snapshot.versions:
            replicas[replica.version].append(replica)
    demand_for = {demand.version: demand for demand in demands}
    busy = {worker.version for worker in workers if worker.running}
    stays = {replica.version for replica in snapshot.replicas if replica.pinned}

    def remaining(version: str) -> timedelta:
        if version in stays:
            return _FOREVER
        return _remaining(demand_for.get(version), busy=version in busy, keep_alive_s=snapshot.keep_alive_s)

    expiring = [(now + remaining(version), version) for version in replicas]
    models = [
        _running(snapshot, version, replicas[version], expires_at, demand_for.get(version))
        for expires_at, version in sorted(expiring, reverse=True)
    ]
    return msgspec.json.encode(_RunningModels(models))


def show_body(model: RegistryModel) -> bytes:
    return msgspec.json.encode(
        _Shown(
            modelfile=_modelfile(model),
            template=model.template,
            details=model.details,
            model_info=model.model_info,
            capabilities=model.capabilities,
            modified_at=model.modified_at,
            license=model.license,
            parameters="\n".join(_parameter_lines(model.parameters)),
            system=model.system,
        )
    )


def _tag(name: str, modified_at: float, version: VersionRoute) -> _Tag:
    modified = datetime.fromtimestamp(modified_at, UTC)
    return _Tag(name, name, _timestamp(modified), version.size, version.digest, _details(version), version.capabilities)


def _name(snapshot: RoutesSnapshot, version: str, asked: str) -> str:
    """The tag to show for a version: the one last asked for if it still points to the version, else the first by name."""
    names = {tag.name for tag in snapshot.tags.values() if tag.version == version}
    return asked if asked in names else min(names, default=version[:12])


def _running(
    snapshot: RoutesSnapshot,
    version: str,
    replicas: Sequence[ReplicaRoute],
    expires_at: datetime,
    demand: Demand | None,
) -> _Running:
    name = _name(snapshot, version, demand.name if demand else "")
    return _Running(
        name=name,
        model=name,
        size=sum(replica.memory_bytes for replica in replicas),
        digest=version,
        details=_details(snapshot.versions[version]),
        expires_at=_timestamp(expires_at),
        size_vram=sum(replica.device_memory_bytes for replica in replicas),
        context_length=max(replica.context_tokens for replica in replicas),
        nodes=sorted({replica.node for replica in replicas}),
        replicas=len(replicas),
        queued=demand.waiting if demand else 0,
    )


def _remaining(demand: Demand | None, *, busy: bool, keep_alive_s: float) -> timedelta:
    """Time until the model is unloaded. While requests run or wait, all of its keep_alive is left."""
    if demand is None:
        return timedelta(0)
    keep_alive_ms = keep_alive_s * 1000 if demand.keep_alive_ms is None else demand.keep_alive_ms
    if keep_alive_ms < 0:
        return _FOREVER
    unused_ms = 0 if busy or demand.waiting else demand.unused_ms
    return min(timedelta(milliseconds=keep_alive_ms - unused_ms), _FOREVER)


def _details(version: VersionRoute) -> Details:
    return Details(
        parent_model="",
        format="gguf",
        family=version.family,
        families=[version.family],
        parameter_size=version.parameter_size,
        quantization_level=version.quantization,
        context_length=version.trained_context,
        embedding_length=version.embedding_length,
    )


def _timestamp(moment: datetime) -> str:
    """RFC 3339 in the local time zone, with six fractional digits, which every client can parse."""
    return moment.astimezone().isoformat(timespec="microseconds")


def _parameter_lines(parameters: dict[str, Any]) -> list[str]:
    """One line per value, for example `stop                           "<|im_end|>"`."""
    return [
        f"{name:<30} {json.dumps(value, ensure_ascii=False)}"
        for name, values in sorted(parameters.items())
        for value in (values if isinstance(values, list) else [values])
    ]


def _modelfile(model: RegistryModel) -> str:
    lines = [
        '# Modelfile generated by "corral show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name}",
        "",
        f"FROM {model.name}",
    ]
    if model.template:
        lines.append(f'TEMPLATE """{model.template}"""')
    if model.system:
        lines.append(f'SYSTEM """{model.system}"""')
    lines += [f"PARAMETER {' '.join(line.split(maxsplit=1))}" for line in _parameter_lines(model.parameters)]
    if model.license:
        lines.append(f'LICENSE """{model.license}"""')
    return "\n".join(lines) + "\n"
