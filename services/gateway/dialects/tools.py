"""A request's tools and tool choice, which all dialects write as OpenAI does."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.dialects.bodies import InvalidField, check_limit, check_portable
from services.gateway.dialects.limits import NAMES, Name, Text
from services.protocol.prompts import Tool, ToolChoice


class FunctionBody(msgspec.Struct):
    name: Name | None = None
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct):
    type: Name | None = None
    function: FunctionBody | None = None


class Toolbox(msgspec.Struct, frozen=True):
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = ToolChoice()


def toolbox(bodies: list[ToolBody] | None, choice: object) -> Toolbox:
    """Reads the tools and the tool choice; every chat model takes tools. Raises InvalidField."""
    asked, allowed = _choice(choice)
    tools = tuple(_tool(body, f"tools[{index}]") for index, body in enumerate(bodies or ()))
    if allowed is not None:
        tools = tuple(tool for tool in tools if tool.name in allowed)
    if asked.mode == "required" and not tools:
        raise InvalidField("tool_choice: requires a tool, but the request has none", field="tool_choice")
    if asked.name and all(tool.name != asked.name for tool in tools):
        raise InvalidField(f"tool_choice: there is no tool named '{asked.name}'", field="tool_choice")
    return Toolbox(tools, asked if tools else ToolChoice())


def _tool(body: ToolBody, field: str) -> Tool:
    if body.type not in (None, "function"):
        raise InvalidField(f"{field}.type: must be 'function'", field=f"{field}.type")
    function = body.function
    if function is None or not function.name:
        raise InvalidField(f"{field}.function.name: is required", field=f"{field}.function.name")
    parameters = function.parameters or {}
    check_portable(parameters, field=f"{field}.function.parameters")
    return Tool(function.name, function.description or "", parameters, function.strict is True)


def _choice(choice: object) -> tuple[ToolChoice, frozenset[str] | None]:
    """Returns the tool choice, and the names of the allowed tools; None if all are allowed."""
    match choice:
        case None | "" | "auto":
            return ToolChoice(), None
        case "none":
            return ToolChoice("none"), None
        case "required" | "any":
            return ToolChoice("required"), None
        case {"type": "function", "function": {"name": str(name)}} if name:
            check_limit(NAMES, len(name), field="tool_choice.function.name")
            return ToolChoice("required", name), None
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)}}:
            return ToolChoice("required" if mode == "required" else "auto"), _names(tools)
        case _:
            raise InvalidField("tool_choice: must be 'auto', 'none', 'required' or name a function", field="tool_choice")


def _names(tools: list[Any]) -> frozenset[str]:
    """The function names in an `allowed_tools` list."""
    return frozenset(
        name
        for tool in tools
        if isinstance(tool, dict) and isinstance(function := tool.get("function"), dict)
        if isinstance(name := function.get("name"), str)
    )
