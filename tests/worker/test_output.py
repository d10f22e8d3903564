from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.protocol.prompts import Tool
from services.worker.chat.families.hermes import HERMES
from services.worker.chat.parser import Release
from services.worker.engine.aho_corasick import AhoCorasick
from services.worker.output import Delta, OutputPipeline


def pipe(pieces: list[bytes], stop: list[str]) -> tuple[list[str], bool]:
    """The deltas of a text that arrives in `pieces`, up to its end or a stop string."""
    pipeline = OutputPipeline(pieces.__getitem__, AhoCorasick(stop))
    deltas = []
    for token in range(len(pieces)):
        delta = pipeline.push(token)
        deltas.append(delta.text)
        if delta.stopped:
            return deltas, True
    return [*deltas, pipeline.flush().text], False


def test_a_character_of_several_tokens_appears_when_it_is_complete() -> None:
    deltas, _ = pipe([b"a\xf0\x9f", b"\x8c", b"\xb3b"], [])
    assert deltas == ["a", "", "🌳b", ""]


def test_an_incomplete_character_at_the_end_is_dropped() -> None:
    assert pipe([b"a", b"\xe2\x82"], []) == (["a", "", ""], False)


def test_invalid_bytes_become_the_replacement_character() -> None:
    assert pipe([b"a\xffb"], [])[0] == ["a\ufffdb", ""]


def test_a_stop_string_over_several_tokens_is_held_back_and_never_shown() -> None:
    assert pipe([b"one EN", b"D", b" two"], ["END"]) == (["one ", ""], True)


def test_a_text_that_only_starts_like_a_stop_string_is_released() -> None:
    assert pipe([b"one EN", b"OUGH"], ["END"]) == (["one ", "ENOUGH", ""], False)


def test_held_text_is_released_at_the_end() -> None:
    assert pipe([b"one EN"], ["END"]) == (["one ", "EN"], False)


def test_the_earliest_stop_string_counts_and_empty_ones_are_ignored() -> None:
    assert pipe([b"a, b; c"], [";", "", ","]) == (["a"], True)


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    text = draw(st.text(st.sampled_from("abé🌳\n"), max_size=30))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(data)))) | {0, len(data)})
    return text, [data[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


@given(cut_texts(), st.lists(st.text(st.sampled_from("abé🌳"), min_size=1, max_size=4), max_size=3))
def test_any_split_gives_the_text_up_to_the_first_stop_string(cut: tuple[str, list[bytes]], stop: list[str]) -> None:
    text, pieces = cut
    # Of two stop strings that complete in the same piece, the one that starts earlier counts. One that completes in an earlier
    # piece counts before one that starts earlier and completes later.
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    deltas, stopped = pipe(pieces, stop)
    assert stopped == bool(ends)
    if not ends:
        assert "".join(deltas) == text
    else:
        shown = "".join(deltas)
        assert text.startswith(shown)
        assert len(shown) in [begin for _, begin in ends]
        assert not any(s in shown for s in stop)


def hermes(pieces: list[bytes], stop: list[str]) -> OutputPipeline:
    parser = HERMES.parser(Release(lambda index: f"id{index}"), (Tool("f"),), "")
    return OutputPipeline(pieces.__getitem__, AhoCorasick(stop), parser)


def test_a_call_closed_by_the_end_of_the_text_is_released_by_the_flush() -> None:
    pipeline = hermes([b'<tool_call>{"name": "f"', b', "arguments"', b": {}}"], [])
    assert [pipeline.push(0), pipeline.push(1)] == [Delta("")] * 2
    assert not pipeline.saw_tool_calls
    calls = pipeline.push(2).tool_calls
    assert [(call.index, call.id, call.name, call.arguments) for call in calls] == [(0, "id0", "f", "{}")]
    assert pipeline.saw_tool_calls
    assert pipeline.flush() == Delta("")


def test_held_text_is_released_by_a_stop_string() -> None:
    pipeline = hermes([b"abc <tool", b"STOP", b"more"], ["STOP"])
    assert [pipeline.push(0), pipeline.push(1)] == [Delta("abc"), Delta(" <tool", stopped=True)]


def test_replaying_the_same_tokens_gives_the_same_deltas() -> None:
    pieces = [
        b"a\xf0\x9f",
        b"\x8c\xb3 ",
        b"<tool_call>",
        b'{"name": "f", "arguments": {"a"',
        b": 1}}",
        b"</tool_call>",
        b" E",
        b"N",
    ]
    first, second = hermes(pieces, ["END"]), hermes(pieces, ["END"])
    tokens = range(len(pieces))
    assert [first.push(token) for token in tokens] == [second.push(token) for token in tokens]
    assert first.flush() == second.flush() == Delta("EN")
