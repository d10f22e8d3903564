"""What a model is asked: a text, or a chat with the tools that it may call. In no dialect."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ToolCall(msgspec.Struct, frozen=True):
    """A call that an assistant made. `arguments` is JSON text, usually an object."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """`reasoning` and `tool_calls` are an assistant's; `tool_call_id` and `tool_name` say which call a `tool` message answers."""

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    tool_name: str = ""


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may call. `parameters` is a JSON Schema in the caller's key order; `strict` asks for arguments
    that are certain to validate."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """`required`: at least one call, of the tool `name` where that is not empty."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str = ""


class ChatPrompt(msgspec.Struct, frozen=True, omit_defaults=True, tag="chat"):
    """Rendered by the worker with the model's own template.

    `thinking` None leaves it to the template; `reasoning_effort` (`low`, `medium`, `high` ...) is handed to templates that know it.
    `continue_final`: the last message is an assistant's and the answer goes on where it ends. `template_kwargs` are further
    variables for the template.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    thinking: bool | None = None
    reasoning_effort: str = ""
    continue_final: bool = False
    template_kwargs: dict[str, Any] = {}


class TextPrompt(msgspec.Struct, frozen=True, omit_defaults=True, tag="text"):
    """Tokenized as it stands. With a `suffix` the model fills in between the two, by its own infill tokens."""

    text: str
    suffix: str = ""


Prompt = ChatPrompt | TextPrompt
