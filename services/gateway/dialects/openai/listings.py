"""Response bodies of /v1/models."""

from __future__ import annotations

import msgspec

from services.protocol.names import ModelName
from services.protocol.routes import RoutesSnapshot, TagRoute


class _Model(msgspec.Struct):
    id: str
    object: str
    created: int
    owned_by: str


class _Models(msgspec.Struct):
    object: str
    data: list[_Model]


def models_body(snapshot: RoutesSnapshot) -> bytes:
    """Lists the models, newest first."""
    newest_first = sorted(snapshot.tags.values(), key=lambda tag: tag.modified_at, reverse=True)
    return msgspec.json.encode(_Models("list", [_model(tag) for tag in newest_first]))


def model_body(tag: TagRoute) -> bytes:
    return msgspec.json.encode(_model(tag))


def _model(tag: TagRoute) -> _Model:
    return _Model(tag.name, "model", int(tag.modified_at), ModelName.parse(tag.name).namespace)
