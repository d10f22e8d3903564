"""Runs llama.cpp's own server, from the wheel xllamacpp, with its defaults except for the arguments.

python llama_server.py --model FILE --port PORT --slots N --context-tokens N --threads N
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    for number in ("port", "slots", "context-tokens", "threads"):
        parser.add_argument(f"--{number}", type=int, required=True)
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.context_tokens
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # its destructor waits for answers in progress


if __name__ == "__main__":
    main()
