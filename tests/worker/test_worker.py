"""The worker process, tested over Redis: requests in the queue, events in the reply stream."""

from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.protocol.messages import Committed, Event, Failed, Finished, FinishReason, HandedOver, Started
from services.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt
from services.protocol.reports import WorkerState
from services.protocol.sampling import Regex, SamplingParams
from tests.conditions import eventually
from tests.doubles.gateway import VERSION, ScriptedGateway
from tests.ggufs import write_gguf
from tests.worker.conftest import StartWorker

SLOW = 0.02


async def test_an_answer_has_a_start_numbered_frames_and_one_end(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    request = await gateway.ask(TextPrompt("hello"), return_prompt_ids=True)
    end = await gateway.answer(request)
    events = gateway.events[request]
    assert [event.seq for event in events] == list(range(len(events)))
    assert {event.epoch for event in events} == {1}
    assert isinstance(events[0], Started)
    assert (events[0].prompt_tokens, events[0].prompt_ids) == (5, tuple(b"hello"))
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.LENGTH,)
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (5, 8)
    assert bytes(token for frame in gateway.frames(request) for token in frame.token_ids).decode() == gateway.text(request)


async def test_eight_chats_at_once_share_entries_of_the_reply_stream(
    gateway: ScriptedGateway, start_worker: StartWorker
) -> None:
    requests = [await gateway.ask(TextPrompt(f"chat {n}"), max_tokens=20) for n in range(8)]
    await start_worker(fake_step_s=SLOW)
    for request in requests:
        await gateway.answer(request)
    assert max(len({event.request for event in entry}) for entry in gateway.entries) == 8


async def test_tokens_of_one_interval_are_sent_together(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker(frame_interval_s=1.0)
    request = await gateway.ask(max_tokens=64)
    await gateway.answer(request)
    assert len(gateway.frames(request)) == 64
    assert len(gateway.entries) < 32


async def test_more_requests_than_slots_are_all_answered(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker(slots=2)
    requests = [await gateway.ask(TextPrompt(f"{n}")) for n in range(20)]
    for request in requests:
        assert isinstance(await gateway.answer(request), Finished)
    assert [demand.waiting for demand in await gateway.queue.demand()] == [0]


async def test_a_request_wakes_an_idle_worker(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    # The worker polls only as often as it reports, so a request must wake it.
    await start_worker(report_s=3600, lease_ms=7_200_000)
    await gateway.worker(WorkerState.READY)
    for _ in range(3):
        assert isinstance(await gateway.answer(await gateway.ask()), Finished)


async def test_a_cancelled_request_frees_its_slot_and_the_next_one_takes_it(
    gateway: ScriptedGateway, start_worker: StartWorker
) -> None:
    await start_worker(slots=1, fake_step_s=SLOW)
    endless = await gateway.ask(max_tokens=None)
    await gateway.until(lambda: len(gateway.frames(endless)) > 2)
    waiting = await gateway.ask(TextPrompt("next"))
    assert await gateway.queue.cancel(endless) == "claimed"
    end = await gateway.answer(endless)
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.ABORT,)
    assert isinstance(await gateway.answer(waiting), Finished)


async def test_a_request_is_cancelled_during_its_prefill(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker(slots=1, batch_tokens=4, fake_step_s=SLOW)
    request = await gateway.ask(TextPrompt("x" * 2000))
    await gateway.until(lambda: bool(gateway.events[request]))
    await gateway.queue.cancel(request)
    end = await gateway.answer(request, timeout_s=5)
    assert isinstance(end, Finished)
    assert (end.reasons, end.usage.completion_tokens) == ((FinishReason.ABORT,), 0)


async def test_a_cancellation_interrupts_a_batch_with_no_other_request(
    gateway: ScriptedGateway, start_worker: StartWorker
) -> None:
    await start_worker(slots=1, fake_token_s=0.2)
    request = await gateway.ask(TextPrompt("x" * 400))  # one batch of 80 seconds
    await gateway.until(lambda: bool(gateway.events[request]))
    await gateway.queue.cancel(request)
    end = await gateway.answer(request, timeout_s=10)
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.ABORT,)


async def test_choices_share_their_prompt_and_end_together(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    sampling = SamplingParams(temperature=4, seed=1)
    request = await gateway.ask(TextPrompt("three of them, " * 10), n=3, max_tokens=12, sampling=sampling)
    end = await gateway.answer(request)
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.LENGTH,) * 3
    assert (end.usage.prompt_tokens, end.usage.cached_tokens, end.usage.completion_tokens) == (150, 0, 36)
    texts = ["".join(frame.text for frame in gateway.frames(request) if frame.choice == n) for n in range(3)]
    assert len(set(texts)) == 3
    assert [type(event) for event in gateway.events[request]].count(Started) == 1


async def test_logprobs_come_with_each_token(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    request = await gateway.ask(max_tokens=5, top_logprobs=2)
    await gateway.answer(request)
    for frame in gateway.frames(request):
        (chosen,) = frame.logprobs
        assert chosen.token == bytes(frame.token_ids)
        assert [one.token for one in chosen.top][0] == chosen.token
        # 8 logits above the 255 others.
        assert chosen.logprob == pytest.approx(8 - math.log(math.exp(8) + 255), abs=1e-5)


async def test_an_answer_matches_its_grammar(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    request = await gateway.ask(max_tokens=40, constraint=Regex("[0-9]{3}-[0-9]{2}"), sampling=SamplingParams(seed=3))
    end = await gateway.answer(request)
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.STOP,)
    assert re.fullmatch("[0-9]{3}-[0-9]{2}", gateway.text(request))


async def test_an_invalid_grammar_is_a_bad_request(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    end = await gateway.answer(await gateway.ask(constraint=Regex("(unclosed")))
    assert isinstance(end, Failed)
    assert end.code == "invalid_request"


async def test_a_bias_for_an_unknown_token_is_a_bad_request(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    end = await gateway.answer(await gateway.ask(sampling=SamplingParams(logit_bias=((257, 1.0),))))
    assert isinstance(end, Failed)
    assert end.code == "invalid_request"


async def test_a_stop_string_ends_the_text_before_it(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    whole = await gateway.ask(max_tokens=40)
    await gateway.answer(whole)
    stop = gateway.text(whole)[10:13]
    request = await gateway.ask(max_tokens=40, stop=(stop,))
    end = await gateway.answer(request)
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.STOP,)
    assert gateway.text(request) == gateway.text(whole)[: gateway.text(whole).index(stop)]


async def test_a_seed_repeats_its_answer_and_another_seed_differs(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()

    async def say(seed: int) -> str:
        # The fake model's likeliest byte is at 8 logits; at temperature 4 others are drawn too.
        request = await gateway.ask(TextPrompt("x"), max_tokens=30, sampling=SamplingParams(seed=seed, temperature=4))
        await gateway.answer(request)
        return gateway.text(request)

    assert await say(1) == await say(1) != await say(2)


async def test_a_second_turn_counts_cached_tokens(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    first = await gateway.ask(TextPrompt("a conversation that goes on"))
    await gateway.answer(first)
    second = await gateway.ask(TextPrompt("a conversation that goes on" + gateway.text(first) + " and on"))
    end = await gateway.answer(second)
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == len("a conversation that goes on") + 7


async def test_another_isolation_domain_does_not_see_a_cached_prompt(
    gateway: ScriptedGateway, start_worker: StartWorker
) -> None:
    await start_worker()

    async def cached(domain: str) -> int:
        request = await gateway.ask(TextPrompt("a secret of the red team"), isolation=domain)
        end = await gateway.answer(request)
        assert isinstance(end, Finished)
        return end.usage.cached_tokens

    assert [await cached("red"), await cached("blue"), await cached("red")] == [0, 0, len("a secret of the red team") - 1]


async def test_a_request_for_no_tokens_only_loads(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    request = await gateway.ask(TextPrompt(""), max_tokens=0)
    assert isinstance(await gateway.answer(request), Finished)
    assert gateway.frames(request) == []


async def test_a_refused_prompt_fails_and_the_worker_continues(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker(context_tokens=64)
    long = await gateway.ask(TextPrompt("x" * 100))
    end = await gateway.answer(long)
    assert isinstance(end, Failed)
    assert end.code == "context_length_exceeded"
    assert isinstance(await gateway.answer(await gateway.ask()), Finished)


async def test_a_term_signal_hands_over_running_requests_and_stops_claiming(
    gateway: ScriptedGateway, start_worker: StartWorker
) -> None:
    process = await start_worker(slots=2, fake_step_s=SLOW)
    running = await gateway.ask(max_tokens=None)
    await gateway.until(lambda: bool(gateway.frames(running)))
    process.send_signal(signal.SIGTERM)
    await gateway.until(lambda: isinstance(gateway.events[running][-1], HandedOver))
    late = await gateway.ask()
    assert await process.wait() == 0
    await gateway.read()
    assert gateway.events[late] == []
    assert await gateway.queue.workers() == []


@pytest.mark.parametrize("exact_tokens", [0, 64], ids=["in one batch", "token by token"])
@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0), SamplingParams(temperature=4, seed=9)])
async def test_another_worker_continues_the_answer(
    gateway: ScriptedGateway, start_worker: StartWorker, exact_tokens: int, sampling: SamplingParams
) -> None:
    async def ask() -> str:
        return await gateway.ask(n=2, max_tokens=30, sampling=sampling, stop=("qz",), top_logprobs=1)

    first = await start_worker(fake_step_s=SLOW)
    request = await ask()
    await gateway.until(lambda: len(gateway.frames(request)) > 8)
    first.send_signal(signal.SIGTERM)
    await first.wait()
    await gateway.until(lambda: isinstance(gateway.events[request][-1], HandedOver))
    before = gateway.frames(request)
    assert await gateway.queue.requeue(request, 1, gateway.committed(request))

    await start_worker(exact_tokens=exact_tokens)
    end = await gateway.answer(request)
    undisturbed = await ask()
    expected = await gateway.answer(undisturbed)
    assert isinstance(end, Finished)
    assert isinstance(expected, Finished)
    assert (end.reasons, end.usage.completion_tokens) == (expected.reasons, expected.usage.completion_tokens)
    for choice in range(2):
        assert gateway.text(request, choice) == gateway.text(undisturbed, choice)
        assert gateway.logprobs(request, choice) == gateway.logprobs(undisturbed, choice)
    assert len(gateway.frames(request)) > len(before)


async def test_another_worker_continues_only_unfinished_choices(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    async def ask() -> str:
        return await gateway.ask(n=2, max_tokens=60, sampling=SamplingParams(temperature=4, seed=7), stop=("e",))

    first = await start_worker(fake_step_s=SLOW)
    undisturbed = await ask()
    expected = await gateway.answer(undisturbed)
    assert isinstance(expected, Finished)
    over, longer = sorted(gateway.committed(undisturbed), key=lambda choice: len(choice.token_ids))
    half = Committed(longer.token_ids[: len(longer.token_ids) // 2], None)
    assert len(over.token_ids) < len(half.token_ids)

    request = await ask()
    await gateway.until(lambda: bool(gateway.frames(request)))
    first.send_signal(signal.SIGTERM)
    await gateway.until(lambda: isinstance(gateway.events[request][-1], HandedOver))
    committed = tuple(half if choice == longer else choice for choice in gateway.committed(undisturbed))
    assert await gateway.queue.requeue(request, 1, committed)
    await start_worker()
    end = await gateway.answer(request)
    assert isinstance(end, Finished)
    assert (end.reasons, end.usage.completion_tokens) == (expected.reasons, expected.usage.completion_tokens)
    rest = [frame for frame in gateway.frames(request) if frame.epoch > 1]
    assert {frame.choice for frame in rest} == {committed.index(half)}
    assert half.token_ids + tuple(token for frame in rest for token in frame.token_ids) == longer.token_ids


async def test_a_killed_worker_is_lost_after_its_lease(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    process = await start_worker(fake_step_s=SLOW, lease_ms=1000, report_s=0.2)
    request = await gateway.ask(max_tokens=None)
    await gateway.until(lambda: bool(gateway.frames(request)))
    process.kill()
    (lost,) = await eventually(lambda: gateway.queue.lost("gateway"), timeout_s=5)
    assert (lost.request, lost.epoch) == (request, 1)


async def test_a_resumed_worker_serves_the_request_that_it_had_lost(
    gateway: ScriptedGateway, start_worker: StartWorker
) -> None:
    process = await start_worker(slots=2, fake_step_s=SLOW, lease_ms=1000, report_s=0.2)
    request = await gateway.ask(max_tokens=60)
    await gateway.until(lambda: bool(gateway.frames(request)))
    process.send_signal(signal.SIGSTOP)
    (lost,) = await eventually(lambda: gateway.queue.lost("gateway"), timeout_s=5)
    assert await gateway.queue.requeue(request, lost.epoch)
    process.send_signal(signal.SIGCONT)

    def second_claim() -> list[Event]:
        return [event for event in gateway.events[request] if event.epoch == lost.epoch + 2]

    await gateway.until(lambda: any(isinstance(event, Finished) for event in second_claim()))
    assert [event.seq for event in second_claim()] == list(range(len(second_claim())))
    end = second_claim()[-1]
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.LENGTH,)

    async def idle() -> bool:
        return [worker.running for worker in await gateway.queue.workers()] == [0]

    await eventually(idle, timeout_s=5)


async def test_requests_of_a_dead_gateway_are_aborted(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker(fake_step_s=SLOW)
    request = await gateway.ask(max_tokens=None)
    await gateway.until(lambda: bool(gateway.frames(request)))
    await gateway.reader.close()

    async def idle() -> bool:
        return [worker.running for worker in await gateway.queue.workers()] == [0]

    await eventually(idle, timeout_s=5)


async def test_a_worker_stops_if_its_node_is_silent(start_worker: StartWorker) -> None:
    process = await start_worker(orphan_s=0.5)
    assert await process.wait() == 0


async def test_an_invalid_model_file_is_reported_and_ends_the_process(
    gateway: ScriptedGateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    os.truncate(path, path.stat().st_size // 2)
    process = await start_worker(runner="llama", model_path=path)
    report = await gateway.worker(WorkerState.FAILED)
    assert report.error_code == "invalid_model_file"
    assert report.error.startswith("the file tiny.gguf is truncated: ")
    assert await process.wait() == 3


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in [] %}" * 25 + "{% endfor %}" * 25,
        "{{ " + "[" * 3000 + "]" * 3000 + " }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
    ids=["nested", "brackets", "endless"],
)
async def test_an_invalid_template_is_reported(
    gateway: ScriptedGateway, start_worker: StartWorker, tmp_path: Path, template: str
) -> None:
    process = await start_worker(runner="llama", model_path=write_gguf(tmp_path / "tiny.gguf", template=template))
    report = await gateway.worker(WorkerState.FAILED)
    assert report.error_code == "invalid_model_file"
    assert report.error.startswith("the model's chat template ")
    assert await process.wait() == 3


async def test_smollm2_answers_a_chat(gateway: ScriptedGateway, start_worker: StartWorker, smollm2_path: Path) -> None:
    await start_worker(runner="llama", model_path=smollm2_path, context_tokens=512)
    question = ChatPrompt((ChatMessage("user", "What is the capital of France? Answer in one word."),))
    request = await gateway.ask(question, max_tokens=16)
    end = await gateway.answer(request, timeout_s=60)
    assert isinstance(end, Finished)
    assert "Paris" in gateway.text(request)
    report = await gateway.worker(WorkerState.READY)
    assert (report.version, report.context_tokens) == (VERSION, 512)


async def test_a_model_without_a_template_refuses_chats(
    gateway: ScriptedGateway, start_worker: StartWorker, tmp_path: Path, redis: Redis
) -> None:
    await start_worker(runner="llama", model_path=write_gguf(tmp_path / "tiny.gguf", template=None))
    end = await gateway.answer(await gateway.ask(ChatPrompt((ChatMessage("user", "hi"),))))
    assert isinstance(end, Failed)
    assert end.code == "unsupported_capability"


async def test_a_template_that_costs_too_much_for_one_chat_refuses_that_chat(
    gateway: ScriptedGateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    template = "{% for m in messages %}{{ m.content * (100000000 if m.content == 'much' else 1) }}{% endfor %}"
    await start_worker(runner="llama", model_path=write_gguf(tmp_path / "tiny.gguf", template=template))
    much = await gateway.answer(await gateway.ask(ChatPrompt((ChatMessage("user", "much"),))))
    assert isinstance(much, Failed)
    assert much.code == "invalid_request"
    assert "too much memory" in much.message
    assert isinstance(await gateway.answer(await gateway.ask(ChatPrompt((ChatMessage("user", "hi"),)))), Finished)
