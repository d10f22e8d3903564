"""How much memory a parsed request body takes, for bodies chosen to take much.

    python benchmarks/bodies.py [--megabytes N]

For each body, per byte of it: the bytes that stay allocated while the request is answered, and the peak while it is parsed. A refused
body keeps nothing. Takes a few seconds.
"""

from __future__ import annotations

import argparse
import tracemalloc
from collections.abc import Callable

from services.gateway.dialects import ollama, openai
from services.protocol.errors import CorralError

Decode = Callable[[bytes], object]

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}],'

#: The decoder, the text before the repeated part, the part, and the text after it.
BODIES: dict[str, tuple[Decode, str, str, str]] = {
    "one text": (openai.decode_chat, '{"model":"m","messages":[{"role":"user","content":"', "x", '"}]}'),
    "escaped text": (openai.decode_chat, '{"model":"m","messages":[{"role":"user","content":"', r"\u00e9", r'\ud83d\ude00"}]}'),
    "empty messages": (openai.decode_chat, '{"model":"m","messages":[', '{"role":"user","content":""},', "{}]}"),
    "token ids": (openai.decode_embeddings, '{"model":"m","input":[', "300,", "1]}"),
    "empty texts": (openai.decode_embeddings, '{"model":"m","input":[', '"",', '""]}'),
    "empty lists": (openai.decode_embeddings, '{"model":"m","input":[', "[],", "[1]]}"),
    "JSON schema": (openai.decode_chat, CHAT + '"json_schema":{"a":[', "{},", "{}]}}"),
    "tool": (openai.decode_chat, CHAT + '"tools":[{"function":{"name":"x","parameters":{"a":[', "{},", "{}]}}}]}"),
    "options": (ollama.decode_generate, '{"model":"m","prompt":"x","options":{"x":[', "{},", "{}]}}"),
    "unknown field": (openai.decode_chat, CHAT + '"x":[', "{},", "{}]}"),
}


def measure(decode: Decode, body: bytes) -> tuple[float, float]:
    tracemalloc.start()
    try:
        request = decode(body)
        kept, _ = tracemalloc.get_traced_memory()
        del request
    except CorralError:
        kept = 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept / len(body), most / len(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=7, help="size of each body (7)")
    size = int(parser.parse_args().megabytes * 1e6)
    print(f"{'body':16} {'kept':>8} {'most':>8}")
    for name, (decode, before, part, after) in BODIES.items():
        kept, most = measure(decode, (before + part * (size // len(part)) + after).encode())
        print(f"{name:16} {kept:8.1f} {most:8.1f}")


if __name__ == "__main__":
    main()
