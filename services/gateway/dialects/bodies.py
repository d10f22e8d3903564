"""Decodes request bodies into typed structs, as leniently as the real servers.

Content-Type and unknown fields are ignored, and every field may be null. A field with the wrong type is refused with a message
that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from services.gateway.dialects.limits import JSON_VALUES, NESTING, TOKENS, Limit
from services.protocol.errors import BadRequest

Body = TypeVar("Body", bound=msgspec.Struct)
Decoded = TypeVar("Decoded")

_MAX_TOKEN_ID = 2**31 - 1

#: How many characters of a caller's text an error message quotes.
_MAX_EXCERPT_CHARACTERS = 200

_UNITS = {"array": "entries", "str": "characters"}
_TOO_LONG = re.compile(r"Expected `(?P<kind>array|str)` of length <= (?P<most>\d+)")
#: Matches JSON escapes one by one, so that an escaped backslash isn't read as the start of another escape. `half` is one half
#: of a surrogate pair.
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)

_LOCATED = re.compile(r"(?P<problem>.*?)(?: - at `\$\.?(?P<field>.*)`)?", re.DOTALL)


class InvalidField(BadRequest):
    """`field` is the path in the body, for example `messages[0].content`; empty for the body itself."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message, field=field)


class BodyDecoder(Generic[Body]):
    """Decodes a body. Raises BadRequest if it is missing or malformed, InvalidField if a field has the wrong type."""

    def __init__(self, kind: type[Body]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode

    def __call__(self, raw: bytes) -> Body:
        if not raw.strip():
            raise BadRequest("missing request body")
        try:
            return decode_leniently(self._decode, raw)
        except msgspec.ValidationError as error:
            raise _invalid_field(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"invalid JSON: {error}") from error
        except RecursionError as error:
            raise BadRequest("invalid JSON: nested too deeply") from error


def check_limit(limit: Limit, count: int, *, field: str) -> None:
    """Raises InvalidField if `count` is over the limit."""
    if count > limit.most:
        raise InvalidField(f"{field}: at most {limit.most:,} {limit.unit}", field=field)


def decode_leniently(decode: Callable[[bytes], Decoded], raw: bytes) -> Decoded:
    """Runs `decode`, replacing invalid UTF-8 and lone surrogates with U+FFFD as Go's decoder does.

    Clients that cut text at arbitrary positions send them. Raises what `decode` raises.
    """
    try:
        return decode(raw)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        mended = _ESCAPE.sub(_whole_escape, raw.decode(errors="replace")).encode()
        if mended == raw:
            raise
        return decode(mended)


def _whole_escape(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape["half"] else escape[0]


def check_portable(value: Any, *, field: str) -> None:
    """Checks that any JSON `value` can be sent to another process.

    Raises InvalidField if it is too large, nested too deeply, or contains an integer of more than 64 bits.
    """
    _check_nesting(value, field=field)
    try:
        check_limit(JSON_VALUES, len(msgspec.msgpack.encode(value)), field=field)
    except OverflowError:
        raise InvalidField(f"{field}: contains an integer of more than 64 bits", field=field) from None


def json_text(value: Any, *, field: str) -> str:
    """Encodes any JSON value; its integers may have any number of digits. Raises InvalidField if it is nested too deeply."""
    _check_nesting(value, field=field)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def excerpt(text: str) -> str:
    """Shortens a caller's text for an error message."""
    return text if len(text) <= _MAX_EXCERPT_CHARACTERS else text[:_MAX_EXCERPT_CHARACTERS] + "..."


def token_ids(value: list[Any], *, field: str) -> tuple[int, ...]:
    """Checks token ids without a Python loop, since there may be a million of them. Raises InvalidField."""
    check_limit(TOKENS, len(value), field=field)
    if not {*map(type, value)} <= {int}:
        raise InvalidField(f"{field}: expected token ids", field=field)
    if value and not 0 <= min(value) <= max(value) <= _MAX_TOKEN_ID:
        raise InvalidField(f"{field}: contains a number that is not a token id", field=field)
    return tuple(value)


def _check_nesting(value: Any, *, field: str) -> None:
    level = [value]
    for _ in range(NESTING.most):
        level = [part for node in level for part in _parts(node)]
        if not level:
            return
    raise InvalidField(f"{field}: is nested too deeply, at most {NESTING.most} levels", field=field)


def _parts(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _invalid_field(text: str) -> InvalidField:
    match = _LOCATED.fullmatch(text)
    assert match is not None
    field = match["field"] or ""
    return InvalidField(f"{field or 'request body'}: {_problem(match['problem'])}", field=field)


def _problem(text: str) -> str:
    """Rewords msgspec's error message."""
    if too_long := _TOO_LONG.fullmatch(text):
        return f"at most {int(too_long['most']):,} {_UNITS[too_long['kind']]}"
    problem = text.replace(" | null", "").replace("`", "")
    return problem[:1].lower() + problem[1:]
