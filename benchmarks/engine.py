"""Corral compared with llama.cpp's own server: the same weights, prompts, threads and context per slot, on one machine, in one run.

    python benchmarks/engine.py [--quick] [--model NAME] [--workload NAME] [--concurrency N ...] [--rounds N]
                                [--json FILE] [--markdown PAGE]
    python benchmarks/engine.py --from FILE [--markdown PAGE]

Corral is a whole `corral up` in a temporary folder, so requests pass the gateway, the queue and the worker. llama-server is from the
wheel xllamacpp, with a slot per client and otherwise its defaults. Both keep the model in memory. One at a time gets the same requests,
round by round, in alternating order. llama_cpp.server, which answers one request after the other, is included for scale. The workloads
are in comparison/catalog.py; each ratio is taken within a round.

A full run takes most of an hour on two cores, --quick about seven minutes, and up to twice that on a busy machine. After --minutes
nothing new starts. Needs the dependency group `bench` (`make bench` installs it).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from comparison import catalog
from comparison.machine import describe
from comparison.models import MODELS
from comparison.report import render, replace
from comparison.rounds import Run
from comparison.steps import Report

#: The slowest step on two cores, llama-server's burst, takes a minute.
STEP_TIMEOUT_S = 300.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Corral against llama.cpp's own server.")
    parser.add_argument("--quick", action="store_true", help="one model, two rounds, the workloads that have goals")
    parser.add_argument("--model", action="append", choices=MODELS, help="instead of both; may be repeated")
    parser.add_argument("--workload", action="append", choices=catalog.NAMES, help="instead of all; may be repeated")
    parser.add_argument("--concurrency", type=int, nargs="+", help="numbers of clients with independent prompts")
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 2")
    parser.add_argument("--minutes", type=float, default=90, help="start nothing new after this time (default: 90)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all measurements")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="print the report of such a file, without measuring"
    )
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="a page; replaces the tables between its markers")
    return parser.parse_args()


def measure(args: argparse.Namespace, save: Callable[[Report], None]) -> Report:
    """Saves after every workload, so that Ctrl-C keeps the results so far."""
    report = Report(describe(), rounds=args.rounds or (2 if args.quick else 3))
    concurrency = args.concurrency or (catalog.QUICK_CONCURRENCY if args.quick else catalog.CONCURRENCY)
    names = args.workload or (catalog.QUICK_NAMES if args.quick else catalog.NAMES)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="corral-benchmark-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # as root, PostgreSQL runs as another user
        threads = len(os.sched_getaffinity(0))
        run = Run(Path(folder), report.rounds, threads, STEP_TIMEOUT_S, started + args.minutes * 60, report.steps)
        for name in args.model or (list(MODELS)[:1] if args.quick else MODELS):
            MODELS[name].fetch()
            for workload in catalog.workloads(MODELS[name], names, concurrency):
                run.run(MODELS[name], workload)
                report.minutes = (time.monotonic() - started) / 60
                save(report)
    return report


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with SIGINT ignored

    def save(report: Report) -> None:
        if args.json:
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))

    report = msgspec.json.decode(args.source.read_bytes(), type=Report) if args.source else measure(args, save)
    text = render(report)
    print(f"\n{text}")
    if args.markdown:
        replace(args.markdown, text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
