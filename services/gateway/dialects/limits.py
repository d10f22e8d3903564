"""Size limits for request fields, shared by all dialects. docs/http-api.md lists them, and a test compares the two.

Each limit is far above what real clients send, and low enough that reading, rendering and answering such a request delays
neither the gateway nor other callers of the model.
"""

from __future__ import annotations

from typing import Annotated

import msgspec


class Limit(msgspec.Struct, frozen=True):
    """At most `most` of `unit` in the fields named in `of`."""

    of: str
    most: int
    unit: str
    reason: str

    @property
    def length(self) -> msgspec.Meta:
        """Annotation for a field's type, so that msgspec checks the limit while decoding the body."""
        return msgspec.Meta(max_length=self.most)


MESSAGES = Limit("`messages`", 10_000, "entries", "long agent sessions have hundreds; every one is rendered")
PARTS = Limit("`content` of a message", 1_024, "entries", "clients send a few")
CALLS = Limit("`tool_calls` of a message", 1_024, "entries", "parallel calls are a few dozen")
IMAGES = Limit("`images`", 256, "entries", "clients send a few")
TOOLS = Limit("`tools`", 1_024, "entries", "OpenAI takes 128; agents with many MCP servers send hundreds")
INPUTS = Limit("`input`, `documents`", 4_096, "entries", "OpenAI takes 2,048 inputs; each gets a vector in the answer")
TOKENS = Limit("`context`, token ids in `prompt` and `input`", 1_048_576, "entries", "longer than any model's context")
CHOICES = Limit("`guided_choice`, `structured_outputs.choice`", 4_096, "entries", "all of them become one grammar")
WORDS = Limit("`modalities`", 16, "entries", "there are two")
STOPS = Limit("`stop`", 256, "entries", "OpenAI takes 4; role-play clients send dozens")
STOP_TEXT = Limit("`stop`, all together", 16_384, "characters", "each choice is searched for all of them")
BREAKERS = Limit("`dry_sequence_breakers`", 256, "entries", "llama.cpp has 4 by default; role-play clients send dozens")
BREAKER_TEXT = Limit("`dry_sequence_breakers`, all together", 4_096, "characters", "each choice is searched for all of them")
BIASES = Limit("`logit_bias`", 4_096, "entries", "OpenAI takes 300; they are added at every token")
TEXTS = Limit(
    "`content`, `prompt`, `suffix`, `system`, `input` and any other text", 4_194_304, "characters", "about a million tokens"
)
NAMES = Limit(
    "names: `model`, `role`, of tools and functions, `reasoning_effort`, `encoding_format` and the like",
    1_024,
    "characters",
    "they are repeated in errors and logs",
)
IDS = Limit("`tool_call_id`, `id` of a call", 65_536, "characters", "some gateways put a model's signed reasoning into them")
DURATIONS = Limit("`keep_alive`", 64, "characters", "the longest useful one is `292y` in seconds")
JSON_VALUES = Limit(
    "a JSON Schema (`format`, `response_format`, `guided_json`, ...), the `parameters` of one tool, `chat_template_kwargs`",
    262_144,
    "bytes",
    "as much as a grammar is compiled from",
)
NESTING = Limit("the same, and the `arguments` of a call", 100, "levels", "what reads them descends level by level")
GRAMMARS = Limit(
    "`grammar`, `guided_grammar`, `guided_regex`",
    262_144,
    "characters",
    "workers compile 32 KiB besides the JSON schemas in it",
)

LIMITS = (
    *(MESSAGES, PARTS, CALLS, IMAGES, TOOLS, INPUTS, TOKENS, CHOICES, WORDS),
    *(STOPS, STOP_TEXT, BREAKERS, BREAKER_TEXT, BIASES),
    *(TEXTS, NAMES, IDS, DURATIONS, JSON_VALUES, NESTING, GRAMMARS),
)

Text = Annotated[str, TEXTS.length]
Name = Annotated[str, NAMES.length]
Id = Annotated[str, IDS.length]
Grammar = Annotated[str, GRAMMARS.length]
