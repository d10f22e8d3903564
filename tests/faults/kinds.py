"""The kinds of requests that are disturbed, and how a client reads their answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx

_STREAMED = {"model": "fake", "stream": True, "stream_options": {"include_usage": True}}
_GREEDY = {"temperature": 0, "max_tokens": 24}
_DRAWN = {"temperature": 4, "seed": 7, "max_tokens": 24}
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "even": {"type": "boolean"}},
    "required": ["name", "even"],
}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}


def _text(prompt: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {**_STREAMED, **_GREEDY, "prompt": prompt, **more}


def _chat(quoted: str, **more: Any) -> tuple[str, dict[str, Any]]:
    message = {"role": "user", "content": f"Say «{quoted}»"}
    return "/v1/chat/completions", {**_STREAMED, **_GREEDY, "messages": [message], "max_tokens": 100, **more}


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": _text("A plain text of some length that is computed first."),
    "schema": _text("An object:", guided_json=_SCHEMA, max_tokens=60),
    "GBNF": _text("A grammar:", grammar='root ::= "Grüße " [a-z]{9} " 🐎."'),
    "tool call": _chat('<tool_call>\n{"name": "look", "arguments": {"at": "Köln"}}\n</tool_call>', tools=[_TOOL]),
    "reasoning": _chat("So it is.</think>It is.", chat_template_kwargs={"enable_thinking": True}),
    "stop string": _chat("one STOP two STOPPED STOPPING four", stop=["STOPPING"]),
    "multi-byte": _chat("Grüße aus 東京 🐎🐎!"),
    "logprobs": _text("Some logprobs:", logprobs=2),
    "penalties": _text("Penalties:", **_DRAWN, presence_penalty=1.5, frequency_penalty=1.0),
    "two choices": _text("Two of them:", **_DRAWN, n=2),
    "Ollama": (
        "/api/generate",
        {"model": "fake", "prompt": "As Ollama does", "raw": True, "options": {"temperature": 0, "num_predict": 24}},
    ),
}


@dataclass
class Answer:
    """What the client has of one answer. `ends` counts the terminal events; `tokens` is the usage without cached tokens."""

    texts: defaultdict[int, str] = field(default_factory=lambda: defaultdict(str))
    reasoning: str = ""
    calls: defaultdict[int, str] = field(default_factory=lambda: defaultdict(str))
    logprobs: list[Any] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    tokens: tuple[int, int] | None = None
    ends: int = 0
    error: Any = None

    def take(self, line: str) -> None:
        if not line or line.startswith(":"):
            return
        if line == "data: [DONE]":
            self.ends += 1
            return
        body = json.loads(line.removeprefix("data: "))
        self.error = body.get("error") or self.error
        if "response" in body:
            self._take_ollama(body)
        for choice in body.get("choices", ()):
            self._take_choice(choice)
        if (usage := body.get("usage")) and not body["choices"]:  # the usage of chunks with choices is zero, as Ollama's is
            assert self.tokens is None, "usage is sent once"
            self.tokens = usage["prompt_tokens"], usage["completion_tokens"]

    def _take_ollama(self, body: dict[str, Any]) -> None:
        self.texts[0] += body["response"]
        if body["done"]:
            self.ends += 1
            self.tokens = body["prompt_eval_count"], body["eval_count"]
            self.reasons[0] = body["done_reason"]

    def _take_choice(self, choice: dict[str, Any]) -> None:
        index, delta = choice["index"], choice.get("delta") or {}
        self.texts[index] += choice.get("text") or delta.get("content") or ""
        self.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            self.calls[call["index"]] += (function.get("name") or "") + (function.get("arguments") or "")
        if logprobs := choice.get("logprobs"):
            self.logprobs.append({name: value for name, value in logprobs.items() if name != "text_offset"})
        if reason := choice.get("finish_reason"):
            assert index not in self.reasons, "a choice ends once"
            self.reasons[index] = reason

    def result(self) -> dict[str, Any]:
        """Everything that must not depend on faults; the logprobs are in one list, because frames may be grouped differently."""
        joined: defaultdict[str, list[Any]] = defaultdict(list)
        for part in self.logprobs:
            for name, values in part.items():
                joined[name] += values or []
        same = {name: getattr(self, name) for name in ("texts", "reasoning", "calls", "reasons", "tokens", "ends", "error")}
        return {**same, "logprobs": dict(joined)}


def at_most(tokens: int, body: dict[str, Any]) -> dict[str, Any]:
    """The same request, limited to this many tokens."""
    if "options" in body:
        return {**body, "options": {**body["options"], "num_predict": tokens}}
    return {**body, "max_tokens": min(tokens, body["max_tokens"])}


class RunningRequest:
    """A running request. `pace_s` delays the client after each piece; `tokens` limits the answer. `max_wait_s` is the
    longest time between two pieces after the first one."""

    def __init__(self, http: httpx.AsyncClient, kind: str, *, pace_s: float = 0, tokens: int | None = None) -> None:
        self.kind = kind
        self._tokens = tokens
        self.answer = Answer()
        self.max_wait_s = 0.0
        self._pace_s = pace_s
        self.task = asyncio.create_task(self._read(http))

    async def _read(self, http: httpx.AsyncClient) -> Answer:
        path, body = KINDS[self.kind]
        if self._tokens is not None:
            body = at_most(self._tokens, body)
        async with http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                self.answer.error = (await response.aread()).decode()
                self.answer.ends += 1
                return self.answer
            last = time.monotonic()
            async for line in response.aiter_lines():
                self.answer.take(line)
                self.max_wait_s = max(self.max_wait_s, time.monotonic() - last)
                last = time.monotonic()
                if self._pace_s:
                    await asyncio.sleep(self._pace_s)
        return self.answer
