"""A constraint that costs too much is refused and does not delay others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from services.protocol.errors import BadRequest, CorralError
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from services.worker.engine.fake import FakeRunner
from services.worker.limited_compiler import LIMITS, LimitedCompiler

COSTLY = JsonSchema({"properties": {str(number): True for number in range(6_900)}})


@pytest.fixture(scope="module")
def compiler() -> Iterator[LimitedCompiler]:
    compiler = LimitedCompiler(FakeRunner())
    yield compiler
    compiler.close()


@pytest.fixture
def hasty_compiler() -> Iterator[LimitedCompiler]:
    """Allows a tenth of the CPU time that COSTLY needs, so that a fast machine exceeds it too."""
    compiler = LimitedCompiler(FakeRunner(), limits=replace(LIMITS, cpu_s=0.2))
    yield compiler
    compiler.close()


@pytest.mark.parametrize(
    ("constraint", "first"),
    [
        (JsonObject(), "{"),
        (JsonSchema({"type": "integer", "minimum": 10, "maximum": 19}), "1"),
        (Regex("ab+"), "a"),
        (Gbnf('root ::= "x" [0-9]'), "x"),
        (Lark('start: "y" <[256]>'), "y"),
    ],
)
def test_constraints_are_compiled_for_the_models_vocabulary(
    compiler: LimitedCompiler, constraint: Constraint, first: str
) -> None:
    mask = compiler.compile(constraint).matcher().mask()
    assert mask is not None
    assert chr(int(mask.nonzero()[0][0])) == first
    assert compiler.compile(constraint) is compiler.compile(constraint)


def test_a_refusal_gives_the_place_and_the_reason(compiler: LimitedCompiler) -> None:
    with pytest.raises(BadRequest, match="#/properties/a/type: Invalid type"):
        compiler.compile(JsonSchema({"properties": {"a": {"type": "strin"}}}))
    with pytest.raises(BadRequest, match='line 1, column 8: unknown name: "b"'):
        compiler.compile(Lark('start: "a" b\n'))


def test_a_grammar_whose_process_is_killed_is_not_called_too_complex(compiler: LimitedCompiler) -> None:
    with ThreadPoolExecutor(1) as thread:
        compiling = thread.submit(compiler.compile, COSTLY)
        while not compiling.done():
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if "services.worker.grammar_child" in child.cmdline():
                        child.kill()
            time.sleep(0.01)
        with pytest.raises(CorralError, match="^the process that compiles the grammar was killed$") as killed:
            compiling.result()
    assert not isinstance(killed.value, BadRequest)


def test_other_constraints_do_not_wait_for_a_costly_one(hasty_compiler: LimitedCompiler) -> None:
    compiler = hasty_compiler
    compiler.compile(JsonObject())
    with ThreadPoolExecutor(2) as threads:
        costly = threads.submit(compiler.compile, COSTLY)
        number = 0
        while not costly.done():
            compiler.compile(Regex(f"answer {number}"))
            number += 1
            time.sleep(0.01)
        with pytest.raises(BadRequest, match="too complex"):
            costly.result()
    assert number > 1
    compiler.compile(Regex("after it"))
