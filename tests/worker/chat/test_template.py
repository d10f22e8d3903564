from __future__ import annotations

import pytest

from services.protocol.errors import BadRequest, InvalidModelFile
from services.protocol.prompts import ChatMessage, ChatPrompt, ToolCall
from tests.worker.chat.answers import TOOLS
from tests.worker.chat.templates import CHATML, HERMES, LLAMA3, MISTRAL, TEMPLATES, template_of

HELLO = ChatPrompt((ChatMessage("user", "hello <b>"),))

#: A call, its result, and the caller's next question.
ROUND = (
    ChatMessage("user", "Weather?"),
    ChatMessage("assistant", "", tool_calls=(ToolCall("call_abcdefgh", "get_weather", '{"city": "Paris"}'),)),
    ChatMessage("tool", "sunny", tool_call_id="call_abcdefgh"),
)


class RenderedTemplate:
    """A template and the text that it renders."""

    def __init__(self, source: str) -> None:
        self._template = template_of(source, bos_text="<s>", eos_text="</s>")
        self.format = self._template.format

    def render(self, prompt: ChatPrompt) -> str:
        return self._template.render(prompt).text


def template(source: str) -> RenderedTemplate:
    return RenderedTemplate(source)


def test_messages_special_tokens_and_the_generation_prompt() -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    assert template(source).render(HELLO) == "<s>[user] hello <b></s>>"


def test_tojson_does_not_escape_for_html() -> None:
    assert template("{{ messages[0].content | tojson }}").render(HELLO) == '"hello <b>"'


def test_generation_tags_are_ignored() -> None:
    assert template("{% generation %}{{ messages[0].content }}{% endgeneration %}").render(HELLO) == "hello <b>"


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(BadRequest, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}").render(HELLO)
    with pytest.raises(BadRequest, match="Only user and assistant roles are supported!"):
        template(MISTRAL).render(ChatPrompt((ChatMessage("system", "Be brief."),)))


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
def test_errors_in_rendering_are_the_callers(source: str) -> None:
    with pytest.raises(BadRequest):
        template(source).render(HELLO)


def test_a_template_that_does_not_parse_is_an_invalid_file() -> None:
    with pytest.raises(InvalidModelFile):
        template("{% for %}")


@pytest.mark.parametrize("family", TEMPLATES)
def test_every_template_renders_tools_and_calls(family: str) -> None:
    shown = template(TEMPLATES[family]).render(ChatPrompt(ROUND[:2], tools=TOOLS))
    assert shown.count("get_weather") == 2 or family == "mistral"  # which renders tools only at the last question
    assert "Paris" in shown
    assert "'city'" not in shown
    assert '\\"city' not in shown


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_template_determines_the_family(family: str) -> None:
    assert template(TEMPLATES[family]).format.family.name == family


def test_arguments_are_an_object_or_a_text_as_the_template_needs() -> None:
    assert '"arguments": {"city": "Paris"}}\n</tool_call>' in template(HERMES).render(ChatPrompt(ROUND))
    deepseek = template(TEMPLATES["deepseek-v3.1"]).render(ChatPrompt(ROUND))
    assert 'get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>' in deepseek
    assert '```json\n{"city": "Paris"}\n```' in template(TEMPLATES["deepseek-v3"]).render(ChatPrompt(ROUND))


def test_arguments_that_are_not_json_are_still_rendered() -> None:
    cut_off = ChatMessage("assistant", "", tool_calls=(ToolCall("x", "clock", '{"a": '),))
    assert '{"malformed": "{\\"a\\": "}' in template(HERMES).render(ChatPrompt((ROUND[0], cut_off)))


def test_ids_have_the_length_that_the_template_requires() -> None:
    shown = template(MISTRAL).render(ChatPrompt(ROUND))
    id = shown.partition('"id": "')[2][:9]
    assert id.isalnum()
    assert f'"call_id": "{id}"' in shown


def test_results_carry_the_name_of_their_call() -> None:
    assert "functions.get_weather to=assistant<|channel|>commentary<|message|>sunny" in template(TEMPLATES["harmony"]).render(
        ChatPrompt(ROUND)
    )
    unnamed = (*ROUND[:2], ChatMessage("tool", "sunny"))
    assert "functions.get_weather to=" in template(TEMPLATES["harmony"]).render(ChatPrompt(unnamed))
    by_name = (*ROUND[:2], ChatMessage("tool", "sunny", tool_name="get_weather"))
    assert '"call_id": ""' not in template(MISTRAL).render(ChatPrompt(by_name))


def test_results_are_folded_into_the_calls_if_the_template_expects_that() -> None:
    shown = template(TEMPLATES["gemma4"]).render(ChatPrompt(ROUND))
    assert '<tool_call|><|tool_response>response:get_weather{value:<|"|>sunny<|"|>}<tool_response|>' in shown
    assert "<|turn>tool" not in shown


def test_tools_go_into_the_system_message_if_the_template_has_none() -> None:
    chatml = template(CHATML)
    shown = chatml.render(ChatPrompt((ChatMessage("system", "Be brief."), *ROUND), tools=TOOLS))
    assert chatml.format.family.name == "generic"
    assert shown.startswith("<|im_start|>system\nBe brief.\n\n")
    assert shown.count("<|im_start|>system") == 1
    assert '"name": "get_weather", "description": "Tells the weather."' in shown
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
        in shown
    )
    assert "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>" in shown
    assert "get_weather" not in chatml.render(HELLO)


def test_tools_go_into_the_first_message_if_there_is_no_system_role() -> None:
    source = "{% for m in messages %}{{ raise_exception('No system.') if m.role not in ['user', 'assistant'] }}[{{ m.role }}]{{ m.content }}{% endfor %}"
    two = (*ROUND, ChatMessage("tool", "warm"))
    shown = template(source).render(ChatPrompt(two, tools=TOOLS))
    assert shown.startswith("[user]You can call functions.")
    assert shown.endswith("[user]<tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n</tool_response>")


def test_tools_use_the_templates_own_call_syntax() -> None:
    source = TEMPLATES["deepseek-v3.1"].replace("{% if tools %}{{ tools | tojson }}{% endif %}", "")
    source = source.replace("m.role == 'user'", "m.role in ['user', 'system']")
    shown = template(source).render(ChatPrompt(ROUND, tools=TOOLS))
    assert '<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{"ARGUMENT": "VALUE"}<｜tool▁call▁end｜>' in shown
    assert template(source).format.family.name == "deepseek-v3.1"


def test_a_template_that_requires_tools_gets_an_empty_list() -> None:
    assert template("{% for tool in tools %}{{ tool }}{% endfor %}{{ messages[0].content }}").render(HELLO) == "hello <b>"


def test_developer_becomes_system_if_the_template_does_not_know_it() -> None:
    prompt = ChatPrompt((ChatMessage("developer", "Be brief."),))
    assert template(CHATML).render(prompt).startswith("<|im_start|>system\nBe brief.")
    assert template(CHATML + "{# developer #}").render(prompt).startswith("<|im_start|>developer\nBe brief.")


def test_reasoning_is_passed_under_the_templates_name() -> None:
    thought = ChatMessage("assistant", "42", reasoning="hm")
    assert "<think>\nhm\n</think>\n\n42" in template(HERMES).render(ChatPrompt((thought,)))
    called = ChatMessage("assistant", "", reasoning="hm", tool_calls=ROUND[1].tool_calls)
    assert "analysis<|message|>hm<|end|>" in template(TEMPLATES["harmony"]).render(ChatPrompt((called,)))
    spoken = ChatMessage("assistant", "I look.", reasoning="hm", tool_calls=ROUND[1].tool_calls)
    assert "hm" not in template(TEMPLATES["harmony"]).render(ChatPrompt((spoken,)))


def test_thinking_effort_and_template_kwargs() -> None:
    assert template(HERMES).render(ChatPrompt(HELLO.messages, thinking=False)).endswith("<think>\n\n</think>\n\n")
    assert not template(HERMES).render(ChatPrompt(HELLO.messages, thinking=True)).endswith("</think>\n\n")
    assert "Reasoning: high" in template(TEMPLATES["harmony"]).render(ChatPrompt(HELLO.messages, reasoning_effort="high"))
    kwargs = ChatPrompt(HELLO.messages, template_kwargs={"enable_thinking": False, "messages": []})
    shown = template(HERMES).render(kwargs)
    assert "hello <b>" in shown
    assert shown.endswith("</think>\n\n")


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("hermes", "<|im_start|>assistant\nIt is "),
        ("llama3", "<|end_header_id|>\n\nIt is "),
        ("deepseek-v3.1", "<｜Assistant｜>It is "),
        ("harmony", "<|channel|>final<|message|>It is "),
        ("gemma4", "<|turn>model\nIt is "),
    ],
)
def test_an_answer_is_continued_at_its_end(family: str, end: str) -> None:
    prompt = ChatPrompt((*HELLO.messages, ChatMessage("assistant", "It is ")), continue_final=True)
    assert template(TEMPLATES[family]).render(prompt).endswith(end)


def test_reasoning_is_continued_at_its_end() -> None:
    prompt = ChatPrompt((*HELLO.messages, ChatMessage("assistant", "", reasoning="So, ")), continue_final=True)
    assert template(HERMES).render(prompt).endswith("<|im_start|>assistant\n<think>\nSo, ")
    with pytest.raises(BadRequest, match="cannot be continued"):
        template(LLAMA3).render(prompt)


@pytest.mark.parametrize("messages", [(), HELLO.messages, ROUND[:2]])
def test_only_an_assistants_text_can_be_continued(messages: tuple[ChatMessage, ...]) -> None:
    with pytest.raises(BadRequest, match="can be continued"):
        template(HERMES).render(ChatPrompt(messages, continue_final=True))
