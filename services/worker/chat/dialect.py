"""How a chat template wants its messages. Templates agree on names and on little else, so each one is tried with small chats
when it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PROBE, _KEY = "corral_probe", "corral_key"
_USER = {"role": "user", "content": "u"}
_TOOL = {
    "type": "function",
    "function": {"name": _PROBE, "description": "d", "parameters": {"type": "object", "properties": {}}},
}

#: In Mistral's templates, which refuse call ids of any other length.
_NINE = re.compile(r"length\s*!=\s*9")

#: Renders messages and tools. Returns None if the template refuses them.
Try = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str | None]


@dataclass(frozen=True)
class Dialect:
    """`no_tools` is the template's `tools` variable if there are no tools. `knows_tools`: it shows tools. `knows_calls`: it
    shows calls. The arguments of a call are an object or, with `arguments_as_text`, JSON text. `no_content` is the content of a
    message that only has calls. `short_ids`: call ids have 9 characters. `folds_results`: results are part of the message with
    the calls."""

    no_tools: list[Any] | None
    knows_tools: bool
    knows_calls: bool
    knows_system: bool
    knows_developer: bool
    arguments_as_text: bool = False
    no_content: str | None = ""
    reasoning_key: str = ""
    short_ids: bool = False
    folds_results: bool = False


def dialect_of(source: str, attempt: Try) -> Dialect:
    no_tools: list[Any] | None = [] if attempt([_USER], None) is None and attempt([_USER], []) is not None else None

    def shown(*messages: dict[str, Any]) -> str:
        return attempt(list(messages), no_tools) or ""

    found = next(((text, empty) for text in (False, True) for empty in ("", None) if _shows_call(shown, text, empty)), None)
    arguments_as_text, no_content = found or (False, "")
    return Dialect(
        no_tools=no_tools,
        knows_tools=_PROBE in (attempt([_USER], [_TOOL]) or ""),
        knows_calls=found is not None,
        knows_system=_PROBE in shown({"role": "system", "content": _PROBE}, _USER),
        knows_developer="developer" in source,
        arguments_as_text=arguments_as_text,
        no_content=no_content,
        reasoning_key=_reasoning_key(source),
        short_ids=bool(_NINE.search(source)),
        folds_results="tool_responses" in source,
    )


def _shows_call(shown: Callable[..., str], arguments_as_text: bool, no_content: str | None) -> bool:
    """Whether the template shows a call in this form. If it shows the arguments in Python's syntax, or escaped twice, it
    expects the other form."""
    arguments: Any = {_KEY: "value"}
    function = {"name": _PROBE, "arguments": json.dumps(arguments) if arguments_as_text else arguments}
    call = {"id": "123456789", "type": "function", "function": function}
    text = shown(_USER, {"role": "assistant", "content": no_content, "tool_calls": [call]})
    is_garbled = f"'{_KEY}'" in text or f'\\"{_KEY}' in text or (no_content is None and "None" in text)
    return _PROBE in text and _KEY in text and not is_garbled


def _reasoning_key(source: str) -> str:
    if "reasoning_content" in source:
        return "reasoning_content"
    return "thinking" if re.search(r"\.thinking\b|\[.thinking.\]|get\(.thinking.", source) else ""
