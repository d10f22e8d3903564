"""From a request's prompt to token ids that fit the context, and to how the answer is constrained and read. Pure: a vocabulary and
a template in, values out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from services.protocol.errors import BadRequest, ContextLengthExceeded, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatPrompt, TextPrompt
from services.protocol.sampling import Constraint
from services.worker.chat.call_id import call_id
from services.worker.chat.constraint import Effective, Wanted, effective
from services.worker.chat.parser import Parser, PlainParser
from services.worker.chat.template import ChatTemplate, continued_phase
from services.worker.chat.truncation import shortened
from services.worker.engine.runner import ModelRunner
from services.worker.output import OutputPipeline

#: Ollama's words (llm/server.go), which clients show as they are.
_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the context "
    "length in settings, or use a model with a longer context length"
)

#: Of an infill that does not fit, the text before the gap says more about it than the text behind.
_SUFFIX_SHARE = 4


@dataclass(frozen=True)
class Preparation:
    """A request, ready for the engine: `tokens` of the prompt, what its answers must match, and from where on (`constraint` and
    `after` go to the grammar). `output(choice)` makes the pipeline of one choice's answer."""

    tokens: list[int]
    constraint: Constraint | None
    after: bytes | None
    output: Callable[[int], OutputPipeline]


class PromptBuilder:
    """`template` None: the model cannot chat. `tool_template`: the one it brings for chats with tools, if it brings two."""

    def __init__(
        self, runner: ModelRunner, template: ChatTemplate | None, *, tool_template: ChatTemplate | None = None
    ) -> None:
        self._runner = runner
        self._bos = runner.tokenize("", special=False)
        self._chat = _Chat(self, template) if template else None
        self._tool_chat = _Chat(self, tool_template) if tool_template else self._chat

    def prepare(self, request: GenerateRequest) -> Preparation:
        """The prompt has at least one token, and fewer than the context holds. Raises ContextLengthExceeded,
        UnsupportedCapability, or BadRequest: from the template, for a schema that cannot be compiled, or for token ids that the
        model does not have, which llama.cpp takes badly."""
        if not all(0 <= token < self._runner.num_vocab for token in request.context):
            raise BadRequest("context: holds token ids that the model does not have")
        limit = self._runner.context_tokens - 1 - len(request.context)
        match request.prompt:
            case TextPrompt(text, ""):
                prepared = self._plain(request, self._text(text, limit, request))
            case TextPrompt(text, suffix):
                prepared = self._plain(request, self._infill(text, suffix, limit, request))
            case ChatPrompt() as prompt:
                prompt = _with_offered_tools(prompt)
                chat = self._tool_chat if prompt.tools else self._chat
                if chat is None:
                    raise UnsupportedCapability("the model has no chat template")
                prepared = chat.prepare(request, prompt, limit)
        if len(prepared.tokens) > limit:
            raise ContextLengthExceeded(_TOO_LONG)
        continuation = self._without_bos(prepared.tokens) if request.context else prepared.tokens
        tokens = [*request.context, *continuation] or self._runner.tokenize("\n", special=False)
        return Preparation(tokens, prepared.constraint, prepared.after, prepared.output)

    def tokens(self, text: str) -> list[int]:
        return self._runner.tokenize(text, special=True)

    def control_tokens(self, texts: Sequence[str]) -> dict[str, int]:
        """Of texts that are control tokens of the vocabulary, and therefore no part of what it generates, the ids."""
        found = {}
        for text in texts:
            ids = self._without_bos(self.tokens(text))
            if len(ids) == 1 and not self._runner.token_bytes(ids[0]):
                found[text] = ids[0]
        return found

    def pipelines(
        self, request: GenerateRequest, shown: Mapping[int, bytes], parser: Callable[[Callable[[int], str]], Parser]
    ) -> Callable[[int], OutputPipeline]:
        """`shown`: control tokens that the parser is to see, as they are written."""
        token_bytes = self._runner.token_bytes

        def text_of(token: int) -> bytes:
            return shown.get(token) or token_bytes(token)

        def output(choice: int) -> OutputPipeline:
            ids = partial(call_id, request.id, choice)
            return OutputPipeline(text_of if shown else token_bytes, request.stopping.stop, parser(ids))

        return output

    def _plain(self, request: GenerateRequest, tokens: list[int]) -> Preparation:
        return Preparation(tokens, request.constraint, None, self.pipelines(request, {}, lambda _: PlainParser()))

    def _text(self, text: str, limit: int, request: GenerateRequest) -> list[int]:
        ids = self.tokens(text)
        room = limit - len(self._bos)
        if len(ids) > limit and request.overflow == "truncate" and room > 0:
            return [*self._bos, *ids[-room:]]
        return ids

    def _infill(self, text: str, suffix: str, limit: int, request: GenerateRequest) -> list[int]:
        """Prefix, suffix, gap: the order of llama.cpp's server."""
        runner = self._runner
        if runner.fim_prefix is None or runner.fim_suffix is None or runner.fim_middle is None:
            raise UnsupportedCapability("the model does not support insert: its vocabulary has no infill tokens")
        before = self._without_bos(runner.tokenize(text, special=False))
        behind = self._without_bos(runner.tokenize(suffix, special=False))
        room = limit - len(self._bos) - 3
        if len(before) + len(behind) > room and request.overflow == "truncate" and room > 0:
            behind = behind[: max(room // _SUFFIX_SHARE, room - len(before))]
            before = before[len(before) - (room - len(behind)) :] if len(before) > room - len(behind) else before
        return [*self._bos, runner.fim_prefix, *before, runner.fim_suffix, *behind, runner.fim_middle]

    def _without_bos(self, ids: list[int]) -> list[int]:
        return ids[len(self._bos) :]


class _Chat:
    """Chats with one template."""

    def __init__(self, builder: PromptBuilder, template: ChatTemplate) -> None:
        self._builder = builder
        self._template = template
        self._control = builder.control_tokens(template.format.markers)

    def prepare(self, request: GenerateRequest, prompt: ChatPrompt, limit: int) -> Preparation:
        text, tokens = self._fitting(prompt, limit, truncate=request.overflow == "truncate")
        format = self._template.format
        continued = continued_phase(prompt)
        phase = continued or format.phase(text)
        constraint = effective(format, phase, self._wanted(request, prompt))
        parser = partial(format.parser, text, prompt.tools, continued=continued)
        return self._preparation(request, prompt, tokens, constraint, parser)

    def _preparation(
        self,
        request: GenerateRequest,
        prompt: ChatPrompt,
        tokens: list[int],
        constraint: Effective,
        parser: Callable[[Callable[[int], str]], Parser],
    ) -> Preparation:
        visible = self._template.format.shown_markers(prompt.tools)
        shown = {token: marker.encode() for marker, token in self._control.items() if marker in visible}
        return Preparation(tokens, constraint.constraint, constraint.after, self._builder.pipelines(request, shown, parser))

    def _wanted(self, request: GenerateRequest, prompt: ChatPrompt) -> Wanted:
        return Wanted(
            constraint=request.constraint,
            tools=prompt.tools,
            choice=prompt.tool_choice,
            parallel=prompt.parallel_tool_calls,
            may_reason=prompt.thinking is not False,
            control=self._control,
        )

    def _fitting(self, prompt: ChatPrompt, limit: int, *, truncate: bool) -> tuple[str, list[int]]:
        text, ids = self._rendered(prompt)
        if len(ids) <= limit or not truncate:
            return text, ids
        chats = [msgspec.structs.replace(prompt, messages=messages) for messages in shortened(prompt.messages)]

        def fits(chat: ChatPrompt) -> bool:
            try:
                return len(self._rendered(chat)[1]) <= limit
            except BadRequest:  # the template takes the whole chat, but wants other messages to be there than these
                return False

        fewest_dropped = bisect_left(chats[:-1], True, key=fits)
        return self._rendered(chats[fewest_dropped])

    def _rendered(self, prompt: ChatPrompt) -> tuple[str, list[int]]:
        text = self._template.render(prompt)
        return text, self._builder.tokens(text)


def _with_offered_tools(prompt: ChatPrompt) -> ChatPrompt:
    """Without its tools where none may be called. Raises BadRequest where the choice names one that is not there."""
    choice = prompt.tool_choice
    if choice.mode == "none":
        return msgspec.structs.replace(prompt, tools=())
    if choice.mode == "required" and not prompt.tools:
        raise BadRequest("tool_choice: a tool call is required, but there are no tools")
    if choice.name and choice.name not in {tool.name for tool in prompt.tools}:
        raise BadRequest(f"tool_choice: there is no tool {choice.name}")
    return prompt
