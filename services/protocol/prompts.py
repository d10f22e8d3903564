"""Prompts, independent of the API dialect: a text, or a chat with the tools that the model may call."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call in an assistant's message. `arguments` is JSON text, usually an object."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """`reasoning` and `tool_calls` belong to assistant messages; `tool_call_id` and `tool_name` identify the call that a `tool` message
    answers."""

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    tool_name: str = ""


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may call. `parameters` is a JSON Schema in the caller's key order. `strict` asks for generation that is
    constrained to valid arguments; some chat formats ignore it."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """`required`: the model must call at least one tool. If `name` is not empty, it must call that one."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str = ""


class ChatPrompt(msgspec.Struct, frozen=True, omit_defaults=True, tag="chat"):
    """A chat, which the worker renders with the model's own template.

    `thinking` None: the template decides. `reasoning_effort` (`low`, `medium`, `high` ...) is for templates that support it.
    `continue_final`: the last message is an assistant's, and the answer continues it. `template_kwargs` are more variables for the
    template.
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
    """A text that is tokenized without a template. With a `suffix`, the model generates the text between the two, using its infill tokens."""

    text: str
    suffix: str = ""


Prompt = ChatPrompt | TextPrompt
