"""The estimated cost of a request, before it runs."""

from __future__ import annotations

import pytest

from services.gateway.requests.admission import EXPECTED_TOKENS, estimated_cost
from services.protocol.messages import EmbedRequest, GenerateRequest, Request, RerankRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt, TextPrompt, Tool, ToolCall
from services.protocol.sampling import StopConditions

ENDS = StopConditions(max_tokens=10)


def asked(prompt: Prompt, *, n: int = 1, stopping: StopConditions = ENDS, context: tuple[int, ...] = ()) -> GenerateRequest:
    return GenerateRequest("r", "v", "g", "k", prompt, stopping=stopping, n=n, context=context)


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (asked(TextPrompt("x" * 40)), 20),
        (asked(TextPrompt("x" * 40), stopping=StopConditions()), 10 + EXPECTED_TOKENS),
        (asked(TextPrompt("x" * 20, "y" * 20), n=3), 40),
        (asked(TextPrompt(""), context=tuple(range(50))), 60),
        (asked(ChatPrompt((ChatMessage("user", "x" * 36, reasoning="y" * 4),))), 20),
        (asked(ChatPrompt((ChatMessage("assistant", "", tool_calls=(ToolCall("c", "name", "x" * 36),)),))), 20),
        (EmbedRequest("r", "v", "g", "k", ("x" * 40, (1, 2, 3))), 13),
        (RerankRequest("r", "v", "g", "k", "x" * 4, ("y" * 8, "z" * 12)), 7),
    ],
)
def test_estimated_cost(request_: Request, tokens: float) -> None:
    assert estimated_cost(request_) == tokens


def test_tools_add_their_length_to_the_cost() -> None:
    chat = ChatPrompt((ChatMessage("user", "Hi"),))
    tool = Tool("name", parameters={"description": "x" * 400})
    assert estimated_cost(asked(ChatPrompt(chat.messages, tools=(tool,)))) > estimated_cost(asked(chat)) + 100
