"""EngineSettings as environment variables: the defaults of a registry, and the settings that a node agent gives its workers."""

from __future__ import annotations

from typing import Any, Self

import msgspec
from pydantic import create_model, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.process.secrets import secrets_folder
from services.protocol.engine import EngineSettings

PREFIX = "CORRAL_"


def _with_engine_settings(variables: type[BaseSettings]) -> type[BaseSettings]:
    """A subclass that has the fields of EngineSettings too, with their types, defaults and descriptions."""
    fields: dict[str, Any] = {field.name: (field.type, field.default) for field in msgspec.structs.fields(EngineSettings)}
    return create_model(
        variables.__name__, __base__=variables, __doc__=variables.__doc__, __module__=variables.__module__, **fields
    )


@_with_engine_settings
class EngineVariables(BaseSettings):
    """One variable for each field of EngineSettings. Variables with several values are JSON. Read them from `engine`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, secrets_dir=secrets_folder())

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ = self.engine
        return self

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(**{name: getattr(self, name) for name in EngineSettings.__struct_fields__})


def to_environment(engine: EngineSettings) -> dict[str, str]:
    """Every setting, including defaults: a variable that is left out would keep its value from the worker's inherited environment."""
    return {f"{PREFIX}{name.upper()}": _text(value) for name, value in msgspec.structs.asdict(engine).items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
