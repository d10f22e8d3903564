"""The real clients parse tool calls, log probabilities, choices, structured answers and thinking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import ollama
import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel
from redis.asyncio import Redis

from services.protocol.messages import ChosenLogprob, FinishReason, GenerateRequest, TokenLogprob, ToolCallDelta
from services.protocol.prompts import ChatMessage, ChatPrompt, Tool, ToolCall, ToolChoice
from services.protocol.routes import Routes
from services.protocol.sampling import JsonObject, JsonSchema
from tests.doubles.worker import Answer, Worker
from tests.gateway.conftest import BASE, CHAT, USER_KEY, routes_snapshot, version_route

MODEL = "smollm2:135m"
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
PARAMETERS: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[ChatCompletionToolParam] = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]

Script = Callable[[Answer], Awaitable[None]]


class City(BaseModel):
    name: str
    people: int


@pytest_asyncio.fixture
async def routes(redis: Redis) -> Routes:
    """The chat model also supports tools and thinking."""
    version = version_route(CHAT, chats=True, capabilities=("completion", "chat", "tools", "thinking"))
    routes = Routes(redis)
    await routes.publish(routes_snapshot(versions={CHAT: version, BASE: version_route(BASE, chats=False)}))
    return routes


@pytest_asyncio.fixture
async def openai_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=USER_KEY, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def ollama_client(url: str) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=url) as client:
        yield client


@asynccontextmanager
async def answering(worker: Worker, script: Script) -> AsyncIterator[list[GenerateRequest]]:
    """Answers one request with the script and yields the list that will hold the request."""
    asked: list[GenerateRequest] = []

    async def answer() -> None:
        taken = await worker.take()
        assert isinstance(taken.request, GenerateRequest)
        asked.append(taken.request)
        await taken.started()
        await script(taken)

    task = asyncio.create_task(answer())
    yield asked
    await task


async def call_weather(answer: Answer) -> None:
    await answer.frame(reasoning="Where?")
    await answer.frame(tool_calls=(ToolCallDelta(0, "call_1", "weather"),))
    await answer.frame(tool_calls=(ToolCallDelta(0, arguments='{"city":'),))
    await answer.frame(tool_calls=(ToolCallDelta(0, arguments='"Rome"}'),))
    await answer.frame(tool_calls=(ToolCallDelta(1, "call_2", "weather", '{"city":"Oslo"}'),))
    await answer.finished(FinishReason.TOOL_CALLS)


async def two_choices(answer: Answer) -> None:
    for text, choice in (("b", 1), ("a", 0), ("B", 1)):
        await answer.frame(text, choice=choice)
    await answer.finished(FinishReason.STOP, FinishReason.STOP)


async def with_logprobs(answer: Answer) -> None:
    top = (TokenLogprob(b"A", -0.5), TokenLogprob(b"B", -1.5))
    await answer.frame("A", logprobs=(ChosenLogprob(b"A", -0.5, top),))
    await answer.frame("", logprobs=(ChosenLogprob(b"\xe2\x82", -2.0),))
    await answer.finished(FinishReason.LENGTH)


async def a_city(answer: Answer) -> None:
    for text in ('{"name":"Rome",', '"people":2800000}'):
        await answer.frame(text)
    await answer.finished()


async def a_thought(answer: Answer) -> None:
    await answer.frame(reasoning="Hm")
    await answer.frame("Yes")
    await answer.finished()


async def test_openai_tool_calls(openai_client: openai.AsyncOpenAI, worker: Worker) -> None:
    async with answering(worker, call_weather) as asked:
        whole = await openai_client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, tool_choice="required")
    assert isinstance(asked[0].prompt, ChatPrompt)
    assert asked[0].prompt.tools == (Tool("weather", parameters=PARAMETERS),)
    assert asked[0].prompt.tool_choice == ToolChoice("required")
    (choice,) = whole.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    calls = [call for call in choice.message.tool_calls or () if call.type == "function"]
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_1", "weather", '{"city":"Rome"}'),
        ("call_2", "weather", '{"city":"Oslo"}'),
    ]
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == 1

    message = choice.message.model_dump(exclude_none=True)
    dialogue = [*HI, message, {"role": "tool", "tool_call_id": "call_1", "content": "Sunny"}]
    async with answering(worker, a_thought) as asked:
        await openai_client.chat.completions.create(model=MODEL, messages=cast(Any, dialogue))
    assert isinstance(asked[0].prompt, ChatPrompt)
    assert asked[0].prompt.messages[1:] == (
        ChatMessage(
            "assistant",
            "",
            reasoning="Where?",
            tool_calls=(ToolCall("call_1", "weather", '{"city":"Rome"}'), ToolCall("call_2", "weather", '{"city":"Oslo"}')),
        ),
        ChatMessage("tool", "Sunny", tool_call_id="call_1"),
    )


async def test_openai_tool_calls_in_a_stream(openai_client: openai.AsyncOpenAI, worker: Worker) -> None:
    async with (
        answering(worker, call_weather),
        openai_client.chat.completions.stream(model=MODEL, messages=HI, tools=TOOLS) as stream,
    ):
        events = [event async for event in stream]
        final = await stream.get_final_completion()
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert [(call.id, call.function.arguments) for call in calls] == [
        ("call_1", '{"city":"Rome"}'),
        ("call_2", '{"city":"Oslo"}'),
    ]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.arguments for event in done] == ['{"city":"Rome"}', '{"city":"Oslo"}']


async def test_openai_choices(openai_client: openai.AsyncOpenAI, worker: Worker) -> None:
    async with answering(worker, two_choices) as asked:
        whole = await openai_client.chat.completions.create(model=MODEL, messages=HI, n=2)
    assert asked[0].n == 2
    assert [(choice.message.content, choice.finish_reason) for choice in whole.choices] == [("a", "stop"), ("bB", "stop")]
    async with (
        answering(worker, two_choices),
        openai_client.chat.completions.stream(model=MODEL, messages=HI, n=2) as stream,
    ):
        final = await stream.get_final_completion()
    assert [(choice.index, choice.message.content) for choice in final.choices] == [(0, "a"), (1, "bB")]
    async with answering(worker, two_choices):
        text = await openai_client.completions.create(model=MODEL, prompt="> ", n=2, echo=True)
    assert [choice.text for choice in text.choices] == ["> a", "> bB"]


async def test_openai_logprobs(openai_client: openai.AsyncOpenAI, worker: Worker) -> None:
    async with answering(worker, with_logprobs) as asked:
        chat = await openai_client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=2)
    assert asked[0].top_logprobs == 2
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    first, second = chat.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("A", -0.5, [65])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("A", -0.5), ("B", -1.5)]
    assert (second.token, second.bytes) == ("\N{REPLACEMENT CHARACTER}", [0xE2, 0x82])
    async with answering(worker, with_logprobs):
        text = await openai_client.completions.create(model=MODEL, prompt="Once", logprobs=2, max_tokens=2)
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.tokens == ["A", "bytes:\\xe2\\x82"]
    assert text.choices[0].logprobs.text_offset == [0, 1]


async def test_openai_structured_answers(openai_client: openai.AsyncOpenAI, worker: Worker) -> None:
    async with answering(worker, a_city) as asked:
        parsed = await openai_client.chat.completions.parse(model=MODEL, messages=HI, response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Rome", people=2_800_000)
    constraint = asked[0].constraint
    assert isinstance(constraint, JsonSchema)
    assert isinstance(constraint.schema, dict)
    assert list(constraint.schema["properties"]) == ["name", "people"]


async def test_openai_reasoning(openai_client: openai.AsyncOpenAI, worker: Worker) -> None:
    async with answering(worker, a_thought) as asked:
        whole = await openai_client.chat.completions.create(model=MODEL, messages=HI, reasoning_effort="minimal")
    assert isinstance(asked[0].prompt, ChatPrompt)
    assert (asked[0].prompt.thinking, asked[0].prompt.reasoning_effort) == (True, "low")
    assert whole.choices[0].message.content == "Yes"
    assert whole.choices[0].message.model_extra == {"reasoning": "Hm"}


async def test_an_invalid_grammar_is_a_bad_request(openai_client: openai.AsyncOpenAI, worker: Worker) -> None:
    async def refuse(answer: Answer) -> None:
        await answer.failed("invalid_request", "grammar: line 1: no rule is called 'x'")

    async with answering(worker, refuse):
        with pytest.raises(openai.BadRequestError, match="no rule is called 'x'"):
            await openai_client.chat.completions.create(model=MODEL, messages=HI, extra_body={"grammar": "root ::= x"})


def weather(city: str) -> str:
    """Says how it is outside.

    Args:
        city: Where.
    """
    return f"Sunny in {city}"


async def test_ollama_tool_calls(ollama_client: ollama.AsyncClient, worker: Worker) -> None:
    async with answering(worker, call_weather) as asked:
        whole = await ollama_client.chat(MODEL, messages=HI, tools=[weather])
    assert isinstance(asked[0].prompt, ChatPrompt)
    (tool,) = asked[0].prompt.tools
    assert (tool.name, tool.parameters["required"]) == ("weather", ["city"])
    assert (whole.done_reason, whole.message.thinking) == ("stop", "Where?")
    arguments = [call.function.arguments for call in whole.message.tool_calls or ()]
    assert arguments == [{"city": "Rome"}, {"city": "Oslo"}]
    async with answering(worker, call_weather):
        parts = [part async for part in await ollama_client.chat(MODEL, messages=HI, tools=[weather], stream=True)]
    calls = [call.function.arguments for part in parts for call in part.message.tool_calls or ()]
    assert calls == arguments

    answers = [{"role": "tool", "tool_name": "weather", "content": weather("Rome")}]
    async with answering(worker, a_thought) as asked:
        await ollama_client.chat(MODEL, messages=[*HI, whole.message, *answers])
    assert isinstance(asked[0].prompt, ChatPrompt)
    called, answered = asked[0].prompt.messages[1:]
    assert (called.reasoning, [call.arguments for call in called.tool_calls]) == (
        "Where?",
        ['{"city":"Rome"}', '{"city":"Oslo"}'],
    )
    assert answered == ChatMessage("tool", "Sunny in Rome", tool_name="weather")


async def test_ollama_thinking(ollama_client: ollama.AsyncClient, worker: Worker) -> None:
    async with answering(worker, a_thought) as asked:
        parts = [part async for part in await ollama_client.chat(MODEL, messages=HI, stream=True)]
    assert isinstance(asked[0].prompt, ChatPrompt)
    assert asked[0].prompt.thinking is True
    assert [(part.message.thinking, part.message.content) for part in parts] == [("Hm", ""), (None, "Yes"), (None, "")]
    async with answering(worker, a_thought) as asked:
        text = await ollama_client.generate(MODEL, "Hi", think=False)
    assert isinstance(asked[0].prompt, ChatPrompt)
    assert asked[0].prompt.thinking is False
    assert (text.thinking, text.response) == ("Hm", "Yes")


async def test_ollama_structured_answers_and_logprobs(ollama_client: ollama.AsyncClient, worker: Worker) -> None:
    async with answering(worker, a_city) as asked:
        answer = await ollama_client.chat(MODEL, messages=HI, format=City.model_json_schema())
    assert City.model_validate_json(answer.message.content or "") == City(name="Rome", people=2_800_000)
    assert isinstance(asked[0].constraint, JsonSchema)
    async with answering(worker, with_logprobs) as asked:
        text = await ollama_client.generate(MODEL, "Hi", format="json", logprobs=True, top_logprobs=2)
    assert (asked[0].constraint, asked[0].top_logprobs) == (JsonObject(), 2)
    first, second = text.logprobs or ()
    assert (first.token, first.logprob, second.token) == ("A", -0.5, "\N{REPLACEMENT CHARACTER}")
    assert [top.token for top in first.top_logprobs or ()] == ["A", "B"]
