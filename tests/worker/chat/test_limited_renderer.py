from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest

from services.protocol.errors import BadRequest, CorralError, InvalidModelFile
from services.protocol.prompts import ChatMessage, ChatPrompt
from services.worker.chat.limited_renderer import LimitedRenderer
from services.worker.chat.rendering import Rendering, TemplateSetup
from tests.worker.chat.templates import CHATML, TEMPLATES, template_of

HELLO = ChatPrompt((ChatMessage("user", "hello <b>"),))


@contextmanager
def renderer(source: str) -> Iterator[LimitedRenderer]:
    """The source runs for the chat HELLO, but not for the chats that try out a new template."""
    limited = LimitedRenderer(TemplateSetup("{% if messages[0].content == 'hello <b>' %}" + source + "{% endif %}"))
    try:
        yield limited
    finally:
        limited.close()


@pytest.mark.parametrize("family", ["hermes", "harmony"])
def test_renders_the_same_as_a_renderer_in_this_process(family: str) -> None:
    limited = LimitedRenderer(TemplateSetup(TEMPLATES[family]))
    own = template_of(TEMPLATES[family])
    assert limited.render(Rendering(HELLO, "")) == own.render(HELLO)
    limited.close()


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ '%*d' % (1500000000, 1) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 1000000000) }}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
        "{{ range(99999) | join('b' * 9999) }}",
        "{{ ('a' * 9999) | replace('a', 'b' * 99999) }}",
        "{{ ('a' * 20000000) }}",
    ],
)
def test_a_template_that_takes_too_much_memory_is_stopped(source: str) -> None:
    with renderer(source) as limited:
        with pytest.raises(BadRequest, match="memory|characters"):
            limited.render(Rendering(HELLO, ""))
        with pytest.raises(BadRequest, match="memory|characters"):
            limited.render(Rendering(HELLO, ""))


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) if range(99999) | list | sort | first %}{% endfor %}",
        "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}"
        "{% endfor %}{{ n.x == n.y }}",
        "{{ (messages | length + 9) ** (10 ** 9) }}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(source: str) -> None:
    with renderer(source) as limited, pytest.raises(BadRequest, match="too long|memory"):
        limited.render(Rendering(HELLO, ""))


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{% for a in [] %}" * 25 + "{% endfor %}" * 25,
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "[" * 3000 + "]" * 3000 + " }}",
        "{{ lipsum() }}{{ 'a' | wordwrap }}",
        "{{ 'a' | urlize }}",
        "{{ 'a' | pprint }}",
        "{{ 'a' | xmlattr }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_an_invalid_chat_template_makes_the_model_file_invalid(source: str) -> None:
    with pytest.raises(InvalidModelFile, match="chat template"):
        LimitedRenderer(TemplateSetup(source))


@pytest.mark.parametrize("source", ["{{ lipsum() }}", "{{ 'a'.expandtabs(9) }}", "{{ 'a'.translate({}) }}"])
def test_a_template_has_no_access_to_python(source: str) -> None:
    with renderer(source) as limited, pytest.raises(BadRequest, match="undefined|unsafe"):
        limited.render(Rendering(HELLO, ""))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"{{ '\ud83d' }}", "�"),
        (r"{{ '\ud83d\ude00' | length }}", "2"),
    ],
)
def test_a_rendered_prompt_is_valid_unicode(source: str, text: str) -> None:
    with renderer(source) as limited:
        assert limited.render(Rendering(HELLO, "")).text == text


def test_a_refusal_is_valid_unicode_and_short() -> None:
    with renderer(r"{{ raise_exception('\ud83d' * 99999) }}") as limited:
        with pytest.raises(BadRequest, match="refuses these messages: �") as refused:
            limited.render(Rendering(HELLO, ""))
        assert len(refused.value.message) < 1100


def test_a_chat_whose_process_is_killed_is_not_refused() -> None:
    with renderer("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}") as limited:
        with ThreadPoolExecutor(1) as thread:
            rendering = thread.submit(limited.render, Rendering(HELLO, ""))
            while not rendering.done():
                for child in psutil.Process().children():
                    with contextlib.suppress(psutil.Error):
                        if "services.worker.chat.renderer" in child.cmdline():
                            child.kill()
                time.sleep(0.01)
        with pytest.raises(CorralError, match="chat template was killed$") as killed:
            rendering.result()
        assert not isinstance(killed.value, BadRequest)


def test_a_chat_that_costs_too_much_does_not_affect_others() -> None:
    limited = LimitedRenderer(TemplateSetup(CHATML.replace("{{ m.content }}", "{{ m.content * (m.content | int or 1) }}")))
    with pytest.raises(BadRequest, match="int|memory|multiply|str"):
        limited.render(Rendering(ChatPrompt((ChatMessage("user", "9" * 10),)), ""))
    assert "hello" in limited.render(Rendering(HELLO, "")).text
    limited.close()
