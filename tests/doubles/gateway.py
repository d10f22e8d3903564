"""A scripted gateway: requests through the real queue, replies through the real reply stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from redis.asyncio import Redis

from services.protocol.messages import (
    ChosenLogprob,
    Committed,
    Event,
    Failed,
    Finished,
    Frame,
    GenerateRequest,
    new_id,
)
from services.protocol.prompts import Prompt, TextPrompt
from services.protocol.queue import Queue
from services.protocol.replies import ReplyReader
from services.protocol.reports import WorkerReport, WorkerState
from services.protocol.sampling import Constraint, SamplingParams, StopConditions
from tests.conditions import eventually

VERSION = "f" * 64

HELLO = TextPrompt("hello")
GREEDY = SamplingParams(temperature=0)


class ScriptedGateway:
    """Enqueues requests and collects the replies, entry by entry."""

    def __init__(self, redis: Redis) -> None:
        self.queue = Queue(redis)
        self.reader = ReplyReader(redis, "gateway")
        self.entries: list[tuple[Event, ...]] = []
        self.events: defaultdict[str, list[Event]] = defaultdict(list)

    async def ask(
        self,
        prompt: Prompt = HELLO,
        *,
        max_tokens: int | None = 8,
        stop: tuple[str, ...] = (),
        sampling: SamplingParams = GREEDY,
        context: tuple[int, ...] = (),
        n: int = 1,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
        return_prompt_ids: bool = False,
        isolation: str = "",
    ) -> str:
        request = GenerateRequest(
            id=new_id(),
            version=VERSION,
            gateway="gateway",
            caller="tests",
            prompt=prompt,
            sampling=sampling,
            stopping=StopConditions(max_tokens, stop=stop),
            context=context,
            n=n,
            isolation=isolation,
            top_logprobs=top_logprobs,
            constraint=constraint,
            return_prompt_ids=return_prompt_ids,
        )
        await self.queue.enqueue(request, cost=1, limit=1000)
        return request.id

    async def read(self) -> None:
        for reply in await self.reader.read(timeout_s=0.2):
            self.entries.append(reply.events)
            for event in reply.events:
                self.events[event.request].append(event)

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 20) -> None:
        async def met() -> bool:
            await self.read()
            return condition()

        await eventually(met, timeout_s=timeout_s)

    async def answer(self, request: str, *, timeout_s: float = 20) -> Event:
        """The request's last event."""
        await self.until(lambda: self.is_done(request), timeout_s=timeout_s)
        return self.events[request][-1]

    def is_done(self, request: str) -> bool:
        return bool(self.events[request]) and isinstance(self.events[request][-1], Finished | Failed)

    def frames(self, request: str) -> list[Frame]:
        return [event for event in self.events[request] if isinstance(event, Frame)]

    def text(self, request: str, choice: int = 0) -> str:
        return "".join(frame.text for frame in self.frames(request) if frame.choice == choice)

    def logprobs(self, request: str, choice: int = 0) -> list[ChosenLogprob]:
        return [one for frame in self.frames(request) if frame.choice == choice for one in frame.logprobs]

    def committed(self, request: str) -> tuple[Committed, ...]:
        """The committed tokens of each choice, as a gateway would know them."""
        frames = self.frames(request)
        return tuple(
            Committed(
                tuple(token for frame in frames if frame.choice == choice for token in frame.token_ids),
                next((frame.reason for frame in frames if frame.choice == choice and frame.reason), None),
            )
            for choice in range(1 + max(frame.choice for frame in frames))
        )

    async def worker(self, *states: WorkerState) -> WorkerReport:
        """The report of the worker, once it is in one of the states."""

        async def found() -> WorkerReport | None:
            reports = await self.queue.workers()
            return next((report for report in reports if report.state in states), None)

        report = await eventually(found, timeout_s=30)
        assert report is not None
        return report
