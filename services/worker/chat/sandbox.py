"""Where chat templates run: a Jinja sandbox that also bounds what a template may spend.

A template comes with the weights, so it is foreign code. Jinja's own sandbox keeps it from reaching out; what it does not do is
end. Every loop body and macro therefore begins with a look at the clock, and the operations that make much out of little
(repetition, padding, powers) are held to a size, so that what lies between two looks is short.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: CPU time of one rendering. Real templates take a few milliseconds for a long chat.
RENDER_CPU_S = 1.0

#: Characters or items that one operation of a template may make.
MAX_SIZE = 1 << 24

#: The largest number that a template may hand to a function; Jinja bounds `range` likewise.
MAX_NUMBER = 100_000

#: Of a whole number, in binary.
MAX_DIGITS = 4096

_DEADLINE = "corral_deadline"
_LONG_NUMBER = re.compile(r"\d{6}")


class TooExpensive(jinja2.TemplateError):
    """A template wants more time or more room than any chat needs."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The names and filters that Hugging Face's `apply_chat_template` gives a template, in the same dialect of Jinja."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.filters = {name: _with_small_numbers(each) for name, each in self.filters.items()}
        self.filters.update(tojson=_tojson, join=_join, replace=_replace, format=_format)
        self.filters.update(corral_clock=_look_at_the_clock, corral_concat=_concat)
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _Bounded().visit(template)
        return template

    def render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """Raises whatever the template raises, and TooExpensive."""
        pieces, size = [], 0
        for piece in template.generate(**variables, **{_DEADLINE: time.thread_time() + RENDER_CPU_S}):
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
        return "".join(pieces)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int | float) and isinstance(right, int | float):
            _check(_digits(operator, left, right) <= MAX_DIGITS)
        elif operator == "%" and isinstance(left, str):
            _check(not _LONG_NUMBER.search(left))
        elif operator == "*":
            _check_size(_length(left) * _length(right))
        elif operator == "+":
            _check_size(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_numbers(*args, *kwargs.values())
        owner, method = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and method in {"join", "translate"}:
            _check_size((len(owner) + 1) * sum(map(_length, args)))
        if isinstance(owner, str) and method == "replace":
            _check_replacing(owner, *args[:2])
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if getattr(value, "__name__", "") in {"format", "format_map"} and isinstance(value.__self__, str):
            _check(not _LONG_NUMBER.search(value.__self__))
        return super().wrap_str_format(value)


class _Bounded(NodeTransformer):
    """Puts a look at the clock into everything that may repeat, and a bound on `~`, which Jinja does not intercept."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._clocked(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._clocked(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._clocked(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter("corral_concat", nodes.List(node.nodes))

    def _clocked(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter("corral_clock", nodes.Const(None))))
        return node


def _filter(name: str, subject: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(subject, name, [], [], None, None)


class _Generation(Extension):
    """`{% generation %}`: marks in training data what the model said; nothing in a prompt."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@jinja2.pass_context
def _look_at_the_clock(context: Context, _: None) -> None:
    # `parent` holds what `render` was given; a template's own `set` cannot reach it.
    if time.thread_time() > context.parent[_DEADLINE]:
        raise TooExpensive("it takes too long")


def _concat(values: list[Any]) -> str:
    texts = [str(value) for value in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


@jinja2.pass_eval_context
def _join(context: EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    values = list(value)
    _check_size(len(values) * (1 + len(d)))
    return str(filters.do_join(context, values, d, attribute))


@jinja2.pass_eval_context
def _replace(context: EvalContext, s: str, old: str, new: str, count: int | None = None) -> str:
    _check_replacing(str(s), old, new)
    return str(filters.do_replace(context, s, old, new, count))


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    _check(not _LONG_NUMBER.search(value))
    return str(filters.do_format(value, *args, **kwargs))


def _with_small_numbers(each: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(each)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        # What is filtered comes first, behind the context where the filter wants one; only the options are numbers to worry about.
        _check_numbers(*args[1:], *kwargs.values())
        return each(*args, **kwargs)

    return bounded


def _check_numbers(*arguments: Any) -> None:
    _check(all(abs(argument) <= MAX_NUMBER for argument in arguments if isinstance(argument, int | float)))


def _check_replacing(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _check_size(len(text) + text.count(old) * len(new))


def _length(value: Any) -> int:
    if isinstance(value, str | list | tuple):
        return len(value)
    return abs(value) if isinstance(value, int) else 0


def _digits(operator: str, left: float, right: float) -> float:
    """Binary ones, of the result of whole numbers."""
    if isinstance(left, float) or isinstance(right, float):
        return 0
    return left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()


def _check_size(size: int) -> None:
    _check(size <= MAX_SIZE)


def _check(fine: bool) -> None:
    if not fine:
        raise TooExpensive("it makes too much of too little")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
