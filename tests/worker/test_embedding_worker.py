"""A worker process with a pooled model, tested over Redis."""

from __future__ import annotations

import signal
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from services.protocol.messages import (
    Embedded,
    EmbedRequest,
    Failed,
    Finished,
    FinishReason,
    Request,
    RerankRequest,
    Started,
    new_id,
)
from services.protocol.reports import WorkerState
from tests.doubles.gateway import VERSION, ScriptedGateway
from tests.encoders import SPECIAL, Shape, WordPiece, last_hidden, random_weights, rank_score, write_bert
from tests.minilm import MiniLM
from tests.worker.conftest import StartWorker

SLOW = 0.02


async def ask(gateway: ScriptedGateway, request: Request) -> str:
    await gateway.queue.enqueue(request, cost=1, limit=1000)
    return request.id


def embed(*inputs: str) -> EmbedRequest:
    return EmbedRequest(id=new_id(), version=VERSION, gateway="gateway", caller="tests", inputs=inputs)


def vectors(gateway: ScriptedGateway, request: str) -> list[NDArray[np.float32]]:
    found = {event.index: event.vector for event in gateway.events[request] if isinstance(event, Embedded)}
    return [np.frombuffer(found[index], "<f4") for index in range(len(found))]


async def test_a_published_encoder_embeds(
    gateway: ScriptedGateway, start_worker: StartWorker, minilm: MiniLM, minilm_path: Path
) -> None:
    """The pooling type is read from the file."""
    await start_worker(runner="llama", model_path=minilm_path)
    texts = ("A man is eating food.", "Ein Mann isst.", "The girl is carrying a baby.", "日本語")
    request = await ask(gateway, embed(*texts))
    end = await gateway.answer(request, timeout_s=60)
    assert isinstance(end, Finished)
    assert end.usage.prompt_tokens == sum(len(minilm.tokenizer.encode(text)) for text in texts)
    for text, vector in zip(texts, vectors(gateway, request), strict=True):
        assert vector @ minilm.embed(text) > 0.999
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    report = await gateway.worker(WorkerState.READY)
    assert report.context_tokens == 512


async def test_a_published_encoder_does_not_generate(
    gateway: ScriptedGateway, start_worker: StartWorker, minilm_path: Path
) -> None:
    await start_worker(runner="llama", model_path=minilm_path)
    end = await gateway.answer(await gateway.ask(), timeout_s=60)
    assert isinstance(end, Failed)
    assert end.code == "unsupported_capability"
    assert "embeddings" in end.message


async def test_a_generating_model_does_not_embed(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker()
    end = await gateway.answer(await ask(gateway, embed("hello")))
    assert isinstance(end, Failed)
    assert (end.code, "embeddings" in end.message) == ("unsupported_capability", True)
    assert isinstance(await gateway.answer(await gateway.ask()), Finished)


async def test_a_reranker_scores_documents(gateway: ScriptedGateway, start_worker: StartWorker, tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    shape = Shape(layers=2, width=32, heads=2, positions=64)
    weights = random_weights(len(vocabulary), shape)
    path = write_bert(tmp_path / "rank.gguf", weights, vocabulary, shape, pooling=gguf.PoolingType.RANK)
    await start_worker(runner="llama", model_path=path)
    documents = ("one", "another one", "zzz")
    request = await ask(
        gateway,
        RerankRequest(id=new_id(), version=VERSION, gateway="gateway", caller="tests", query="which", documents=documents),
    )
    assert isinstance(await gateway.answer(request, timeout_s=60), Finished)
    tokenizer = WordPiece(vocabulary)
    pairs = [[*tokenizer.encode("which"), *tokenizer.encode(document)[1:]] for document in documents]
    expected = [rank_score(weights, last_hidden(weights, shape, pair)) for pair in pairs]
    assert [vector.tolist() for vector in vectors(gateway, request)] == [[pytest.approx(score, abs=0.02)] for score in expected]


async def test_requests_of_many_clients_share_batches(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    requests = [await ask(gateway, embed(f"text {number}")) for number in range(8)]
    await start_worker(pooling="mean", fake_step_s=SLOW)
    for request in requests:
        assert isinstance(await gateway.answer(request), Finished)
    shared = [{event.request for event in entry if isinstance(event, Embedded)} for entry in gateway.entries]
    assert max(map(len, shared)) > 1


async def test_a_cancelled_request_ends_and_the_next_is_answered(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    await start_worker(pooling="mean", slots=1, fake_step_s=SLOW, batch_tokens=16)
    long = await ask(gateway, embed(*["some text"] * 1000))
    await gateway.until(lambda: len(gateway.events[long]) > 2)
    waiting = await ask(gateway, embed("next"))
    assert await gateway.queue.cancel(long) == "claimed"
    end = await gateway.answer(long)
    assert isinstance(end, Finished)
    assert end.reasons == (FinishReason.ABORT,)
    assert isinstance(await gateway.answer(waiting), Finished)


async def test_a_term_signal_lets_running_requests_finish(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    process = await start_worker(pooling="mean", fake_step_s=SLOW, batch_tokens=16)
    request = await ask(gateway, embed(*["some text"] * 50))
    await gateway.until(lambda: any(isinstance(event, Started) for event in gateway.events[request]))
    process.send_signal(signal.SIGTERM)
    end = await gateway.answer(request)
    assert isinstance(end, Finished)
    assert len(vectors(gateway, request)) == 50
    assert await process.wait() == 0
