"""A tool call that is written as a JSON object: `{"name": ..., "arguments": {...}}`, or `parameters` instead of `arguments`."""

from __future__ import annotations

import json
from collections.abc import Callable, Set

from services.worker.chat.json_object import ObjectReader, Progress
from services.worker.chat.parser import Release, StateParser

_ARGUMENTS = ("arguments", "parameters")


class JsonCall:
    """Releases the call as soon as its name and the start of its arguments are known. If `offered` is None, any name is a
    tool's.

    Until then `raw` holds `before` and everything that was read, so that an object that is not a call can become content.
    """

    def __init__(self, release: Release, *, offered: Set[str] | None = None, before: str = "") -> None:
        self._release = release
        self._offered = offered
        self._reader = ObjectReader(self._take, self._end)
        self._name = ""
        self._value = ""
        self._waiting = ""
        self.is_released = False
        self.has_arguments = False
        self.raw = before

    @property
    def progress(self) -> Progress:
        return self._reader.progress

    def push(self, text: str) -> int:
        """How many characters were read: fewer than all if the object is done or broken."""
        read = self._reader.push(text)
        if not self.is_released:
            self.raw += text[:read]
        if self.progress is Progress.DONE and not self.has_arguments:
            self._finish()
        return read

    def _take(self, key: str, piece: str) -> None:
        if self.is_released:
            if key in _ARGUMENTS and not self.has_arguments:
                self._release.arguments(piece)
            return
        self._value += piece
        if key in _ARGUMENTS and self._name and self._value.startswith("{"):
            self._begin(self._value)

    def _end(self, key: str) -> None:
        value, self._value = self._value, ""
        if key == "name" and not self.is_released:
            self._set_name(value)
        elif key in _ARGUMENTS:
            if not self.is_released:
                self._waiting = value
            self.has_arguments = self.is_released
            self._release_waiting()

    def _set_name(self, value: str) -> None:
        name = _loads(value)
        if not isinstance(name, str) or not name or (self._offered is not None and name not in self._offered):
            self._reader.fail()
            return
        self._name = name
        self._release_waiting()

    def _release_waiting(self) -> None:
        """Arguments that came before the name, or that are not an object, are released once they are complete."""
        if self._name and self._waiting and not self.is_released:
            self._begin(_as_object(self._waiting))
            self.has_arguments = True

    def _finish(self) -> None:
        if not self._name:
            self._reader.fail()
        elif not self.is_released:
            self._begin("{}")
            self.has_arguments = True

    def _begin(self, arguments: str) -> None:
        self._release.call(self._name)
        self._release.arguments(arguments)
        self.is_released = True
        self._value = ""


class JsonCallParser(StateParser):
    """Parses a syntax whose calls are JSON objects."""

    call: JsonCall

    def read_call(self, *, complete: Callable[[], bool], broken: Callable[[], bool], no_call: Callable[[], bool]) -> bool:
        """Reads `call` from the text. Continues in `complete` after its object, in `broken` if the object of a released call is
        malformed or cut off, and in `no_call` after an object that became content."""
        self.text = self.text[self.call.push(self.text) :]
        if self.call.progress is Progress.DONE:
            return self.go(complete)
        if self.call.progress is Progress.OPEN and not self.is_whole:
            return False
        if self.call.is_released:
            return self.go(broken)
        self.release.content(self.call.raw)
        return self.go(no_call)


def _as_object(value: str) -> str:
    """Some models write the arguments as a string of JSON, or null if there are none."""
    loaded = _loads(value)
    if isinstance(loaded, str):
        return loaded
    return "{}" if loaded is None else value


def _loads(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value
