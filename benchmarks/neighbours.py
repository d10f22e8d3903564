"""The speed of models that share the machine with each other or with busy loops.

    python benchmarks/neighbours.py [--rounds N] [--seconds N] [--clients N] [--before CHECKOUT]

Compares Corral (a whole `corral up` with two models) with two llama-servers with their defaults, one per model. All stay in memory. In
each round, each of them is measured in every situation, in alternating order. A situation starts when the previous server is idle. It lasts
for a second that does not count and for --seconds that do; then the clients disconnect. A measurement during which other programs used more than a tenth of the machine is
repeated, up to three times. With --before, the Corral of another checkout is measured too. Each ratio is taken within a round. Needs the
dependency group `bench` (`make bench` installs it).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from comparison.client import Client, Refused
from comparison.costs import QUIET_SHARE, busy_seconds
from comparison.models import MODELS
from comparison.processes import child, cpu_seconds
from comparison.prompts import prose
from comparison.servers import CORRAL, LLAMA_SERVER, Load, corral, llama_server

CONTEXT_TOKENS = 2048
PROMPT_TOKENS = 32
SETTLE_S = 1.0
MOST_TRIES = 3

#: A machine counts as idle if all programs together used less than this share of it for IDLE_S.
IDLE_SHARE, IDLE_S, MAX_IDLE_WAIT_S = 0.1, 0.5, 20.0
BEFORE = "before"

SMALL, LARGE = MODELS.values()


@dataclass(frozen=True)
class Situation:
    """All `models` are busy, and `loops` processes each keep a core busy."""

    name: str
    models: tuple[str, ...]
    loops: int = 0


ALONE = Situation("alone", (SMALL.name,))
OTHER_ALONE = Situation("the other alone", (LARGE.name,))
BOTH = Situation("both", (SMALL.name, LARGE.name))
ONE_LOOP = Situation("beside one loop", (SMALL.name,), loops=1)
TWO_LOOPS = Situation("beside two loops", (SMALL.name,), loops=2)
SITUATIONS = (ALONE, OTHER_ALONE, BOTH, ONE_LOOP, TWO_LOOPS)

#: A server is a client per model.
Servers = dict[str, dict[str, Client]]
#: Tokens per second by server, situation and model, one per round.
Speeds = dict[tuple[str, Situation, str], list[float]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Models that share the machine.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clients", type=int, default=4, help="clients of each model")
    parser.add_argument(
        "--situation", action="append", choices=[situation.name for situation in SITUATIONS], help="instead of all"
    )
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="checkout of another Corral, with its environment")
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[Situation]:
    return [situation for situation in SITUATIONS if not args.situation or situation.name in args.situation]


@contextlib.contextmanager
def servers(folder: Path, clients: int, before: Path | None) -> Iterator[Servers]:
    def load(model: str, threads: int) -> Load:
        return Load(MODELS[model], clients, CONTEXT_TOKENS, threads)

    with contextlib.ExitStack() as stack:
        found: Servers = {}
        for name, checkout in ((CORRAL, None), (BEFORE, before)):
            if name == CORRAL or checkout:
                ours = corral(load(SMALL.name, 0), folder, beside=[LARGE], checkout=checkout, name=name)
                port = stack.enter_context(ours).port
                found[name] = {model: Client(port, model) for model in MODELS}
        cores = len(os.sched_getaffinity(0))
        theirs = {model: stack.enter_context(llama_server(load(model, cores), folder)) for model in MODELS}
        found[LLAMA_SERVER] = {model: server.client for model, server in theirs.items()}
        yield found


async def speed(client: Client, clients: int, seed: str, seconds: float) -> float:
    """Tokens per second of all clients together."""
    requests = [await client.start(prose(f"{seed}.{n}", PROMPT_TOKENS), CONTEXT_TOKENS // 2) for n in range(clients)]
    await asyncio.sleep(SETTLE_S)
    started = asyncio.get_running_loop().time()
    await asyncio.sleep(seconds)
    ended = asyncio.get_running_loop().time()
    tokens = 0
    for request in requests:
        with contextlib.suppress(Refused):  # a request without a token yet
            tokens += sum(started <= at <= ended for at in request.leave().token_times)
    return tokens / (ended - started)


async def measured(models: dict[str, Client], situation: Situation, clients: int, seed: str, seconds: float) -> list[float]:
    return await asyncio.gather(*(speed(models[name], clients, f"{seed}.{name}", seconds) for name in situation.models))


@contextlib.contextmanager
def loops(number: int, folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(child([sys.executable, "-c", "while True: pass"], log=folder / "loop.log"))
        yield


class OtherPrograms:
    """The share of the machine that other programs use, since the creation."""

    def __init__(self) -> None:
        self._clock_s, self._busy_s = time.monotonic(), self._read()

    @property
    def share(self) -> float:
        """The share of all cores."""
        return max(0.0, self._read() - self._busy_s) / (time.monotonic() - self._clock_s) / (os.cpu_count() or 1)

    def _read(self) -> float:
        return busy_seconds() - sum(cpu_seconds(os.getpid()).values())


def wait_until_idle() -> None:
    """Otherwise what the previous server still computes would count as another program. Gives up after MAX_IDLE_WAIT_S."""
    deadline = time.monotonic() + MAX_IDLE_WAIT_S
    while time.monotonic() < deadline:
        before = busy_seconds()
        time.sleep(IDLE_S)
        if busy_seconds() - before < IDLE_SHARE * IDLE_S * (os.cpu_count() or 1):
            return


def measured_quietly(
    models: dict[str, Client], situation: Situation, args: argparse.Namespace, seed: str, folder: Path
) -> list[float]:
    """The last of at most MOST_TRIES measurements."""
    for attempt in range(MOST_TRIES):
        wait_until_idle()
        with loops(situation.loops, folder):
            others = OtherPrograms()
            rates = uvloop.run(measured(models, situation, args.clients, f"{seed}.{attempt}", args.seconds))
            share = others.share
        print(f"  {_numbers(rates)} tokens/s; other programs took {share:.0%} of the machine", flush=True)
        if share <= QUIET_SHARE:
            break
    return rates


def measure(args: argparse.Namespace) -> Speeds:
    speeds: Speeds = defaultdict(list)
    with (
        tempfile.TemporaryDirectory(prefix="corral-benchmark-", ignore_cleanup_errors=True) as name,
        servers(Path(name), args.clients, args.before) as found,
    ):
        os.chmod(name, 0o755)  # as root, PostgreSQL runs as another user
        for models in found.values():
            uvloop.run(_warm_up(list(models.values())))
        for number in range(args.rounds):
            for situation in chosen(args):
                order = list(found.items())
                for server, models in order if number % 2 == 0 else order[::-1]:
                    print(f"round {number + 1}, {situation.name}, {server}", flush=True)
                    rates = measured_quietly(models, situation, args, f"{situation.name}.{number}", Path(name))
                    for model, rate in zip(situation.models, rates, strict=True):
                        speeds[server, situation, model].append(rate)
    return speeds


async def _warm_up(clients: Sequence[Client]) -> None:
    """Loads the models."""
    for client in clients:
        await client.complete("One is a number.", 8)


def _numbers(values: Sequence[float]) -> str:
    return " + ".join(f"{value:.1f}" for value in values)


def report(speeds: Speeds) -> str:
    names = list(dict.fromkeys(server for server, _, _ in speeds))
    known = [situation for situation in SITUATIONS if any(place == situation for _, place, _ in speeds)]
    rows = [_row(situation, names, speeds) for situation in known]
    ratios = [
        *(
            f"{situation.name}: {CORRAL} / {other} {_ratio(speeds, (CORRAL, situation), (other, situation))}"
            for situation in known
            for other in names
            if other != CORRAL
        ),
        *(
            f"{name}, {situation.name} / alone: {_ratio(speeds, (name, situation), (name, ALONE))}"
            for situation in (ONE_LOOP, TWO_LOOPS)
            for name in names
            if {situation, ALONE} <= set(known)
        ),
        *(
            f"{name}, shares of a machine when both are busy: {_median(_shares(speeds, name))}"
            for name in names
            if {BOTH, ALONE, OTHER_ALONE} <= set(known)
        ),
    ]
    head = f"| tokens/s | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
    return "\n".join([head, *rows, "", *ratios])


def _row(situation: Situation, names: Sequence[str], speeds: Speeds) -> str:
    cells = [_numbers([statistics.median(speeds[name, situation, model]) for model in situation.models]) for name in names]
    return f"| {situation.name} | {' | '.join(cells)} |"


def _ratio(speeds: Speeds, one: tuple[str, Situation], other: tuple[str, Situation]) -> str:
    """The ratio for the first model if both situations have one model each; otherwise for the sums."""
    ours, theirs = _sums(speeds, *one), _sums(speeds, *other)
    return _median([mine / yours if yours else float("inf") for mine, yours in zip(ours, theirs, strict=True)])


def _sums(speeds: Speeds, server: str, situation: Situation) -> list[float]:
    return [sum(rates) for rates in zip(*(speeds[server, situation, model] for model in situation.models), strict=True)]


def _shares(speeds: Speeds, server: str) -> list[float]:
    """For each round, the sum over both models of the speed together relative to the speed alone."""

    def parts(model: str, alone: Situation) -> Iterator[float]:
        together = speeds[server, BOTH, model]
        return (both / one for both, one in zip(together, speeds[server, alone, model], strict=True))

    return [small + large for small, large in zip(parts(SMALL.name, ALONE), parts(LARGE.name, OTHER_ALONE), strict=True)]


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with their blocks
    for model in MODELS.values():
        model.fetch()
    print(f"\n{report(measure(args))}")


if __name__ == "__main__":
    main()
