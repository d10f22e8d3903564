"""A chat as a template wants it: the neutral messages in Hugging Face's form, bent to the template's dialect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from services.protocol.prompts import ChatMessage, Tool, ToolCall
from services.worker.chat.call_id import letters
from services.worker.chat.dialect import Dialect

_INSTRUCTIONS = """You can call functions. Here they are as JSON, one in each line within <tools></tools>:
<tools>
{tools}
</tools>
To call one, write nothing but this, with its name and its arguments:
{example}"""


def function(tool: Tool) -> dict[str, Any]:
    shown = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": shown}


def turns(messages: Sequence[ChatMessage], tools: Sequence[Tool], dialect: Dialect, *, example: str) -> list[dict[str, Any]]:
    """The messages. Where the template shows no tools the system message tells of them, with an example of a call; where it shows no calls, calls and
    their results are written out as Hermes does."""
    named = _named_results(messages)
    shown = [_turn(message, dialect) for message in named]
    if not dialect.knows_calls:
        shown = _merged_results(shown)
    elif dialect.folds_results:
        shown = _folded_results(shown)
    if tools and not dialect.knows_tools:
        described = "\n".join(_json(function(tool)) for tool in tools)
        _instruct(shown, _INSTRUCTIONS.format(tools=described, example=example), dialect)
    return shown


def _named_results(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Callers name the call that a result answers by its id, or the tool, or neither; then results come in the calls' order."""
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
    """gpt-oss's template takes reasoning or content beside calls, not both."""
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
    """The results of one turn make one message: many templates want the roles to alternate."""
    merged: list[dict[str, Any]] = []
    for turn in shown:
        if turn.get("is_result") and merged and merged[-1].get("is_result"):
            merged[-1]["content"] += "\n" + turn["content"]
        else:
            merged.append(turn)
    return [{key: value for key, value in turn.items() if key != "is_result"} for turn in merged]


def _folded_results(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gemma 4's template wants results as `tool_responses` of the message that made the calls."""
    folded: list[dict[str, Any]] = []
    for turn in shown:
        if turn["role"] == "tool" and folded and folded[-1]["role"] == "assistant":
            response = {"name": turn.get("name", "unknown"), "response": _object_or_text(turn["content"])}
            folded[-1].setdefault("tool_responses", []).append(response)
        else:
            folded.append(turn)
    return folded


def _instruct(shown: list[dict[str, Any]], instructions: str, dialect: Dialect) -> None:
    """Into the system message; into the first message where the template takes none."""
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
    """What a caller sends back of an answer that was cut off is no JSON; then the text itself stands in its place."""
    try:
        return json.loads(text) if text.strip() else {}
    except ValueError:
        return {"malformed": text}


def _object_or_text(text: str) -> Any:
    try:
        loaded = json.loads(text)
    except ValueError:
        return text
    return loaded if isinstance(loaded, dict) else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
