"""Compiles constraints to grammars for one model.

llguidance's compiler is recursive, so a long chain of rules or references overflows an ordinary stack and ends the process. All
compiling happens on one thread, whose stack suffices for the longest constraint that is accepted. Only that thread changes the
cache and builds the token table, so neither has a lock.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import msgspec
from llguidance import LLMatcher, LLParserLimits, regex_to_lark

from services.protocol.errors import BadRequest
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from services.worker.engine.gbnf import lark, lexing, parser
from services.worker.engine.gbnf.left_recursion import without_tail_calls
from services.worker.engine.grammar.embedded import embedded_schemas
from services.worker.engine.grammar.gate import Marker
from services.worker.engine.grammar.matcher import Matcher, exceeds_limits
from services.worker.engine.grammar.vocabulary import TokenTable, Vocabulary
from services.worker.engine.schema import json_schema, pointer
from services.worker.engine.schema.fault import smallest_failing

#: The largest schema, in bytes of JSON, and the largest other constraint, without the schemas in it.
MAX_SCHEMA_BYTES = 256 * 1024
MAX_GRAMMAR_BYTES = 32 * 1024

#: Measured: compiling needs at most 600 bytes of stack per byte of text. Memory that is never touched costs nothing.
_STACK_BYTES = 256 * 1024 * 1024

#: The time limit for compiling one grammar, including its first mask. Nothing can interrupt it, so the limit is checked
#: afterwards.
_COMPILE_TIMEOUT_S = 3.0

_CACHED_GRAMMARS = 32

#: In characters. llguidance may quote a whole expression.
_MAX_REASON_CHARACTERS = 300

#: llguidance's defaults, except for fewer lexer states (each takes 1 to 2 kB, so the default of 250,000 is half a gigabyte for
#: one answer), and more Earley items per mask and per row, because grammars without long terminals need many (20,000 take a
#: millisecond).
_LIMITS = LLParserLimits(max_lexer_states=25_000, max_items_in_row=10_000, step_max_items=3_000_000, verbose_errors=False)

#: If only one text can follow, the model still chooses among the tokens that spell it, as in llama.cpp.
_OPTIONS = '%llguidance {"no_forcing": true}'

#: At most one of these at each place, so that no model can write white space forever.
_JSON_WHITESPACE = r"[ ]{1,2}|\n[ ]{0,40}|\n\t{0,20}"


class Grammar:
    """A compiled constraint. Immutable and thread-safe."""

    def __init__(self, prototype: LLMatcher, table: TokenTable) -> None:
        self._prototype = prototype
        self._table = table

    def matcher(self, after: bytes | None = None) -> Matcher:
        """A matcher at the start of an answer. With `after`, everything is allowed until the output has contained these bytes.
        A control token counts as its text."""
        return Matcher(self._prototype.deep_copy(), self._table, Marker.of(self._table, after) if after else None)


class GrammarCompiler:
    """`compile` is thread-safe. It waits for the compiler's own thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._table: TokenTable | None = None
        self._grammars: OrderedDict[bytes, Grammar] = OrderedDict()
        self._thread = _deep_thread()

    def knows(self, constraint: Constraint) -> bool:
        """Whether the constraint is cached, so that `compile` takes no time."""
        return msgspec.msgpack.encode(constraint) in self._grammars

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises BadRequest if the constraint cannot be compiled; the message names the place if it is known. The first call
        builds the token table."""
        return self._thread.submit(self._compile, constraint).result()

    def _compile(self, constraint: Constraint) -> Grammar:
        key = msgspec.msgpack.encode(constraint)
        grammar = self._grammars.get(key)
        if grammar is None:
            grammar = self._grammars[key] = self._fresh(constraint)
            if len(self._grammars) > _CACHED_GRAMMARS:
                self._grammars.popitem(last=False)
        self._grammars.move_to_end(key)
        return grammar

    def _tokens(self) -> TokenTable:
        if self._table is None:
            self._table = TokenTable(self._vocabulary)
        return self._table

    def _fresh(self, constraint: Constraint) -> Grammar:
        match constraint:
            case JsonObject():
                return self._schema({"type": "object"})
            case JsonSchema(schema):
                return self._schema(schema)
            case Gbnf(text):
                return self._gbnf(text)
            case Lark(text):
                return self._lark(text)
            case Regex(pattern):
                return self._regex(pattern)

    def _schema(self, schema: dict[str, Any] | bool) -> Grammar:
        try:
            _check_size(json.dumps(schema), MAX_SCHEMA_BYTES, "JSON schema")
            normalized = json_schema.normalized(schema)
            text = _json(normalized)
        except RecursionError as depth:
            raise pointer.refusal(pointer.Pointer(), "it is nested too deeply") from depth
        _check_size(text, MAX_SCHEMA_BYTES, "JSON schema")
        prototype = self._compiled(text)
        if error := _problem(prototype):
            self._refuse_schema(normalized, _reason(error))
        return Grammar(prototype, self._tokens())

    def _refuse_schema(self, schema: dict[str, Any], reason: str) -> NoReturn:
        raise pointer.refusal(*smallest_failing(schema, reason, self._failing))

    def _failing(self, schema: Any) -> str | None:
        is_error, messages = LLMatcher.validate_grammar_with_warnings(_json(schema), limits=_LIMITS)
        return _reason(messages[0]) if is_error else None

    def _gbnf(self, text: str) -> Grammar:
        _check_size(text, MAX_GRAMMAR_BYTES, "GBNF grammar")
        rules = without_tail_calls(parser.parse(text))
        for translated in (lexing.lexed, lexing.by_character):
            prototype = self._compiled(f"{lark.written(translated(rules), rules)}{_OPTIONS}\n")
            error = _problem(prototype)
            if not error:
                return Grammar(prototype, self._tokens())
        raise BadRequest(f"the GBNF grammar cannot be compiled: {_reason(error)}")

    def _lark(self, text: str) -> Grammar:
        schemas = list(embedded_schemas(text))
        _check_size(text, MAX_GRAMMAR_BYTES + sum(len(json.dumps(schema)) for schema in schemas), "Lark grammar")
        _check_size(text, MAX_SCHEMA_BYTES, "Lark grammar")
        # The options come last, so that the line in an error is the caller's.
        prototype = self._compiled(f"{text}\n{_OPTIONS}\n")
        if error := _problem(prototype):
            for schema in schemas:
                if isinstance(schema, dict) and (reason := self._failing(schema)):
                    self._refuse_schema(schema, reason)
            raise BadRequest(f"the Lark grammar cannot be compiled{_place(error)}: {_reason(error)}")
        return Grammar(prototype, self._tokens())

    def _regex(self, pattern: str) -> Grammar:
        _check_size(pattern, MAX_GRAMMAR_BYTES, "regular expression")
        prototype = self._compiled(f"{_OPTIONS}\nstart: /{regex_to_lark(_without_anchors(pattern))}/\n")
        if error := _problem(prototype):
            raise BadRequest(f"the regular expression cannot be compiled: {_reason(error)}")
        return Grammar(prototype, self._tokens())

    def _compiled(self, text: str) -> LLMatcher:
        table = self._tokens()
        deadline = time.monotonic() + _COMPILE_TIMEOUT_S
        prototype = LLMatcher(table.tokenizer, text, log_level=0, limits=_LIMITS)
        if not prototype.is_error() and time.monotonic() < deadline:
            prototype.compute_bitmask()  # shows whether anything matches, and warms the lexer for every matcher
        if time.monotonic() > deadline:
            raise BadRequest("the grammar is too complex: it takes too long to compile")
        return prototype


def _deep_thread() -> ThreadPoolExecutor:
    """An executor with one thread that has a large stack. Python applies a process-wide stack size when a thread starts."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
    usual = threading.stack_size(_STACK_BYTES)
    try:
        executor.submit(int).result()
    finally:
        threading.stack_size(usual)
    return executor


def _check_size(text: str, most: int, what: str) -> None:
    if len(text.encode()) > most:
        raise BadRequest(f"the {what} is larger than {most // 1024} KiB")


def _json(schema: Any) -> str:
    options = {"whitespace_pattern": _JSON_WHITESPACE}
    guided = {**schema, "x-guidance": options} if isinstance(schema, dict) else schema
    return f"{_OPTIONS}\nstart: %json {json.dumps(guided)}\n"


def _without_anchors(pattern: str) -> str:
    """The whole answer must match, so anchors at the ends of the pattern are redundant."""
    pattern = pattern.removeprefix("^")
    return pattern[:-1] if re.search(r"(?<!\\)(\\\\)*\$$", pattern) else pattern


def _problem(matcher: LLMatcher) -> str:
    """llguidance's error message; empty if the grammar can be used."""
    if matcher.is_error():
        return str(matcher.get_error()) or "unknown"
    return ""


def _place(error: str) -> str:
    """` at line 2, column 5` if llguidance's message starts with `at 2(5): `; empty if it names no place."""
    found = re.match(r"(?:at )?(\d+)\((\d+)\): ", error)
    return f" at line {found[1]}, column {found[2]}" if found else ""


def _reason(error: str) -> str:
    """The reason in llguidance's message, without the place and the excerpt around it. Reasons that name llguidance's own
    options are replaced."""
    if "NoExtension" in error:
        return "nothing matches"
    if exceeds_limits(error):
        return "it is too complex"
    if "oneOf constraints" in error:
        return "'oneOf' is only supported if it is clear that no value matches two of its schemas"
    reason = re.sub(r"^(?:at )?\d+\(\d+\): ", "", error).removeprefix("failed to compile JSON schema: ")
    if "error: " in reason:
        reason = reason.rpartition("error: ")[2]
    return reason.partition("\n")[0].strip()[:_MAX_REASON_CHARACTERS]
