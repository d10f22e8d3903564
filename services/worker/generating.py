"""The mode of a worker whose model generates text."""

from __future__ import annotations

from services.protocol.errors import BadRequest, UnsupportedCapability
from services.protocol.messages import Claim, GenerateRequest
from services.worker.chat.template import ChatTemplate
from services.worker.config import Settings
from services.worker.engine.engine import Engine
from services.worker.engine.grammar import GrammarCompiler
from services.worker.engine.runner import ModelRunner
from services.worker.loop import Begin, EngineLoop
from services.worker.metrics import Metrics
from services.worker.mode import Emit
from services.worker.prompt import PromptBuilder


class GeneratingMode:
    """Implements Mode. Raises InvalidModelFile where the model's chat template is none."""

    def __init__(self, runner: ModelRunner, settings: Settings) -> None:
        self.context_tokens = runner.context_tokens
        self._runner = runner
        self._settings = settings
        self._prompts = PromptBuilder(
            runner, _template(runner, runner.chat_template), tool_template=_template(runner, runner.tool_template)
        )
        self._grammars = GrammarCompiler(runner)

    def loop(self, emit: Emit, metrics: Metrics) -> EngineLoop:
        settings = self._settings
        engine = Engine(
            self._runner,
            batch_tokens=settings.batch_tokens,
            prefill_s=settings.prefill_s,
            prefill_tokens=settings.prefill_tokens,
        )
        return EngineLoop(self._runner, engine, exact_tokens=settings.exact_tokens, emit=emit, metrics=metrics)

    def begin(self, claim: Claim) -> Begin:
        request = claim.request
        if not isinstance(request, GenerateRequest):
            raise UnsupportedCapability("the model generates text; it makes no embeddings and ranks no documents")
        if any(not 0 <= token < self._runner.num_vocab for token, _ in request.sampling.logit_bias):
            raise BadRequest("logit_bias: holds token ids that the model does not have")
        prepared = self._prompts.prepare(request)
        grammar = self._grammars.compile(prepared.constraint) if prepared.constraint else None
        return Begin(request, claim.epoch, claim.committed, prepared, grammar)


def _template(runner: ModelRunner, source: str | None) -> ChatTemplate | None:
    return ChatTemplate(source, bos_text=runner.bos_text, eos_text=runner.eos_text) if source else None
