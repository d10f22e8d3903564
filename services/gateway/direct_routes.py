"""Routes whose functions are called without FastAPI between the request and them.

FastAPI resolves a route's dependencies anew for each request, by machinery for parameters, caches and scopes that the routes of
inference do not use: all that they take are functions of the request. Here that is worked out once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

from fastapi import APIRouter, FastAPI
from fastapi.params import Depends
from fastapi.routing import APIRoute
from starlette.requests import Request


def add_directly(app: FastAPI, router: APIRouter) -> None:
    """Adds the router's routes, whose functions take dependencies and nothing else. Routes that were added before come first."""
    for route in router.routes:
        assert isinstance(route, APIRoute)
        app.router.add_route(route.path, _direct(route.endpoint), methods=route.methods, name=route.name)


def _direct(function: Callable[..., Awaitable[Any]]) -> Callable[[Request], Awaitable[Any]]:
    """A function of the request that calls `function` with what its parameters ask for."""
    hints = get_type_hints(function, include_extras=True)
    sources = {name: _source(hint) for name, hint in hints.items() if name != "return"}

    async def call(request: Request) -> Any:
        return await function(**{name: await source(request) for name, source in sources.items()})

    return call


def _source(hint: Any) -> Callable[[Request], Awaitable[Any]]:
    if hint is Request:
        return _itself
    [depends] = [mark for mark in hint.__metadata__ if isinstance(mark, Depends)]
    assert depends.dependency is not None
    return _direct(depends.dependency)


async def _itself(request: Request) -> Request:
    return request
