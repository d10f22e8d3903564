"""Turns a prompt into token ids that fit the context, a constraint for the answer, and the pipelines that parse it."""

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
from services.worker.chat.constraint import AnswerRequirements, Effective, effective
from services.worker.chat.parser import Parser, PlainParser
from services.worker.chat.rendering import Rendered, Segment
from services.worker.chat.template import ChatTemplate, continued_phase
from services.worker.chat.truncation import Messages, longest_fitting, possible_cuts, shortened, shortest_ends
from services.worker.engine.aho_corasick import AhoCorasick
from services.worker.engine.runner import ModelRunner
from services.worker.output import OutputPipeline

#: Starts with the text of Ollama's message (llm/server.go), because clients look for it.
_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model: it has {length} tokens, and the context "
    "holds {context}, one of which is for the answer. Shorten the prompt, or let the model have a longer context "
    "(corral deploy MODEL --context TOKENS)"
)

#: If an infill prompt is too long, the suffix keeps 1/4 of the room, or what the prefix leaves: the prefix matters more.
_SUFFIX_SHARE = 4


@dataclass(frozen=True)
class Preparation:
    """A request that is ready for the engine.

    `tokens` are the prompt's. Answers must match `constraint`, after they have contained the bytes `after` if those are set.
    `output(choice)` makes the output pipeline of one choice.
    """

    tokens: list[int]
    constraint: Constraint | None
    after: bytes | None
    output: Callable[[int], OutputPipeline]


class PromptBuilder:
    """`template` is None if the model cannot chat. `tool_template` is a second one for chats with tools, if there is one."""

    def __init__(
        self, runner: ModelRunner, template: ChatTemplate | None, *, tool_template: ChatTemplate | None = None
    ) -> None:
        self._runner = runner
        self._bos = runner.tokenize("", special=False)
        self._chat = _Chat(self, template) if template else None
        self._tool_chat = _Chat(self, tool_template) if tool_template else self._chat

    def prepare(self, request: GenerateRequest) -> Preparation:
        """The prompt has at least one token, and leaves room in the context for at least one more. Raises
        ContextLengthExceeded, UnsupportedCapability, or BadRequest: if the template refuses the messages, if a tool's schema
        cannot be compiled, or for unknown token ids, on which `llama_decode` fails."""
        num_vocab = self._runner.num_vocab
        if unknown := next((token for token in request.context if not 0 <= token < num_vocab), None):
            raise BadRequest(f"token id {unknown} is out of range: the model has {num_vocab} tokens", field="context")
        limit = self._runner.context_tokens - 1 - (0 if request.overflow == "truncate" else len(request.context))
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
            raise self._too_long(request, len(prepared.tokens))
        tokens = self._continued(request, prepared.tokens) or self._runner.tokenize("\n", special=False)
        return Preparation(tokens, prepared.constraint, prepared.after, prepared.output)

    def _continued(self, request: GenerateRequest, tokens: list[int]) -> list[int]:
        """The request's `context` and then `tokens`. If they do not fit, the start of `context` is cut."""
        continuation = self._without_bos(tokens) if request.context else tokens
        room = self._runner.context_tokens - 1 - len(continuation)
        if len(request.context) <= room:
            return [*request.context, *continuation]
        return [*self._bos, *request.context[len(request.context) - room + len(self._bos) :], *continuation]

    def _too_long(self, request: GenerateRequest, length: int) -> ContextLengthExceeded:
        kept = 0 if request.overflow == "truncate" else len(request.context)
        text = _TOO_LONG.format(length=kept + length, context=self._runner.context_tokens)
        return ContextLengthExceeded(text, field="messages" if isinstance(request.prompt, ChatPrompt) else "prompt")

    def tokens(self, text: str) -> list[int]:
        return self._runner.tokenize(text, special=True)

    def rendered_tokens(self, rendered: Rendered) -> list[int]:
        first, *others = rendered.segments or (Segment("", True),)
        ids = self._runner.tokenize(first.text, special=first.special)
        for segment in others:
            ids += self._further(segment)
        return ids

    def _further(self, segment: Segment) -> list[int]:
        """The tokens of a segment after the first: without the BOS that the tokenizer adds."""
        ids = self._runner.tokenize(segment.text, special=segment.special)
        bos_text = self._runner.bos_text
        writes_bos = segment.special and bos_text and segment.text.startswith(bos_text)
        return ids if writes_bos else self._without_bos(ids)

    def control_tokens(self, texts: Sequence[str]) -> dict[str, int]:
        """The ids of those texts that are control tokens: single tokens without output bytes."""
        found = {}
        for text in texts:
            ids = self._without_bos(self.tokens(text))
            if len(ids) == 1 and not self._runner.token_bytes(ids[0]):
                found[text] = ids[0]
        return found

    def pipelines(
        self, request: GenerateRequest, shown: Mapping[int, bytes], parser: Callable[[Callable[[int], str]], Parser]
    ) -> Callable[[int], OutputPipeline]:
        """`shown` maps the control tokens that the parser must see to their text."""
        token_bytes = self._runner.token_bytes
        stop = AhoCorasick(request.stopping.stop)

        def text_of(token: int) -> bytes:
            return shown.get(token) or token_bytes(token)

        def output(choice: int) -> OutputPipeline:
            ids = partial(call_id, request.id, choice)
            return OutputPipeline(text_of if shown else token_bytes, stop, parser(ids))

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
        """Prefix, suffix, gap: the order that llama.cpp's server uses."""
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
    """Prepares chats with one template."""

    def __init__(self, builder: PromptBuilder, template: ChatTemplate) -> None:
        self._builder = builder
        self._template = template
        self._control = builder.control_tokens(template.format.markers)

    def prepare(self, request: GenerateRequest, prompt: ChatPrompt, limit: int) -> Preparation:
        text, tokens = self._fitting(prompt, limit, truncate=request.overflow == "truncate")
        format = self._template.format
        continued = continued_phase(prompt)
        phase = continued or format.phase(text)
        constraint = effective(format, phase, self._requirements(request, prompt))
        forced = prompt.tool_choice.mode == "required"
        parser = partial(format.parser, text, prompt.tools, continued=continued, calls_only=forced)
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

    def _requirements(self, request: GenerateRequest, prompt: ChatPrompt) -> AnswerRequirements:
        return AnswerRequirements(
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
        cuts = possible_cuts(prompt.messages)

        def rendered(cut: int) -> tuple[str, list[int]]:
            return self._rendered(msgspec.structs.replace(prompt, messages=shortened(prompt.messages, cut)))

        def fits(cut: int) -> bool:
            try:
                return len(rendered(cut)[1]) <= limit
            except BadRequest:  # the template accepts the whole chat, but not without the messages that were cut
                return False

        fewest_dropped = bisect_left(cuts[:-1], True, key=fits)
        text, ids = rendered(cuts[fewest_dropped])
        if len(ids) <= limit:
            return text, ids
        return self._rendered(self._cut(prompt, shortened(prompt.messages, cuts[-1]), limit))

    def _cut(self, prompt: ChatPrompt, messages: Messages, limit: int) -> ChatPrompt:
        """The chat with these messages, the longest of them cut at their start until it fits."""

        def ends(characters: int) -> ChatPrompt:
            return msgspec.structs.replace(prompt, messages=shortest_ends(messages, characters))

        longest = max(len(message.content) for message in messages)

        def fits(characters: int) -> bool:
            return characters < longest and len(self._rendered(ends(characters))[1]) <= limit

        return ends(longest_fitting(fits, start=limit))

    def _rendered(self, prompt: ChatPrompt) -> tuple[str, list[int]]:
        rendered = self._template.render(prompt)
        return rendered.text, self._builder.rendered_tokens(rendered)


def _with_offered_tools(prompt: ChatPrompt) -> ChatPrompt:
    """The prompt, without its tools if none may be called. Raises BadRequest if `tool_choice` asks for a missing tool."""
    choice = prompt.tool_choice
    if choice.mode == "none":
        return msgspec.structs.replace(prompt, tools=())
    if choice.mode == "required" and not prompt.tools:
        raise BadRequest("tool_choice: a tool call is required, but there are no tools", field="tool_choice")
    if choice.name and choice.name not in {tool.name for tool in prompt.tools}:
        raise BadRequest(f"tool_choice: there is no tool {choice.name}", field="tool_choice")
    return prompt
