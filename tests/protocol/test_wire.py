"""Every message of the protocol survives encoding; invalid bytes are refused."""

from __future__ import annotations

import enum
import importlib
import pkgutil
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services import protocol
from services.protocol.engine import EngineSettings
from services.protocol.errors import ProtocolMismatch
from services.protocol.messages import GenerateRequest, StepReply, new_id
from services.protocol.routes import RoutesSnapshot
from services.protocol.wire import PROTOCOL_VERSION, Decoder, encode
from tests.protocol.samples import engine_settings

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)

SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(),
    bytes: st.binary(),
    bool: st.booleans(),
    type(None): st.none(),
    Any: plain,
    # Its fields have limits and must be consistent.
    EngineSettings: engine_settings(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case None if hint in SCALARS:
            return SCALARS[hint]
        case None if issubclass(hint, enum.Enum):
            return st.sampled_from(hint)
        case None:
            fields = typing.get_type_hints(hint, include_extras=True)
            return st.builds(hint, **{name: values(field) for name, field in fields.items()})
        case typing.Annotated:
            return within(arguments[0], [limit for limit in arguments[1:] if isinstance(limit, msgspec.Meta)])
        case types.UnionType | typing.Union:
            return st.one_of(*map(values, arguments))
        case typing.Literal:
            return st.sampled_from(arguments)
        case origin if origin is list or (origin is tuple and arguments[-1] is ...):
            return st.lists(values(arguments[0]), max_size=3).map(origin)
        case origin if origin is tuple:
            return st.tuples(*map(values, arguments))
        case origin if origin is dict:
            return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    raise NotImplementedError(hint)


def within(hint: Any, limits: list[msgspec.Meta]) -> st.SearchStrategy[Any]:
    """Values that the constraints of an annotation allow."""
    least, most = (
        next((value for limit in limits if (value := getattr(limit, end)) is not None), None) for end in ("ge", "le")
    )
    longest = next((limit.max_length for limit in limits if limit.max_length is not None), None)
    shortest = max(limit.min_length or 0 for limit in limits)
    pattern = next((limit.pattern for limit in limits if limit.pattern is not None), None)
    if hint is int:
        return st.integers(least, most)
    if hint is float:
        return st.floats(least, most, allow_nan=False)
    if hint is str and pattern:
        return st.from_regex(pattern).filter(lambda value: shortest <= len(value) <= (longest or len(value)))
    if hint is str:
        return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=shortest, max_size=longest)
    return values(hint)


def messages() -> list[type[msgspec.Struct]]:
    modules = [
        importlib.import_module(f"{protocol.__name__}.{found.name}") for found in pkgutil.iter_modules(protocol.__path__)
    ]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    ]


kinds = pytest.mark.parametrize("kind", messages(), ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")


def test_all_kinds_of_messages_are_found() -> None:
    assert {GenerateRequest, StepReply, RoutesSnapshot} <= set(messages())


@kinds
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_message_is_decoded_unchanged(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    message = data.draw(values(kind))
    assert Decoder(kind)(encode(message)) == message


@kinds
@settings(max_examples=20, deadline=None)
@given(data=st.data(), version=st.integers(0, 255).filter(lambda version: version != PROTOCOL_VERSION))
def test_another_protocol_version_is_refused_by_name(kind: type[msgspec.Struct], data: st.DataObject, version: int) -> None:
    encoded = encode(data.draw(values(kind)))
    with pytest.raises(ProtocolMismatch, match=f"{kind.__name__} has protocol version {version};"):
        Decoder(kind)(bytes([version]) + encoded[1:])


@settings(deadline=None)
@given(data=st.data())
def test_a_truncated_message_is_refused(data: st.DataObject) -> None:
    encoded = encode(data.draw(values(StepReply)))
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ProtocolMismatch):
        Decoder(StepReply)(encoded[:cut])


@settings(deadline=None)
@given(garbage=st.binary(max_size=100))
@example(b"\x81\xa6worker\xa3\xff\xfe\xfd")  # invalid UTF-8
@example(b"\x81\xa4deep" + b"\x91" * 100_000)
def test_garbage_is_a_message_or_a_mismatch(garbage: bytes) -> None:
    for kind in (GenerateRequest, StepReply, RoutesSnapshot):
        decode = Decoder(kind)
        for data in (garbage, bytes([PROTOCOL_VERSION]) + garbage):
            try:
                message = decode(data)
            except ProtocolMismatch:
                assert decode.known(data) is None
            else:
                assert isinstance(message, kind)


@settings(deadline=None)
@given(garbage=st.binary(min_size=1, max_size=50))
def test_bytes_after_a_message_are_refused(garbage: bytes) -> None:
    with pytest.raises(ProtocolMismatch):
        Decoder(StepReply)(encode(StepReply("worker-1", ())) + garbage)


def test_an_unknown_field_is_ignored() -> None:
    """Adding a field needs no new protocol version."""

    class Newer(msgspec.Struct):
        worker: str
        events: tuple[()]
        mood: str

    assert Decoder(StepReply)(encode(Newer("worker-1", (), "sunny"))) == StepReply("worker-1", ())


def test_a_message_of_another_type_is_refused() -> None:
    with pytest.raises(ProtocolMismatch):
        Decoder(GenerateRequest)(encode(StepReply("worker-1", ())))


def test_new_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [made[:12] for made in ids] == sorted(made[:12] for made in ids)
    assert all(len(made) == 32 for made in ids)
