"""Every constraint is compiled or refused in bounded time and memory."""

from __future__ import annotations

import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from services.protocol.errors import BadRequest
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from services.worker.engine.fake import FakeRunner
from services.worker.engine.grammar import GrammarCompiler
from services.worker.engine.grammar.compiler import MAX_GRAMMAR_BYTES, MAX_SCHEMA_BYTES
from tests.worker.engine.grammar.answers import allowed

#: The limit for one compilation on a slow, busy machine.
LONGEST_S = 30
MOST_BYTES = 1 << 30


def peak_bytes() -> int:
    """The peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def nested(depth: int, around: str = "items") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {around: found}
    return found


def chain(count: int) -> dict[str, Any]:
    definitions = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "null"}}}


def tagged(number: int) -> dict[str, Any]:
    properties = {"kind": {"const": f"k{number}"}, f"p{number}": {"type": "integer"}}
    return {"type": "object", "properties": properties, "required": ["kind"]}


def wide(count: int) -> dict[str, Any]:
    names = [f"p{number}" for number in range(count)]
    return {"type": "object", "properties": {name: {"const": 1} for name in names}, "required": names}


def gbnf_chain(body: str, last: str = '"a"') -> str:
    rules = ["root ::= r0"]
    while sum(map(len, rules)) + len(rules) < MAX_GRAMMAR_BYTES - 200:
        number = len(rules) - 1
        rules.append(f"r{number} ::= " + body.format(f"r{number + 1}"))
    return "\n".join([*rules, f"r{len(rules) - 1} ::= {last}"])


HOSTILE: dict[str, Constraint] = {
    "deep schema": JsonSchema(nested(400)),
    "deep list of schemas": JsonSchema({"enum": [json.loads("[" * 400 + "]" * 400)]}),
    "long chain of references": JsonSchema(chain(5000)),
    "many properties": JsonSchema({"properties": {f"property {number}": {"type": "string"} for number in range(4000)}}),
    "very many properties": JsonSchema({"properties": {str(number): {} for number in range(20_000)}}),
    "tagged union": JsonSchema({"oneOf": [tagged(number) for number in range(1_300)]}),
    "large tagged union": JsonSchema({"oneOf": [tagged(number) for number in range(2_500)]}),
    "union of many tags": JsonSchema({"oneOf": [{**tagged(n), "required": [f"p{n}"]} for n in range(1_000)]}),
    "many unions of large schemas": JsonSchema(
        {
            "$defs": {name: wide(1_500) for name in "ab"},
            "properties": {f"x{n}": {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]} for n in range(1_500)},
        }
    ),
    "many values": JsonSchema({"enum": [f"value {number}" for number in range(12_000)]}),
    "many choices": JsonSchema({"anyOf": [{"properties": {f"p{number}": {"type": "integer"}}} for number in range(3000)]}),
    "intersections": JsonSchema({"allOf": [{"anyOf": [{"minimum": n + 50 * m} for n in range(50)]} for m in range(10)]}),
    "long string": JsonSchema({"type": "string", "minLength": 10**9, "maxLength": 2 * 10**9}),
    "long array": JsonSchema({"type": "array", "minItems": 10**9}),
    "array of arrays": JsonSchema({"type": "array", "minItems": 5000, "items": {"type": "array", "minItems": 5000}}),
    "pattern of repetitions": JsonSchema({"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}),
    "pattern without a small automaton": JsonSchema({"type": "string", "pattern": "a.{200}b.{200}c"}),
    "huge numbers": JsonSchema({"type": "integer", "minimum": 10**18, "maximum": 10**18 + 10, "multipleOf": 999999}),
    "schema too large": JsonSchema({"enum": ["x" * MAX_SCHEMA_BYTES]}),
    "regex of repetitions": Regex("((a{1,1000}){1,1000}){1,1000}"),
    "regex of optional characters": Regex("(a?){5000}a{5000}"),
    "deep regex": Regex("(" * 10_000 + "a" + ")" * 10_000),
    "regex too long": Regex("a" * (MAX_GRAMMAR_BYTES + 1)),
    "chain of rules": Gbnf(gbnf_chain("{}")),
    "doubling rules": Gbnf(gbnf_chain("{0} {0}")),
    "chain of stars": Gbnf(gbnf_chain('((({} "x")* "y")* "z" | "y")*')),
    "ambiguous rules": Gbnf('root ::= (a | b | "")* root | a\na ::= root b root | "x"\nb ::= (a root)* | "x"'),
    "deep repetitions": Gbnf('root ::= ((("a" root?){1,1000}){1,1000}){1,1000}'),
    "deep groups": Gbnf("root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
    "many words": Gbnf("root ::= (" + " | ".join(f'"word{number}"' for number in range(2000)) + ' | "(" root ")")+'),
    "deep Lark": Lark("start: " + "(" * 10_000 + '"a"' + ")" * 10_000),
    "chain of terminals": Lark("start: T0\n" + "".join(f"T{n}: T{n + 1}\n" for n in range(2500)) + 'T2500: "a"\n'),
    "no Lark at all": Lark("\x00\x01{}%json"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_are_bounded(name: str) -> None:
    grammars = GrammarCompiler(FakeRunner())
    grammars.compile(JsonObject())
    started_at, held = time.monotonic(), peak_bytes()
    try:
        matcher = grammars.compile(HOSTILE[name]).matcher()
        for _ in range(20):
            mask = matcher.mask()
            if matcher.is_finished or mask is None:
                break
            matcher.accept(int(mask.nonzero()[0][0]))
    except BadRequest:
        pass
    assert time.monotonic() - started_at < LONGEST_S
    assert peak_bytes() - held < MOST_BYTES


def test_threads_may_compile_at_the_same_time() -> None:
    grammars = GrammarCompiler(FakeRunner())
    constraints: list[Constraint] = [Regex(f"[ab]{{{number % 5 + 1}}}") for number in range(64)]
    with ThreadPoolExecutor(16) as threads:
        compiled = list(threads.map(grammars.compile, constraints))
    for grammar in compiled:
        assert set(allowed(grammar.matcher()).nonzero()[0].tolist()) == set(b"ab")
    assert len(set(map(id, compiled))) == 5


def test_only_recently_used_grammars_are_kept(byte_grammars: GrammarCompiler) -> None:
    first = byte_grammars.compile(Regex("first"))
    assert byte_grammars.compile(Regex("first")) is first
    for number in range(100):
        byte_grammars.compile(Regex(f"other {number}"))
    assert byte_grammars.compile(Regex("first")) is not first


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Regex("a("), "the regular expression cannot be compiled: unclosed group"),
        (Regex("a(?=b)"), "the regular expression cannot be compiled: look-around"),
        (Lark('start: "a" b\n'), 'the Lark grammar cannot be compiled at line 1, column 8: unknown name: "b"'),
        (
            Lark('start: "a" x\n\nx: %json {"type": "strin"}\n'),
            "the JSON schema cannot be compiled at #/type: Invalid type",
        ),
        (Lark("start: x\nx: /a(/\n"), "the Lark grammar cannot be compiled at line 2, column 4: unclosed group"),
        (Lark('start: "a\n'), "the Lark grammar cannot be compiled at line 1, column 10: lexer error"),
        (Lark('begin: "a"\n'), "the Lark grammar cannot be compiled: no start rule found"),
        (Lark('start: A\nA: "a" & "b"\n'), "the Lark grammar cannot be compiled: nothing matches"),
    ],
)
def test_refusals_give_the_place_and_the_reason(byte_grammars: GrammarCompiler, constraint: Constraint, message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        byte_grammars.compile(constraint)
    assert refused.value.message.startswith(message)
    assert "\n" not in refused.value.message


def test_schemas_in_a_grammar_may_be_larger_than_a_grammar(byte_grammars: GrammarCompiler) -> None:
    schema = json.dumps({"enum": [f"value number {number}" for number in range(5000)]})
    assert len(schema) > 2 * MAX_GRAMMAR_BYTES
    byte_grammars.compile(Lark(f'start: "<answer>" json\njson: %json {schema}\n'))
    with pytest.raises(BadRequest, match="the Lark grammar is larger than"):
        byte_grammars.compile(Lark("# " + schema + '\nstart: "a"'))


def test_anchors_of_a_regex_are_ignored(byte_grammars: GrammarCompiler) -> None:
    for pattern in ("^ab$", "ab", "^ab", "ab$"):
        mask = allowed(byte_grammars.compile(Regex(pattern)).matcher())
        assert mask.nonzero()[0].tolist() == [ord("a")]
    literal = byte_grammars.compile(Regex(r"\$")).matcher()
    assert allowed(literal).nonzero()[0].tolist() == [ord("$")]
