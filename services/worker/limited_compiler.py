"""LimitedCompiler: compiles the constraints that callers send, within limits on CPU time and memory."""

from __future__ import annotations

from services.protocol.errors import BadRequest, CorralError
from services.protocol.sampling import Constraint
from services.worker.engine.grammar import Grammar, GrammarCompiler
from services.worker.engine.grammar.vocabulary import Vocabulary
from services.worker.grammar_child import Proof
from services.worker.limited_process import Crashed, Killed, LimitedProcessPool, LimitExceeded, Limits

#: Limits for one constraint. Most compile in milliseconds. The compiler's stack alone takes 256 MiB of address space.
LIMITS = Limits(cpu_s=2.0, wall_s=20.0, memory_bytes=1 << 30)


class LimitedCompiler:
    """Compiles each new constraint in a limited process first, then for the model. `compile` is thread-safe."""

    def __init__(self, vocabulary: Vocabulary, *, limits: Limits = LIMITS) -> None:
        self._compiler = GrammarCompiler(vocabulary)
        self._pool = LimitedProcessPool("services.worker.grammar_child", None, limits=limits, nice=5)

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises BadRequest if the constraint cannot be compiled, or takes too much time or memory to compile."""
        if not self._compiler.knows(constraint):
            self._prove(constraint)
        return self._compiler.compile(constraint)

    def close(self) -> None:
        self._pool.close()

    def _prove(self, constraint: Constraint) -> None:
        try:
            self._pool.call(Proof(constraint), type(None))
        except Crashed as error:  # llguidance aborts when it runs out of memory or stack
            raise BadRequest("the grammar is too complex: the process that compiles it ended") from error
        except Killed as error:
            raise CorralError("the process that compiles the grammar was killed") from error
        except LimitExceeded as error:
            raise BadRequest(f"the grammar is too complex: {error}") from error
