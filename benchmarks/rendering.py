"""The cost of rendering in a limited process, compared with rendering in the worker process.

.venv/bin/python -m benchmarks.rendering
"""

from __future__ import annotations

import statistics
import time

import psutil

from services.protocol.prompts import ChatMessage, ChatPrompt
from services.worker.chat.limited_renderer import LimitedRenderer
from services.worker.chat.renderer import Renderer
from services.worker.chat.rendering import Rendering, TemplateSetup
from services.worker.chat.template import Renders

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROUNDS = 500


def chat(turns: int) -> Rendering:
    return Rendering(ChatPrompt(tuple(ChatMessage("user", f"What is {turn}? " * 25) for turn in range(turns))), "")


def milliseconds(renderer: Renders, rendering: Rendering) -> list[float]:
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        renderer.render(rendering)
        taken.append(1000 * (time.perf_counter() - started))
    return sorted(taken)


def main() -> None:
    setup = TemplateSetup(TEMPLATE, control_texts=("<|im_start|>", "<|im_end|>"))
    own = Renderer(setup)
    started = time.perf_counter()
    limited = LimitedRenderer(setup)
    started_s = time.perf_counter() - started
    (child,) = psutil.Process().children()
    print(f"start: {1000 * started_s:.0f} ms, memory: {child.memory_info().rss / 1e6:.0f} MB")
    print("turns  own process p50  child p50  child p99  (ms)")
    for turns in (1, 10, 100, 300):
        rendering = chat(turns)
        here, there = milliseconds(own, rendering), milliseconds(limited, rendering)
        print(f"{turns:5}  {statistics.median(here):15.3f}  {statistics.median(there):9.3f}  {there[ROUNDS * 99 // 100]:9.3f}")
    limited.close()


if __name__ == "__main__":
    main()
