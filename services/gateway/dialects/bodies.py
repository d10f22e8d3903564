"""Request bodies: bytes to a typed struct, as leniently as the real servers.

The Content-Type is not looked at, unknown fields are ignored, and every field may be null. What has the wrong type is
refused with a message that names the field.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import msgspec

from services.protocol.errors import BadRequest

Body = TypeVar("Body", bound=msgspec.Struct)

_LOCATED = re.compile(r"(?P<problem>.*?)(?: - at `\$\.?(?P<field>.*)`)?", re.DOTALL)


class InvalidField(BadRequest):
    """`field` is the path in the body, as in `messages[0].content`; empty for the body itself."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class BodyDecoder(Generic[Body]):
    """Raises BadRequest for a missing or malformed body, InvalidField for a wrong type."""

    def __init__(self, kind: type[Body]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode

    def __call__(self, raw: bytes) -> Body:
        if not raw.strip():
            raise BadRequest("missing request body")
        try:
            return self._decode(raw)
        except msgspec.ValidationError as error:
            raise _invalid_field(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"invalid JSON: {error}") from error
        except RecursionError as error:
            raise BadRequest("invalid JSON: nested too deeply") from error


def check_portable(value: Any, *, field: str) -> None:
    """Raises InvalidField where `value`, any JSON, holds what no message between processes can."""
    try:
        msgspec.msgpack.encode(value)
    except OverflowError:
        raise InvalidField(f"{field}: holds an integer of more than 64 bits", field=field) from None
    except RecursionError:
        raise InvalidField(f"{field}: is nested too deeply", field=field) from None


def _invalid_field(text: str) -> InvalidField:
    match = _LOCATED.fullmatch(text)
    assert match is not None
    problem = match["problem"].replace(" | null", "").replace("`", "")
    field = match["field"] or ""
    return InvalidField(f"{field or 'request body'}: {problem[:1].lower()}{problem[1:]}", field=field)
