"""Transcripts of every family, split at every position."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.protocol.prompts import Tool
from services.worker.chat.families import FAMILIES
from services.worker.chat.family import Family
from services.worker.chat.parser import Parser, Release
from tests.worker.chat.answers import Answer, family_parser, read, read_in_all_cuts

PARIS = '{"city": "Paris"}'

#: family, model output, content, calls
TRANSCRIPTS: list[tuple[str, str, str, list[list[str]]]] = [
    ("hermes", "No call at all.\n", "No call at all.\n", []),
    ("hermes", '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', "", [["clock", "{}"]]),
    (
        "hermes",
        'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>\n',
        "Let me see.",
        [["get_weather", PARIS], ["clock", "{}"]],
    ),
    # A tag inside a string belongs to the arguments, and brackets inside a string do not count.
    (
        "hermes",
        '<tool_call>{"name": "clock", "arguments": {"say": "</tool_call> }]\\" {"}}</tool_call>',
        "",
        [["clock", '{"say": "</tool_call> }]\\" {"}']],
    ),
    # Arguments before the name, arguments as a JSON string, and no arguments.
    ("hermes", '<tool_call>{"arguments": {"a": [1]}, "name": "clock"}</tool_call>', "", [["clock", '{"a": [1]}']]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [["clock", '{"a": 1}']]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": null, "x": 1}</tool_call>', "", [["clock", "{}"]]),
    ("hermes", '<tool_call>{"name": "clock"}</tool_call>', "", [["clock", "{}"]]),
    # The end of the text closes a call: its tag may be an end token, or the model forgot it.
    ("hermes", '<tool_call>\n{"name": "clock", "arguments": {"a": 1}}\n', "", [["clock", '{"a": 1}']]),
    (
        "hermes",
        '<tool_call>{"name": "clock", "arguments": {}}<tool_call>{"name": "clock"}',
        "",
        [["clock", "{}"], ["clock", "{}"]],
    ),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {}} and so on', "and so on", [["clock", "{}"]]),
    # Truncated.
    ("hermes", 'a <tool_call>{"name": "clock", "argum', 'a {"name": "clock", "argum', []),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {"a": "b', "", [["clock", '{"a": "b']]),
    ("hermes", "text <tool", "text <tool", []),
    # Malformed.
    ("hermes", "<tool_call>clock()</tool_call> done", "clock() done", []),
    ("hermes", '<tool_call>{"title": "clock"}</tool_call>', '{"title": "clock"}', []),
    ("hermes", '<tool_call>{"name": 7}</tool_call>', '{"name": 7}', []),
    ("hermes", "<tool_call>{name: clock}</tool_call>!", "{name: clock}!", []),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {"a": [1}}</tool_call>!', "!", [["clock", '{"a": [1}}']]),
    (
        "qwen-coder",
        "Sure.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>\n",
        "Sure.",
        [["get_weather", '{"city": "Paris", "days": 3}']],
    ),
    (
        "qwen-coder",
        "<tool_call>\n<function=clock>\n</function>\n</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
        "",
        [["clock", "{}"], ["clock", "{}"]],
    ),
    # A text keeps its line breaks, quotes and tags; parameters that the schema does not define are parsed as JSON if possible.
    (
        "qwen-coder",
        '<tool_call>\n<function=get_weather>\n<parameter=city>\n\n  "a" < b\n\n</parameter>\n<parameter=other>\n{"a": [true]}\n</parameter>\n'
        "<parameter=flag>\nTrue\n</parameter>\n<parameter=word>\nhello there\n</parameter>\n</function>\n</tool_call>",
        "",
        [["get_weather", '{"city": "\\n  \\"a\\" < b\\n", "other": {"a": [true]}, "flag": true, "word": "hello there"}']],
    ),
    # Without the outer tag, which models sometimes omit.
    ("qwen-coder", "<function=get_weather><parameter=city>Paris</parameter></function>", "", [["get_weather", PARIS]]),
    (
        "qwen-coder",
        '<tool_call><function=clock><parameter=a>{"b": "</parameter>"}</parameter><parameter=c>\n{"d": "\n</parameter></function>',
        "",
        [["clock", '{"a": {"b": "</parameter>"}, "c": "{\\"d\\": \\""}']],
    ),
    ("qwen-coder", '<tool_call>{"name": "clock", "arguments": {}}</tool_call>', "", [["clock", "{}"]]),
    ("qwen-coder", "<tool_call><function=get_weather><parameter=city>\nPar", "", [["get_weather", '{"city": "Par']]),
    ("qwen-coder", "<tool_call><function=get_weather><parameter=city>\nParis\n</parameter>\n", "", [["get_weather", PARIS]]),
    ("qwen-coder", "<tool_call>\nnothing</tool_call> at all", "nothing at all", []),
    ("llama3", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [["get_weather", PARIS]]),
    ("llama3", '\n<|python_tag|>{"type": "function", "name": "clock", "parameters": {}}', "", [["clock", "{}"]]),
    (
        "llama3",
        '{"name": "clock", "parameters": {}}; {"name": "clock", "arguments": {"a": 1}}',
        "",
        [["clock", "{}"], ["clock", '{"a": 1}']],
    ),
    ("llama3", "Hello {name}!", "Hello {name}!", []),
    # JSON is a call only if it names an offered tool.
    ("llama3", ' {"name": "Ada", "parameters": {}}\n', ' {"name": "Ada", "parameters": {}}\n', []),
    ("llama3", '{"answer": [42]}', '{"answer": [42]}', []),
    ("llama3", "{ no json", "{ no json", []),
    ("llama3", '<|python_tag|>brave_search.call(query="x")', 'brave_search.call(query="x")', []),
    ("llama3", '{"name": "clock", "parameters": {"a": (', "", [["clock", '{"a": (']]),
    ("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]', "", [["get_weather", PARIS]]),
    (
        "mistral",
        'Well. [TOOL_CALLS][{"name": "clock", "arguments": {}, "id": "abcdefghi"}, {"arguments": {}, "name": "clock"}]',
        "Well.",
        [["clock", "{}"], ["clock", "{}"]],
    ),
    ("mistral", '[TOOL_CALLS][{"name": "clock", "arguments": {"a": 1', "", [["clock", '{"a": 1']]),
    ("mistral", "[TOOL_CALLS][{oops}]", "{oops}]", []),
    ("mistral-args", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "", [["get_weather", PARIS]]),
    (
        "mistral-args",
        'So: [TOOL_CALLS]clock[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]get_weather{"city": "Paris"}',
        "So:",
        [["clock", "{}"], ["get_weather", PARIS]],
    ),
    ("mistral-args", "[TOOL_CALLS]clock[ARGS]", "", [["clock", "{}"]]),
    ("mistral-args", "[TOOL_CALLS]clo", "clo", []),
    ("mistral-args", "[TOOL_CALLS] I would [ARGS]{}", "I would{}", []),
    (
        "deepseek-v3",
        "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "```\\n"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        "Hm.",
        [["get_weather", '{"city": "```\\n"}'], ["clock", "{}"]],
    ),
    (
        "deepseek-v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```",
        "",
        [["clock", "{}"]],
    ),
    (
        "deepseek-v3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        + PARIS
        + "<｜tool▁call▁end｜><｜tool▁call▁begin｜>clock"
        "<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [["get_weather", PARIS], ["clock", "{}"]],
    ),
    ("deepseek-v3.1", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>hello", "hello", []),
    ("harmony", "<|channel|>final<|message|>Hello\n\nthere.<|return|>", "Hello\n\nthere.", []),
    ("harmony", "Hello without any channel", "Hello without any channel", []),
    (
        "harmony",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + PARIS + "<|call|>",
        "",
        [["get_weather", PARIS]],
    ),
    (
        "harmony",
        "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant to=functions.clock<|channel|>commentary json<|message|>",
        "I look it up.",
        [["clock", "{}"]],
    ),
    (
        "harmony",
        "<|channel|>commentary<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>Two.",
        "One.\n\nTwo.",
        [],
    ),
    (
        "function-gemma",
        "<start_function_call>call:get_weather{city:<escape>Paris, {France}<escape>,days:3}<end_function_call>",
        "",
        [["get_weather", '{"city": "Paris, {France}", "days": 3}']],
    ),
    (
        "function-gemma",
        "<start_function_call>call:clock{}<end_function_call><start_function_call>call:clock{a:[1,true,null,<escape>x<escape>],b:{c:-1.5}}"
        "<end_function_call><start_function_response>response:clock{value:1}",
        "",
        [["clock", "{}"], ["clock", '{"a": [1, true, null, "x"], "b": {"c": -1.5}}']],
    ),
    ("gemma4", 'Ok.\n<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>', "Ok.", [["get_weather", PARIS]]),
    ("gemma4", '<|tool_call>call:clock{a:{<|"|>b<|"|>:word}}<tool_call|>', "", [["clock", '{"a": {"b": "word"}}']]),
    ("gemma4", "<|tool_call>call:clock{a:}<tool_call|>!", "call:clock{a:}!", []),
    ("gemma4", "<|tool_call>clock()", "clock()", []),
    ("generic", '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', "", [["clock", "{}"]]),
    ("generic", 'Wait.\n<tool_call>{"name": "clock", "arguments": {"a": 1}}', "Wait.", [["clock", '{"a": 1}']]),
    # Without tags, in a code fence, and several calls.
    ("generic", '\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n', "", [["get_weather", PARIS]]),
    ("generic", '```json\n{"name": "clock", "arguments": {}}\n```\nThere.', "There.", [["clock", "{}"]]),
    ("generic", '```\n{"name": "clock"}\n```', "", [["clock", "{}"]]),
    (
        "generic",
        '{"name": "clock"}\n{"name": "get_weather", "arguments": {"city": "Paris"}}',
        "",
        [["clock", "{}"], ["get_weather", PARIS]],
    ),
    # Not calls: another kind of object, a tool that was not offered, a call inside a string.
    ("generic", '{"name": "Ada", "arguments": {}}', '{"name": "Ada", "arguments": {}}', []),
    ("generic", '<tool_call>{"name": "ada"}</tool_call>', '{"name": "ada"}', []),
    ("generic", '```json\n{"a": [1]}\n```\n', '```json\n{"a": [1]}\n```\n', []),
    ("generic", 'So: {"name": "clock", "arguments": {}}', 'So: {"name": "clock", "arguments": {}}', []),
    ("generic", "```python\nprint()\n```", "```python\nprint()\n```", []),
    ("generic", " ``", " ``", []),
    ("generic", '{"name": "clock", "arg', '{"name": "clock", "arg', []),
    ("generic", '{"name": "clock", "arguments": {"a": [1}} x', "", [["clock", '{"a": [1}} x']]),
]

ARGUMENT = {"type": "object", "properties": {"ARGUMENT": {"type": "string"}}}


@pytest.mark.parametrize(("family", "text", "content", "calls"), TRANSCRIPTS)
def test_a_transcript_is_read_the_same_however_it_is_split(
    family: str, text: str, content: str, calls: list[list[str]]
) -> None:
    assert read_in_all_cuts(family_parser(family), text) == Answer(content, "", calls)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_example_of_each_family_is_a_call(family: Family) -> None:
    def make() -> Parser:
        return family.parser(Release(lambda index: f"id{index}"), (Tool("NAME", parameters=ARGUMENT),), "")

    assert read_in_all_cuts(make, family.example) == Answer("", "", [["NAME", '{"ARGUMENT": "VALUE"}']])


def test_harmonys_analysis_is_reasoning() -> None:
    text = (
        "<|channel|>analysis<|message|>First.<|end|><|start|>assistant<|channel|>analysis<|message|>Second. <|end|>"
        "<|start|>assistant<|channel|>final<|message|>Done."
    )
    assert read_in_all_cuts(family_parser("harmony"), text) == Answer("Done.", "First.\n\nSecond.", [])


def test_harmony_continues_after_the_end_of_the_prompt() -> None:
    prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
    assert read_in_all_cuts(family_parser("harmony", prompt=prompt), "<|channel|>final<|message|>Hi") == Answer("Hi")
    prompt += "<|channel|>final<|message|>Hello, "
    assert read_in_all_cuts(family_parser("harmony", prompt=prompt), "you <") == Answer("you <")


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
@given(data=st.data())
def test_any_output_is_read_and_splits_make_no_difference(family: str, data: st.DataObject) -> None:
    own = next(each for each in FAMILIES if each.name == family).markers
    bits = [
        *own,
        *(
            "<function=",
            "<parameter=",
            "</parameter>",
            "</function>",
            ">",
            "call:",
            "assistant",
            " to=functions.clock",
            "final",
        ),
        *(
            "function",
            "\n```json\n",
            "\n```",
            '{"name": "clock"',
            ', "arguments": ',
            '{"a": ',
            '"b"',
            "[1]",
            "}",
            "]",
            ",",
            ":",
            "{",
            "[",
        ),
        *(" ", "\n", "\\", '"', "x", "é", "<", ";"),
    ]
    pieces = data.draw(st.lists(st.sampled_from(bits), max_size=14))
    text = "".join(pieces)
    expected = read(family_parser(family), [text])
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    cut = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert read(family_parser(family), cut) == expected
    assert read(family_parser(family), text) == expected


def test_every_family_is_documented() -> None:
    rows = [line.split("|")[1].strip(" `") for line in Path("docs/chat.md").read_text().splitlines() if line.startswith("| `")]
    assert rows == [family.name for family in FAMILIES]
