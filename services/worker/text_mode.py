"""The mode of a worker whose model generates text."""

from __future__ import annotations

from contextlib import ExitStack

from services.protocol.errors import BadRequest, UnsupportedCapability
from services.protocol.messages import Claim, GenerateRequest
from services.worker.chat.limited_renderer import LimitedRenderer
from services.worker.chat.rendering import TemplateSetup
from services.worker.chat.template import ChatTemplate
from services.worker.command_loop import Emit
from services.worker.config import Settings
from services.worker.engine.engine import Engine
from services.worker.engine.runner import ModelRunner
from services.worker.engine.sampling import Stages
from services.worker.engine_thread import Begin, EngineLoop
from services.worker.limited_compiler import LimitedCompiler
from services.worker.metrics import Metrics
from services.worker.prompt import PromptBuilder


class TextMode:
    """Implements Mode. Raises InvalidModelFile if the model's chat template cannot be used."""

    def __init__(self, runner: ModelRunner, settings: Settings) -> None:
        self.context_tokens = runner.context_tokens
        self._runner = runner
        self._settings = settings
        with ExitStack() as stack:
            template = _template(runner, runner.chat_template, stack)
            tool_template = _template(runner, runner.tool_template, stack)
            self._prompts = PromptBuilder(runner, template, tool_template=tool_template)
            self._grammars = LimitedCompiler(runner)
            stack.callback(self._grammars.close)
            self._children = stack.pop_all()

    def loop(self, emit: Emit, metrics: Metrics) -> EngineLoop:
        settings = self._settings
        engine = Engine(
            self._runner,
            batch_tokens=settings.engine.batch_tokens,
            prefill_s=settings.prefill_s,
            prefill_tokens=settings.engine.prefill_tokens,
        )
        return EngineLoop(self._runner, engine, exact_tokens=settings.exact_tokens, emit=emit, metrics=metrics)

    def begin(self, claim: Claim) -> Begin:
        request = claim.request
        if not isinstance(request, GenerateRequest):
            raise UnsupportedCapability("the model generates text and does not make embeddings or rank documents")
        if any(not 0 <= token < self._runner.num_vocab for token, _ in request.sampling.logit_bias):
            raise BadRequest("logit_bias: contains token ids that the model does not have", field="logit_bias")
        prepared = self._prompts.prepare(request)
        grammar = self._grammars.compile(prepared.constraint) if prepared.constraint else None
        stages = Stages(request.sampling, self._runner.token_text)
        return Begin(request, claim.epoch, claim.committed, prepared, stages, grammar)

    def close(self) -> None:
        self._children.close()


def _template(runner: ModelRunner, source: str | None, stack: ExitStack) -> ChatTemplate | None:
    if not source:
        return None
    renderer = LimitedRenderer(TemplateSetup(source, runner.bos_text, runner.eos_text, runner.control_texts))
    stack.callback(renderer.close)
    return ChatTemplate(source, renderer)
