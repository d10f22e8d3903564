from __future__ import annotations

from services.cli.address import parse_address
from services.cli.embedded.welcome import welcome
from services.cli.up import DEMO_MODEL, recommended

ADDRESS = parse_address("127.0.0.1:11434")


def test_the_chat_comes_first_then_a_streaming_curl() -> None:
    text = welcome(ADDRESS, model="m:1b", key=None)
    run, curl, python = (
        text.index(command) for command in (" run m:1b\n", "curl http://127.0.0.1:11434/api/generate", "OpenAI(")
    )
    assert run < curl < python


def test_the_commands_have_the_key_and_the_address() -> None:
    text = welcome(parse_address("10.0.0.7:8080"), model="m", key="secret")
    assert "CORRAL_HOST=http://10.0.0.7:8080 CORRAL_API_KEY=secret " in text
    assert "Bearer secret" in text


def test_only_existing_models_are_recommended() -> None:
    assert recommended(["other:latest", DEMO_MODEL]) == DEMO_MODEL
    assert recommended(["newest:1b", "older:1b"]) == "newest:1b"
    assert " pull " in welcome(ADDRESS, model=recommended([]), key=None)
    assert " run " not in welcome(ADDRESS, model=recommended([]), key=None)
