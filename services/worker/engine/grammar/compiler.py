"""From a constraint to its grammar, compiled for one model.

llguidance's compiler descends into rules and references by recursion, so a long chain of them overruns an ordinary stack, and
with it the process. All compiling happens on one thread with a stack for the longest text that is taken. That thread alone
touches the cache and builds the tokens' table, so neither has a lock.
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
from services.worker.engine.grammar import gbnf, json_schema, lark, lexing, pointer
from services.worker.engine.grammar.embedded import embedded_schemas
from services.worker.engine.grammar.fault import smallest_failing
from services.worker.engine.grammar.gate import Marker
from services.worker.engine.grammar.loops import without_tail_calls
from services.worker.engine.grammar.matcher import Matcher, exceeds_limits
from services.worker.engine.grammar.vocabulary import TokenTable, Vocabulary

#: Bytes of schemas as JSON, and of any other constraint, schemas within it not counted.
MAX_SCHEMA_BYTES = 256 * 1024
MAX_GRAMMAR_BYTES = 32 * 1024

#: Measured: at most 600 bytes of stack for each byte of text. Memory that is never touched costs nothing.
_STACK_BYTES = 256 * 1024 * 1024

#: For one grammar to compile, its first mask included. Nothing can interrupt it, so what took longer is not used.
_SLOWEST_COMPILE_S = 3.0

_CACHED_GRAMMARS = 32

#: Characters; llguidance may quote a whole expression.
_LONGEST_REASON = 300

#: llguidance's own, but for what it builds of the terminals (its 1,000,000 are paid for many times in a grammar that doubles), the
#: lexer's states (each 1 to 2 kB, its 250,000 are half a gigabyte for one answer), and the Earley items of one mask and of one
#: row, of which grammars without long terminals need many (20,000 are a millisecond).
_LIMITS = LLParserLimits(max_lexer_states=25_000, max_items_in_row=10_000, step_max_items=3_000_000, verbose_errors=False)

#: Tokens that a grammar forces are the model's choice among all that spell the same, as llama.cpp has it.
_OPTIONS = '%llguidance {"no_forcing": true}'

#: At each place at most one of these, so that no model can go on forever with it.
_JSON_WHITESPACE = r"[ ]{1,2}|\n[ ]{0,40}|\n\t{0,20}"


class Grammar:
    """Immutable; may be used from any thread."""

    def __init__(self, prototype: LLMatcher, table: TokenTable) -> None:
        self._prototype = prototype
        self._table = table

    def matcher(self, after: bytes | None = None) -> Matcher:
        """At the beginning of an answer. With `after` everything is allowed until the output has contained these bytes, control
        tokens being taken as they are written."""
        return Matcher(self._prototype.deep_copy(), self._table, Marker.of(self._table, after) if after else None)


class GrammarCompiler:
    """`compile` may be called from any thread; it waits for the compiler's own."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._table: TokenTable | None = None
        self._grammars: OrderedDict[bytes, Grammar] = OrderedDict()
        self._thread = _deep_thread()

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises BadRequest naming the place of what cannot be compiled. The first call builds the table of the tokens."""
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
        rules = without_tail_calls(gbnf.parse(text))
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
        # The options stand last, so that an error's line is the caller's.
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
        deadline = time.monotonic() + _SLOWEST_COMPILE_S
        prototype = LLMatcher(table.tokenizer, text, log_level=0, limits=_LIMITS)
        if not prototype.is_error() and time.monotonic() < deadline:
            prototype.compute_bitmask()  # finds out whether anything matches, and warms the lexer for every matcher
        if time.monotonic() > deadline:
            raise BadRequest("the grammar is too complex: it takes too long to compile")
        return prototype


def _deep_thread() -> ThreadPoolExecutor:
    """One thread with a large stack. The size is a setting of the process that counts when a thread starts."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
    usual = threading.stack_size(_STACK_BYTES)
    try:
        executor.submit(int).result()
    finally:
        threading.stack_size(usual)
    return executor


def _check_size(text: str, most: int, what: str) -> None:
    if len(text.encode()) > most:
        raise BadRequest(f"the {what} has more than {most // 1024} KiB")


def _json(schema: Any) -> str:
    options = {"whitespace_pattern": _JSON_WHITESPACE}
    guided = {**schema, "x-guidance": options} if isinstance(schema, dict) else schema
    return f"{_OPTIONS}\nstart: %json {json.dumps(guided)}\n"


def _without_anchors(pattern: str) -> str:
    """The whole answer matches, so anchors at its ends say nothing new."""
    pattern = pattern.removeprefix("^")
    return pattern[:-1] if re.search(r"(?<!\\)(\\\\)*\$$", pattern) else pattern


def _problem(matcher: LLMatcher) -> str:
    """llguidance's message; empty where the grammar can be used."""
    if matcher.is_error():
        return str(matcher.get_error()) or "unknown"
    return ""


def _place(error: str) -> str:
    """` at line 2, column 5` of a message that names them so: `at 2(5): ...`."""
    found = re.match(r"(?:at )?(\d+)\((\d+)\): ", error)
    return f" at line {found[1]}, column {found[2]}" if found else ""


def _reason(error: str) -> str:
    """The sentence within llguidance's message, which surrounds it with its place and an excerpt, and speaks of its own options."""
    if "NoExtension" in error:
        return "nothing matches"
    if exceeds_limits(error):
        return "it is too complex"
    if "oneOf constraints" in error:
        return "'oneOf' is supported where it is plain that no value matches two of its schemas"
    reason = re.sub(r"^(?:at )?\d+\(\d+\): ", "", error).removeprefix("failed to compile JSON schema: ")
    if "error: " in reason:
        reason = reason.rpartition("error: ")[2]
    return reason.partition("\n")[0].strip()[:_LONGEST_REASON]
