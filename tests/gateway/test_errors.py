"""Refusals over HTTP, with the status and the body that each dialect's clients expect."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", {"model": "nope", "messages": HI}, 404, "model 'nope' not found"),
        ("/api/chat", {"messages": HI}, 400, "model is required"),
        ("/api/chat", {"model": "", "name": "", "messages": HI}, 400, "model is required"),
        ("/api/chat", {"model": "a b", "messages": HI}, 400, "invalid model name"),
        ("/api/chat", {"model": "gemma3", "messages": HI}, 400, '"gemma3" does not support chat'),
        ("/api/chat", {"model": 1}, 400, "model: expected str, got int"),
        ("/api/chat", {"model": "gemma3", "messages": "Hi"}, 400, "messages: expected array, got str"),
        (
            "/api/chat",
            {"model": "smollm2:135m", "messages": HI, "keep_alive": "10"},
            400,
            'time: missing unit in duration "10"',
        ),
        (
            "/api/chat",
            {"model": "smollm2:135m", "messages": HI, "options": {"temperature": "hot"}},
            400,
            'option "temperature" must be of type float32',
        ),
        ("/api/generate", {"prompt": "Hi"}, 404, "model '' not found"),
        ("/api/generate", {"model": "nope", "prompt": "Hi"}, 404, "model 'nope' not found"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"model": "nope"}, 404, "model 'nope:latest' not found"),
        ("/api/pull", {"model": ""}, 400, "invalid model name"),
    ],
)
async def test_ollama_refusals(
    shared_http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = await shared_http.post(path, json=body)
    assert (response.status_code, response.json()) == (status, {"error": message})
    assert response.headers["content-type"] == "application/json; charset=utf-8"


async def test_ollama_without_a_body(shared_http: httpx.AsyncClient) -> None:
    for path in ("/api/chat", "/api/generate", "/api/show", "/api/pull"):
        response = await shared_http.post(path)
        assert (response.status_code, response.json()) == (400, {"error": "missing request body"})


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        (
            "/v1/chat/completions",
            {"model": "nope", "messages": HI},
            404,
            {"message": "model 'nope' not found", "type": "not_found_error", "param": None, "code": "model_not_found"},
        ),
        (
            "/v1/chat/completions",
            {"model": "smollm2:135m", "messages": []},
            400,
            {
                "message": "[] is too short - 'messages'",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "invalid_request",
            },
        ),
        (
            "/v1/chat/completions",
            {"model": "smollm2:135m", "messages": HI, "temperature": "hot"},
            400,
            {
                "message": "temperature: expected float, got str",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "invalid_request",
            },
        ),
        (
            "/v1/completions",
            {"prompt": "Hi"},
            404,
            {"message": "model '' not found", "type": "not_found_error", "param": None, "code": "model_not_found"},
        ),
    ],
)
async def test_openai_refusals(
    shared_http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, error: dict[str, Any]
) -> None:
    response = await shared_http.post(path, json=body)
    assert (response.status_code, response.json()) == (status, {"error": error})


async def test_unknown_paths_and_wrong_methods(shared_http: httpx.AsyncClient) -> None:
    for method, path, status, text in (
        ("GET", "/nowhere", 404, "404 page not found"),
        ("GET", "/api/chat/", 404, "404 page not found"),
        ("GET", "/docs", 404, "404 page not found"),
        ("GET", "/api/chat", 405, "405 method not allowed"),
        ("POST", "/api/tags", 405, "405 method not allowed"),
    ):
        response = await shared_http.request(method, path)
        assert (response.status_code, response.text) == (status, text)
        assert response.headers["content-type"].startswith("text/plain")
    for method, path in (("GET", "/v1/nowhere"), ("POST", "/v1/responses"), ("POST", "/v1/messages"), ("GET", "/v1")):
        response = await shared_http.request(method, path)
        error = {"message": f"404 page not found: {method} {path}", "type": "not_found_error", "param": None, "code": None}
        assert (response.status_code, response.json()) == (404, {"error": error})
    assert (await shared_http.get("/v1/models/nope")).json()["error"]["message"] == "model 'nope' not found"
