"""The tools of a request and what is asked of them, which all dialects write as OpenAI does."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.dialects.bodies import InvalidField, check_portable
from services.gateway.ticket import Target
from services.protocol.prompts import Tool, ToolChoice


class FunctionBody(msgspec.Struct):
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct):
    type: str | None = None
    function: FunctionBody | None = None


class Toolbox(msgspec.Struct, frozen=True):
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = ToolChoice()


def toolbox(bodies: list[ToolBody] | None, choice: object, target: Target) -> Toolbox:
    """Raises InvalidField; UnsupportedCapability where the model would have to say by itself that it calls a tool and cannot:
    calls that are required are made by a grammar, on any model."""
    asked, allowed = _choice(choice)
    if asked.mode == "auto" and bodies and not target.can("tools"):
        raise target.unsupported("tools")
    tools = tuple(_tool(body, f"tools[{index}]") for index, body in enumerate(bodies or ()))
    if allowed is not None:
        tools = tuple(tool for tool in tools if tool.name in allowed)
    if asked.mode == "required" and not tools:
        raise InvalidField("tool_choice: requires a tool, but there is none", field="tool_choice")
    if asked.name and all(tool.name != asked.name for tool in tools):
        raise InvalidField(f"tool_choice: no tool is called '{asked.name}'", field="tool_choice")
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
    """With the names of the tools that may be called at all, None for every one."""
    match choice:
        case None | "" | "auto":
            return ToolChoice(), None
        case "none":
            return ToolChoice("none"), None
        case "required" | "any":
            return ToolChoice("required"), None
        case {"type": "function", "function": {"name": str(name)}} if name:
            return ToolChoice("required", name), None
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)}}:
            return ToolChoice("required" if mode == "required" else "auto"), _names(tools)
        case _:
            raise InvalidField("tool_choice: must be 'auto', 'none', 'required' or name a function", field="tool_choice")


def _names(tools: list[Any]) -> frozenset[str]:
    """Of tools as `allowed_tools` refers to them."""
    return frozenset(
        name
        for tool in tools
        if isinstance(tool, dict) and isinstance(function := tool.get("function"), dict)
        if isinstance(name := function.get("name"), str)
    )
