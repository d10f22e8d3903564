"""Reads how much the caller wants the model to think: `reasoning_effort`, `reasoning.effort`, and llama-server's and vLLM's
`chat_template_kwargs`, which are passed to the template unchanged."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.dialects.bodies import InvalidField
from services.gateway.dialects.limits import Name
from services.gateway.dialects.thinking import Thinking

_KWARGS = "chat_template_kwargs"
_EFFORTS = {
    "none": Thinking(enabled=False),
    "minimal": Thinking(enabled=True, effort="low"),
    "low": Thinking(enabled=True, effort="low"),
    "medium": Thinking(enabled=True, effort="medium"),
    "high": Thinking(enabled=True, effort="high"),
    "max": Thinking(enabled=True, effort="max"),
    "xhigh": Thinking(enabled=True, effort="max"),
    "ultra": Thinking(enabled=True, effort="max"),
}


class Reasoning(msgspec.Struct):
    effort: Name | None = None


def thinking_of(effort: str | None, reasoning: Reasoning | None, template_kwargs: dict[str, Any]) -> Thinking:
    """`reasoning_effort` and `reasoning.effort` override the template's variables. Raises InvalidField."""
    if effort:
        return _asked(effort, "reasoning_effort")
    if reasoning is not None and reasoning.effort:
        return _asked(reasoning.effort, "reasoning.effort")
    return _of_template(template_kwargs)


def _asked(effort: str, field: str) -> Thinking:
    if effort not in _EFFORTS:
        raise InvalidField(
            f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", "max", or "none")', field=field
        )
    return _EFFORTS[effort]


def _of_template(template_kwargs: dict[str, Any]) -> Thinking:
    enabled = template_kwargs.get("enable_thinking")
    if not isinstance(enabled, bool | None):
        raise InvalidField(f"{_KWARGS}.enable_thinking: expected bool", field=f"{_KWARGS}.enable_thinking")
    effort = template_kwargs.get("reasoning_effort")
    if not isinstance(effort, str | None):
        raise InvalidField(f"{_KWARGS}.reasoning_effort: expected str", field=f"{_KWARGS}.reasoning_effort")
    return Thinking(enabled, effort or "")
