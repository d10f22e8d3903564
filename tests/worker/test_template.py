from __future__ import annotations

import pytest

from services.protocol.errors import BadRequest, InvalidModelFile
from services.protocol.prompts import ChatMessage
from services.worker.chat.template import ChatTemplate

HELLO = [ChatMessage("user", "hello <b>")]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>")


def test_messages_special_tokens_and_the_generation_prompt() -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    assert template(source).render(HELLO) == "<s>[user] hello <b></s>>"


def test_tojson_does_not_escape_for_html() -> None:
    assert template("{{ messages[0].content | tojson }}").render(HELLO) == '"hello <b>"'


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(BadRequest, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}").render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ undefined_function() }}",
        "{{ 1 + messages[0].content }}",
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_what_the_sandbox_or_the_data_do_not_allow_is_the_callers_error(source: str) -> None:
    with pytest.raises(BadRequest):
        template(source).render(HELLO)


def test_a_template_that_does_not_parse() -> None:
    with pytest.raises(InvalidModelFile):
        template("{% for %}")
