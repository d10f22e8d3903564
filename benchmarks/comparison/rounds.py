"""A run: servers are started for each load and measured in turn, round by round.

All stay in memory while only one of them computes. A round during which other programs used the machine is followed by an
additional one. All servers end with their block.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from comparison.client import Refused
from comparison.costs import Cost, Meter
from comparison.measures import Measures
from comparison.models import Model
from comparison.servers import DidNotStart, Load, Server, corral, llama_server, packaged
from comparison.sse import MalformedAnswer
from comparison.steps import Place, Step
from comparison.workloads import Independent, Workload

#: The packaged server answers one request after the other, so more clients give no new information.
PACKAGED_CLIENTS = (1, 4)

#: The maximum number of rounds if some were disturbed, as a multiple of the requested number.
MOST_ROUNDS = 2

#: Errors of a measured server that are recorded.
_FAILURES = (Refused, MalformedAnswer, TimeoutError, OSError)


@dataclass
class Run:
    """Appends its measurements to `steps`. `rounds` is the wanted number of undisturbed rounds. After `deadline` (monotonic
    clock, in seconds) nothing new starts."""

    folder: Path
    rounds: int
    threads: int
    step_timeout_s: float
    deadline: float
    steps: list[Step]

    def run(self, model: Model, workload: Workload) -> None:
        place = Place(model.name, workload.name, workload.clients)
        if time.monotonic() > self.deadline:
            self._note(Step(place, 0, "both", error="left out, the time was over"))
            return
        load = Load(model, workload.clients, workload.context_tokens, self.threads)
        try:
            with self._servers(load, workload) as servers:
                missing = self.rounds
                for number in range(self.rounds * MOST_ROUNDS):
                    missing -= self._round(place, workload, number, servers if number % 2 == 0 else servers[::-1])
                    if missing == 0 or time.monotonic() > self.deadline:
                        break
        except (DidNotStart, *_FAILURES) as error:
            self._note(Step(place, 0, "start", error=str(error)))

    def _round(self, place: Place, workload: Workload, number: int, servers: Sequence[Server]) -> bool:
        """False if the round was disturbed."""
        quiet = True
        for server in servers:
            meter = Meter(server, [other for other in servers if other is not server])
            try:
                parts = uvloop.run(self._timed(workload, server, number))
            except _FAILURES as error:
                self._note(Step(place, number, server.name, error=f"{type(error).__name__}: {error}"))
                continue
            cost = meter.cost()
            quiet = quiet and cost.was_quiet
            for part, measures in parts.items():
                self._note(Step(replace(place, part=part), number, server.name, measures, cost))
        return quiet

    async def _timed(self, workload: Workload, server: Server, number: int) -> dict[str, Measures]:
        async with asyncio.timeout(self.step_timeout_s):
            return await workload.run(server.client, number)

    @contextlib.contextmanager
    def _servers(self, load: Load, workload: Workload) -> Iterator[list[Server]]:
        starters = [corral, llama_server]
        if isinstance(workload, Independent) and workload.clients in PACKAGED_CLIENTS:
            starters.append(packaged)
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(start(load, self.folder)) for start in starters]
            for server in servers:
                uvloop.run(self._warm_up(server, load.slots))
            yield servers

    async def _warm_up(self, server: Server, slots: int) -> None:
        """Loads the model and uses every slot once before anything is timed."""
        async with asyncio.timeout(self.step_timeout_s):
            await asyncio.gather(*(server.client.complete(f"{slot} is a number.", 4) for slot in range(slots)))

    def _note(self, step: Step) -> None:
        self.steps.append(step)
        place = step.place
        what = f"{place.model}, {place.part}, {place.clients} clients, round {step.round + 1}, {step.server}: "
        print(what + (_summary(step.measures, step.cost) if step.measures and step.cost else step.error), flush=True)


def _summary(measures: Measures, cost: Cost) -> str:
    return (
        f"{measures.output_tokens_per_s:.1f} tok/s out, {measures.prompt_tokens_per_s:.0f} in, "
        f"first after {measures.ttft_p50_s:.2f} s, between p50 {measures.itl_p50_s * 1000:.0f} ms, "
        f"p99 {measures.itl_p99_s * 1000:.0f} ms; {measures.wall_s:.1f} s; others took {cost.others_share:.0%} of the machine"
    )
