"""Corral against llama.cpp's own server: the same weights, prompts, threads and context, on the same machine, in one run.

python benchmarks/engine.py [--quick] [--model NAME] [--workload NAME] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from comparison.catalog import CONCURRENCY, workloads
from comparison.models import MODELS
from comparison.rounds import Run


def main() -> None:
    parser = argparse.ArgumentParser(description="Corral against llama.cpp's own server.")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--workload", action="append")
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="corral-benchmark-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)  # as root, PostgreSQL runs as another user
        run = Run(Path(name), args.rounds, len(os.sched_getaffinity(0)), 300, time.monotonic() + 3600)
        for key in args.model or MODELS:
            model = MODELS[key]
            model.fetch()
            chosen = [
                work for work in workloads(model, tuple(args.concurrency)) if not args.workload or work.name in args.workload
            ]
            run.model(model, chosen)
    if args.json:
        args.json.write_text(json.dumps([asdict(step) for step in run.steps], indent=1))


if __name__ == "__main__":
    main()
