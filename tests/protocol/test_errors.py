"""The error classes: the tree in the docstring of errors.py matches the classes, and codes cross processes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from services.protocol import errors
from services.protocol.errors import BY_CODE, CorralError, from_code


def tree(root: type[CorralError], depth: int = 0) -> Iterator[tuple[int, type[CorralError]]]:
    yield depth, root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child, depth + 1)


CLASSES = [error for _, error in tree(CorralError)]


def documented() -> list[tuple[int, str, int, str]]:
    """(depth, class, status, code) of each line of the tree in the docstring."""
    assert errors.__doc__
    lines = re.findall(r"^([│├└─ ]*)(\w+) +(\d{3})  (\w+)$", errors.__doc__, re.MULTILINE)
    return [(len(branch) // 4, name, int(status), code) for branch, name, status, code in lines]


def test_the_documented_tree_matches_the_classes() -> None:
    assert documented() == [(depth, error.__name__, error.status, error.code) for depth, error in tree(CorralError)]


def test_every_class_has_its_own_code() -> None:
    codes = [error.code for error in CLASSES]
    assert len(codes) == len(set(codes))
    assert all("code" in vars(error) for error in CLASSES)
    assert {code: error for code, error in BY_CODE.items() if error in CLASSES} == {error.code: error for error in CLASSES}


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_is_restored_from_its_code_and_message(error: type[CorralError]) -> None:
    sent = error("what happened")
    received = from_code(sent.code, sent.message)
    assert type(received) is error
    assert received.message == str(received) == "what happened"
    assert received.status == sent.status


def test_an_unknown_code_is_an_internal_error() -> None:
    error = from_code("invented_next_year", "what happened")
    assert type(error) is CorralError
    assert (error.status, error.message) == (500, "what happened")


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_class_has_a_docstring_and_an_error_status(error: type[CorralError]) -> None:
    assert error.__doc__
    assert 400 <= error.status < 600


def test_subclasses_share_the_status_of_their_parent() -> None:
    for error in CLASSES:
        [parent] = error.__bases__
        if parent not in (Exception, CorralError):
            assert issubclass(parent, CorralError)
            assert error.status == parent.status
