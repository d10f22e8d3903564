"""Each command's script: what it holds, and that the queue's own are whole."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from redis.asyncio import Redis

from services.protocol.lua_module import LuaModule
from services.protocol.queue import SCRIPT_FILES, queue_scripts
from services.protocol.scripts import Scripts

BASE = """--[[
Comments, also with local names.
]]
local commands = {}

local GREETING = "hello"

local unused = 7

local function greet(name)
  return GREETING .. ", " .. name
end
"""
COMMANDS = """
-- name: a greeting, and not unused
function commands.greet(a)
  return greet(a.name)
end

function commands.ping()
  return "pong"
end
"""


async def test_a_script_runs_its_command_with_the_arguments(redis: Redis) -> None:
    scripts = Scripts(redis, LuaModule([BASE, COMMANDS]).scripts())
    assert await scripts.call("greet", [], [b"\x81\xa4name\xa5world"]) == b"hello, world"
    assert await scripts.call("ping", [], [b"\x80"]) == b"pong"


def test_a_script_holds_only_what_its_command_uses() -> None:
    scripts = LuaModule([BASE, COMMANDS]).scripts()
    assert "greet" in scripts["greet"]
    assert "GREETING" in scripts["greet"]
    assert "unused" not in scripts["greet"]
    assert "ping" not in scripts["greet"]
    assert "GREETING" not in scripts["ping"]


@pytest.mark.parametrize("command", queue_scripts())
def test_the_definitions_of_a_queue_script_precede_their_uses(command: str) -> None:
    script = queue_scripts()[command]
    names = re.findall(r"^local (?:function )?(\w+)", script, re.MULTILINE)
    assert len(names) == len(set(names))
    for name in names:
        first = re.search(rf"\b{name}\b", script)
        assert first is not None
        assert script[: first.start()].endswith(("local ", "local function ")), name


def test_every_definition_of_the_queue_is_used() -> None:
    folder = resources.files("services.protocol") / "queue_script"
    defined = re.findall(
        r"^local (?:function )?(\w+)", "".join((folder / f"{name}.lua").read_text() for name in SCRIPT_FILES), re.MULTILINE
    )
    scripts = "".join(queue_scripts().values())
    assert [name for name in defined if f" {name}" not in scripts] == []
