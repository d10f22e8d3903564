"""The requests that the servers get. The prompts of a workload are new in every round and the same for every server."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from comparison.client import Client
from comparison.measures import Answer, Measures, measure, measure_arrival
from comparison.prompts import prose, question


@dataclass(frozen=True)
class Workload(ABC):
    """`clients` send requests at the same time; each server has a slot for each of them. `context_tokens` is the context that a
    slot needs."""

    name: str
    clients: int
    context_tokens: int

    @abstractmethod
    async def run(self, client: Client, number: int) -> dict[str, Measures]:
        """Runs round `number`; returns the measures by the name of the part. Raises Refused."""


@dataclass(frozen=True)
class Independent(Workload):
    """Prompts without a common prefix; each client sends `asks` of them, one after the other."""

    prompt_tokens: int
    output_tokens: int
    asks: int = 1

    async def run(self, client: Client, number: int) -> dict[str, Measures]:
        async def one(asker: int) -> list[Answer]:
            prompts = [
                prose(f"{self.name}.{self.clients}.{number}.{asker}.{ask}", self.prompt_tokens) for ask in range(self.asks)
            ]
            return [await client.complete(prompt, self.output_tokens) for prompt in prompts]

        return {self.name: measure(await _all(one(asker) for asker in range(self.clients)))}


@dataclass(frozen=True)
class SharedPrompt(Workload):
    """One system prompt, new in every round, followed by different questions; each client asks `asks` of them."""

    prompt_tokens: int
    output_tokens: int
    asks: int

    async def run(self, client: Client, number: int) -> dict[str, Measures]:
        async def one(asker: int) -> list[Answer]:
            return [await client.complete(prompt, self.output_tokens) for prompt in self._prompts(number, asker)]

        return {self.name: measure(await _all(one(asker) for asker in range(self.clients)))}

    def _prompts(self, number: int, asker: int) -> list[str]:
        system = prose(f"{self.name}.{number}", self.prompt_tokens)
        return [f"{system}\n\n{question(f'{self.name}.{number}.{asker}.{ask}')}\n" for ask in range(self.asks)]


@dataclass(frozen=True)
class Burst(SharedPrompt):
    """All clients ask at the same moment, and once more when all have their answers."""

    async def run(self, client: Client, number: int) -> dict[str, Measures]:
        prompts = [prompt for asker in range(self.clients) for prompt in self._prompts(number, asker)]
        results = {}
        for part in (self.name, f"{self.name}, again"):
            answers = await asyncio.gather(*(client.complete(prompt, self.output_tokens) for prompt in prompts))
            results[part] = measure(answers)
        return results


@dataclass(frozen=True)
class Conversations(Workload):
    """Each client chats for `turns` turns, each of which extends the previous ones. A base model gets the same text without a
    template."""

    chats: bool
    turns: int
    prompt_tokens: int
    output_tokens: int

    async def run(self, client: Client, number: int) -> dict[str, Measures]:
        talk = self._chat if self.chats else self._transcript
        return {self.name: measure(await _all(talk(client, f"{self.name}.{number}.{asker}") for asker in range(self.clients)))}

    async def _chat(self, client: Client, seed: str) -> list[Answer]:
        messages: list[dict[str, str]] = []
        answers = []
        for turn in range(self.turns):
            messages.append({"role": "user", "content": prose(f"{seed}.{turn}", self.prompt_tokens)})
            answers.append(await client.chat(messages, self.output_tokens))
            messages.append({"role": "assistant", "content": answers[-1].text})
        return answers

    async def _transcript(self, client: Client, seed: str) -> list[Answer]:
        text = ""
        answers = []
        for turn in range(self.turns):
            text += prose(f"{seed}.{turn}", self.prompt_tokens) + "\n"
            answers.append(await client.complete(text, self.output_tokens))
            text += answers[-1].text + "\n"
        return answers


@dataclass(frozen=True)
class LateArrival(Workload):
    """A long prompt arrives while the other clients' answers are generated; these continue until the long one is answered."""

    prompt_tokens: int
    running_prompt_tokens: int
    tokens_before: int
    output_tokens: int

    async def run(self, client: Client, number: int) -> dict[str, Measures]:
        seeds = [f"{self.name}.{number}.{asker}" for asker in range(self.clients - 1)]
        running = [await client.start(prose(seed, self.running_prompt_tokens), self.context_tokens // 2) for seed in seeds]
        try:
            await asyncio.gather(*(request.events(self.tokens_before) for request in running))
            late = await client.complete(prose(f"{self.name}.{number}", self.prompt_tokens), self.output_tokens)
        finally:
            seen = [request.leave() for request in running]
        return {self.name: measure_arrival(seen, late)}


async def _all(clients: Iterable[Coroutine[Any, Any, list[Answer]]]) -> list[Answer]:
    return [answer for answers in await asyncio.gather(*clients) for answer in answers]
