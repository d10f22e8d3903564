"""Open WebUI 0.12's requests with its defaults, for a model whose template has no tools: the requests that
tests/clients/open_webui.py recorded, in the same order and with the same fields. Open WebUI adds 28 tools to every chat."""

from __future__ import annotations

import asyncio
import json

import httpx

from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatPrompt
from tests.doubles.worker import Worker

MODEL = "smollm2:135m"
HELLO = [{"role": "user", "content": "Hello! What is the capital of France?"}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "description": "What to look for", "default": ""},
        "count": {"type": "integer", "default": 10},
        "deep": {"type": "boolean", "default": False},
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "status": {"type": "string", "enum": ["pending", "completed"], "default": "pending"},
                },
                "additionalProperties": True,
            },
        },
    },
    "required": ["query"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": f"search_notes_{index}", "description": "Looks for notes.", "parameters": PARAMETERS},
    }
    for index in range(28)
]
CHAT = {"model": MODEL, "messages": HELLO, "stream": True, "tools": TOOLS}
#: Requests for titles, tags and follow-up questions.
TASKS = (
    {"model": MODEL, "messages": HELLO, "options": {"num_predict": 1000}, "stream": False},
    {"model": MODEL, "messages": HELLO, "stream": False},
)
OPENAI_TASK = {"model": MODEL, "messages": HELLO, "stream": False, "max_completion_tokens": 1000}


async def test_both_connections_list_the_model(http: httpx.AsyncClient) -> None:
    version = (await http.get("/api/version")).json()["version"]
    assert all(part.isdigit() for part in version.split("."))
    assert MODEL in [model["model"] for model in (await http.get("/api/tags")).json()["models"]]
    assert MODEL in [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
    assert (await http.get("/api/ps")).json()["models"]


async def test_a_chat_over_ollamas_connection(http: httpx.AsyncClient, echo: None) -> None:
    response = await http.post("/api/chat", json=CHAT)
    chunks = [json.loads(line) for line in response.text.splitlines()]
    assert response.status_code == 200
    assert "".join(chunk["message"]["content"] for chunk in chunks) == "Hello world"
    assert (chunks[-1]["done"], chunks[-1]["done_reason"]) == (True, "stop")
    for task in TASKS:
        assert (await http.post("/api/chat", json=task)).json()["message"]["content"] == "Hello world"


async def test_a_chat_over_openais_connection(http: httpx.AsyncClient, echo: None) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT)
    *lines, done = response.text.strip().split("\n\n")
    assert (response.status_code, done) == (200, "data: [DONE]")
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines]
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello world"
    for task in (*TASKS[1:], OPENAI_TASK):
        answer = (await http.post("/v1/chat/completions", json=task)).json()
        assert answer["choices"][0]["message"]["content"] == "Hello world"


async def test_the_worker_gets_the_tools(http: httpx.AsyncClient, worker: Worker) -> None:
    for path in ("/api/chat", "/v1/chat/completions"):
        asked = asyncio.create_task(http.post(path, json=CHAT))
        answer = await worker.take()
        assert isinstance(answer.request, GenerateRequest)
        assert isinstance(prompt := answer.request.prompt, ChatPrompt)
        assert [tool.name for tool in prompt.tools] == [f"search_notes_{index}" for index in range(28)]
        await answer.whole("Hello")
        assert (await asked).status_code == 200
