"""Two prompts share exactly the prefixes within their common start."""

from __future__ import annotations

import os.path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.protocol.messages import EmbedRequest
from services.protocol.prefixes import GROWTH, MIN_PREFIX_BYTES, pack, prefixes
from services.protocol.prompts import ChatMessage, ChatPrompt, Tool
from tests.protocol.samples import a_request

# Long enough to have some prefixes, and from few pieces, so that many start alike.
texts = st.lists(st.sampled_from(["a" * 97, "b" * 97, "é" * 41]), max_size=40).map("".join)


def of_text(text: str) -> dict[int, bytes]:
    return {prefix.length: prefix.digest for prefix in prefixes(a_request(text=text))}


def of_chat(*contents: str, tools: tuple[Tool, ...] = ()) -> set[bytes]:
    roles = ("system", "user", "assistant", "user")
    messages = tuple(ChatMessage(role, content) for role, content in zip(roles, contents, strict=False))
    request = msgspec.structs.replace(a_request(), prompt=ChatPrompt(messages, tools=tools))
    return {prefix.digest for prefix in prefixes(request)}


@given(texts, texts)
def test_prompts_share_the_prefixes_within_their_common_start(one: str, other: str) -> None:
    common = len(os.path.commonprefix([one.encode(), other.encode()]))
    first, second = of_text(one), of_text(other)
    assert {length for length in first.keys() & second.keys() if first[length] == second[length]} == {
        length for length in first if length <= common
    }


@given(texts)
def test_the_longest_prefix_is_most_of_the_prompt(text: str) -> None:
    lengths = [0, *of_text(text)]
    assert lengths == sorted(lengths)
    assert len(text.encode()) < max(MIN_PREFIX_BYTES, GROWTH * (lengths[-1] + 1))


def test_a_continued_chat_keeps_its_prefixes() -> None:
    before = of_chat("You are a pirate. " * 50, "Hello!")
    assert before < of_chat("You are a pirate. " * 50, "Hello!", "Arr! " * 100, "What?")
    assert not before & of_chat("You are a parrot. " * 50, "Hello!")


@given(texts)
def test_isolation_domains_share_no_prefixes(text: str) -> None:
    def of_domain(domain: str) -> set[bytes]:
        request = msgspec.structs.replace(a_request(text=text), isolation=domain)
        return {prefix.digest for prefix in prefixes(request)}

    assert of_domain("") == set(of_text(text).values())
    assert not of_domain("red") & (of_domain("blue") | of_domain(""))


def test_roles_and_tools_change_the_prefixes() -> None:
    assert not of_chat("x" * 300, "") & of_chat("", "x" * 300)
    assert not of_chat("x" * 300) & of_chat("x" * 300, tools=(Tool("weather"),))


def test_context_tokens_are_part_of_the_prefixes() -> None:
    def of_context(*tokens: int) -> set[bytes]:
        request = msgspec.structs.replace(a_request(text=""), context=tokens)
        return {prefix.digest for prefix in prefixes(request)}

    assert of_context(*range(100)) < of_context(*range(200))
    assert not of_context(*range(100)) & of_context(*range(1, 101))


def test_an_embedding_request_has_no_prefixes() -> None:
    assert prefixes(EmbedRequest("id", "v", "g", "c", ("text " * 1000,))) == ()


def test_a_very_long_prompt_has_a_limited_number_of_prefixes() -> None:
    assert len(pack(prefixes(a_request(text="x" * 10**6)))) == 32 * 12
