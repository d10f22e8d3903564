"""Turns neutral messages into Hugging Face's form, adapted to the template's dialect."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from services.protocol.prompts import ChatMessage, Tool, ToolCall
from services.worker.chat.call_id import letters
from services.worker.chat.dialect import Dialect

_INSTRUCTIONS = """You can call functions. Here they are as JSON, one in each line within <tools></tools>:
<tools>
{tools}
</tools>
To call one, write nothing but this, with its name and its arguments:
{example}
Call a function only if the answer needs it. Otherwise answer in plain text."""


def function(tool: Tool) -> dict[str, Any]:
    shown = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": shown}


def turns(
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    dialect: Dialect,
    *,
    example: str,
    marked: Callable[[Any], Any],
) -> list[dict[str, Any]]:
    """The messages for the template. If the template does not show tools, the system message describes them, with `example` as
    a call. If it does not show calls, calls and their results are written as text in Hermes's syntax. `marked` marks the
    callers' strings."""
    named = _named_results(messages)
    shown = [_turn(message, dialect) for message in named]
    if not dialect.knows_calls:
        shown = _merged_results(shown)
    elif dialect.folds_results:
        shown = _folded_results(shown)
    shown = [{key: value if key == "role" else marked(value) for key, value in turn.items()} for turn in shown]
    if tools and not dialect.knows_tools:
        described = "\n".join(_json(marked(function(tool))) for tool in tools)
        _instruct(shown, _INSTRUCTIONS.format(tools=described, example=example), dialect)
    return shown


def _named_results(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Adds the missing call id or tool name to each result. Without either, results are in the order of the calls."""
    open_calls: list[ToolCall] = []
    named = []
    for message in messages:
        if message.tool_calls:
            open_calls = list(message.tool_calls)
        if message.role == "tool":
            message = _named(message, open_calls)
        named.append(message)
    return named


def _named(message: ChatMessage, open_calls: list[ToolCall]) -> ChatMessage:
    fitting = [
        call
        for call in open_calls
        if message.tool_call_id in {"", call.id} and (message.tool_call_id or message.tool_name in {"", call.name})
    ]
    if not fitting:
        return message
    open_calls.remove(fitting[0])
    return ChatMessage(
        "tool",
        message.content,
        tool_call_id=message.tool_call_id or fitting[0].id,
        tool_name=message.tool_name or fitting[0].name,
    )


def _turn(message: ChatMessage, dialect: Dialect) -> dict[str, Any]:
    if message.role == "tool":
        return _result(message, dialect)
    role = "system" if message.role == "developer" and not dialect.knows_developer else message.role
    turn: dict[str, Any] = {"role": role, "content": message.content}
    if message.tool_calls and dialect.knows_calls:
        turn["content"] = message.content or dialect.no_content
        turn["tool_calls"] = [_call(call, dialect) for call in message.tool_calls]
    elif message.tool_calls:
        calls = [
            f'<tool_call>\n{{"name": {_json(call.name)}, "arguments": {call.arguments}}}\n</tool_call>'
            for call in message.tool_calls
        ]
        turn["content"] = "\n".join([message.content, *calls] if message.content else calls)
    if message.reasoning and dialect.reasoning_key and not _is_refused(message, dialect):
        turn[dialect.reasoning_key] = message.reasoning
    return turn


def _is_refused(message: ChatMessage, dialect: Dialect) -> bool:
    """gpt-oss's template accepts reasoning or content in a message with calls, not both."""
    return dialect.reasoning_key == "thinking" and bool(message.content and message.tool_calls)


def _call(call: ToolCall, dialect: Dialect) -> dict[str, Any]:
    arguments = call.arguments if dialect.arguments_as_text else _object(call.arguments)
    return {"id": _id(call.id, dialect), "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _result(message: ChatMessage, dialect: Dialect) -> dict[str, Any]:
    if not dialect.knows_calls:
        return {"role": "user", "content": f"<tool_response>\n{message.content}\n</tool_response>", "is_result": True}
    turn = {"role": "tool", "content": message.content, "tool_call_id": _id(message.tool_call_id, dialect)}
    return {**turn, "name": message.tool_name} if message.tool_name else turn


def _merged_results(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins successive results into one message, because many templates want the roles to alternate."""
    merged: list[dict[str, Any]] = []
    for is_result, turns in groupby(shown, key=lambda turn: "is_result" in turn):
        if is_result:
            merged.append({"role": "user", "content": "\n".join(turn["content"] for turn in turns)})
        else:
            merged += turns
    return merged


def _folded_results(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Moves results into `tool_responses` of the message with the calls, as Gemma 4's template expects."""
    folded: list[dict[str, Any]] = []
    for turn in shown:
        if turn["role"] == "tool" and folded and folded[-1]["role"] == "assistant":
            response = {"name": turn.get("name", "unknown"), "response": _object_or_text(turn["content"])}
            folded[-1].setdefault("tool_responses", []).append(response)
        else:
            folded.append(turn)
    return folded


def _instruct(shown: list[dict[str, Any]], instructions: str, dialect: Dialect) -> None:
    """Adds instructions to the system message, or to the first message if the template has no system message."""
    first = shown[0] if shown else None
    if first is not None and (first["role"] == "system" or not dialect.knows_system):
        first["content"] = (
            f"{first['content']}\n\n{instructions}" if first["role"] == "system" else f"{instructions}\n\n{first['content']}"
        )
    else:
        shown.insert(0, {"role": "system", "content": instructions})


def _id(id: str, dialect: Dialect) -> str:
    if not dialect.short_ids or (len(id) == 9 and id.isalnum()):
        return id
    return letters(id, 9)


def _object(text: str) -> Any:
    """The parsed arguments. A caller may send back an answer that was cut off: invalid JSON is passed on as text."""
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return {"malformed": text}


def _object_or_text(text: str) -> Any:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return loaded if isinstance(loaded, dict) else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
