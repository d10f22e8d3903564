"""The service as a team uses it: slots are freed, chats share batches, and parts may stop or die."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conditions import eventually_sync
from tests.conftest import free_port
from tests.end_to_end.conftest import SMOLLM2, Platform, lines, now, start_platform
from tests.ggufs import write_gguf

pytestmark = pytest.mark.end_to_end

SLOTS = 8

ENDLESS = {
    "model": SMOLLM2,
    "prompt": "Once upon a time",
    "raw": True,
    "options": {"num_predict": 2000, "temperature": 1.0, "seed": 1, "stop": []},
}


def generate(http: httpx.Client, prompt: str, *, model: str = SMOLLM2, num_predict: int = 4) -> str:
    body = {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": {"num_predict": num_predict}}
    response = http.post("/api/generate", json=body)
    assert response.status_code == 200, response.text
    text: str = response.json()["response"]
    return text


def test_disconnected_clients_free_their_slots(http: httpx.Client) -> None:
    generate(http, "warm")
    for _ in range(2):
        streams = [http.stream("POST", "/api/generate", json=ENDLESS) for _ in range(SLOTS)]
        for stream in streams:
            lines(stream.__enter__(), 2)
        for stream in streams:
            stream.__exit__(None, None, None)
        # All slots were busy with 2,000 tokens each; an answer within seconds shows that they are free.
        started_at = now()
        generate(http, "next")
        assert now() - started_at < 10


def test_eight_concurrent_chats_are_interleaved(platform: Platform, http: httpx.Client) -> None:
    generate(http, "warm")
    barrier = threading.Barrier(SLOTS)
    order: list[int] = []

    def chat(number: int) -> None:
        body = {
            "model": SMOLLM2,
            "messages": [{"role": "user", "content": f"Write a long story about the number {number}."}],
            "options": {"num_predict": 40, "seed": number},
        }
        with httpx.Client(base_url=platform.url, timeout=120, trust_env=False) as client:
            barrier.wait()
            with client.stream("POST", "/api/chat", json=body) as response:
                for line in response.iter_lines():
                    assert "error" not in json.loads(line)
                    order.append(number)

    with ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(chat, range(SLOTS)))
    last_first = max(order.index(number) for number in range(SLOTS))
    first_last = min(len(order) - 1 - order[::-1].index(number) for number in range(SLOTS))
    assert last_first < first_last, "every chat was being answered before the first one ended"


def test_chats_continue_while_postgresql_and_the_registry_are_stopped(platform: Platform, http: httpx.Client) -> None:
    generate(http, "warm")
    parts = platform.parts()
    postgres = [parts["PostgreSQL"], *(child.pid for child in _children(parts["PostgreSQL"]))]
    frozen = [*postgres, parts["registry"]]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(3):
            assert generate(http, f"Tell me {number}") is not None
        assert http.get("/api/tags").json()["models"]
        assert http.get("/v1/models").json()["data"]
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)


def _children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _has_restarted(platform: Platform, part: str, before: int) -> bool:
    return platform.parts().get(part, before) != before


def test_a_killed_registry_and_postgresql_restart_and_are_reported(platform: Platform, http: httpx.Client) -> None:
    for part in ("registry", "PostgreSQL"):
        before = platform.parts()[part]
        os.kill(before, signal.SIGKILL)
        generate(http, f"while {part} restarts")
        eventually_sync(partial(_has_restarted, platform, part, before), timeout_s=30)
        assert part in platform.output.read_text().split("Ctrl-C stops Corral")[1]
    eventually_sync(lambda: platform.corral("nodes", "--json").returncode == 0, timeout_s=30)
    assert platform.corral_json("list")


def test_an_answer_survives_its_worker(platform: Platform, http: httpx.Client) -> None:
    """Kills the only replica; its answer continues when the next one has loaded. It is the same answer because it is greedy,
    alone, and no worker has a cached prefix, which would be rounded differently."""
    body = {**ENDLESS, "options": {"num_predict": 60, "temperature": 0}}
    kill_workers(platform)
    undisturbed = "".join(json.loads(row)["response"] for row in http.post("/api/generate", json=body).iter_lines())
    kill_workers(platform)
    with http.stream("POST", "/api/generate", json=body) as response:
        rows = response.iter_lines()
        output = json.loads(next(rows))["response"]
        kill_workers(platform)
        rest = [json.loads(row) for row in rows]
    assert rest[-1]["done"], rest[-1]
    assert output + "".join(row["response"] for row in rest) == undisturbed


def kill_workers(platform: Platform) -> None:
    for worker in platform.workers():
        worker.kill()


def test_corral_chaos_fails_no_request(platform: Platform, http: httpx.Client) -> None:
    generate(http, "warm")
    done = platform.corral("chaos", "--minutes", "0.2", "--every", "6", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 workers killed" in done.stdout
    assert " 0 failed" in done.stdout
    assert "killed the worker of smollm2:135m" in done.stdout


def test_a_killed_node_agent_keeps_its_workers(platform: Platform, http: httpx.Client) -> None:
    generate(http, "warm")
    workers = {worker.pid for worker in platform.workers()}
    agent = platform.parts()["node agent"]
    os.kill(agent, signal.SIGKILL)
    eventually_sync(lambda: platform.parts().get("node agent", agent) != agent, timeout_s=30)
    generate(http, "served by the same process")
    eventually_sync(lambda: platform.corral_json("nodes")["nodes"][0]["state"] == "ready", timeout_s=30)
    assert workers <= {worker.pid for worker in platform.workers()}


def test_keep_alive_0_unloads_and_the_next_request_loads_again(http: httpx.Client) -> None:
    generate(http, "warm")
    answer = http.post("/api/generate", json={"model": SMOLLM2, "keep_alive": 0})
    assert answer.json()["done_reason"] == "unload"

    def loaded() -> list[str]:
        return [model["model"] for model in http.get("/api/ps").json()["models"]]

    eventually_sync(lambda: SMOLLM2 not in loaded(), timeout_s=15)
    assert http.post("/api/generate", json={"model": SMOLLM2}).json()["done_reason"] == "load"
    eventually_sync(lambda: SMOLLM2 in loaded(), timeout_s=5)


def test_a_revoked_key_is_refused(platform: Platform, http: httpx.Client) -> None:
    made = platform.corral("key", "create", "app", "--team", "web", "--json")
    assert made.returncode == 0, made.stderr
    headers = {"Authorization": f"Bearer {json.loads(made.stdout)['secret']}"}
    eventually_sync(lambda: http.get("/v1/models", headers=headers).status_code == 200, timeout_s=3)
    assert http.get("/registry/v1/keys", headers=headers).status_code == 403
    assert platform.corral("key", "revoke", "app").returncode == 0
    eventually_sync(lambda: http.get("/v1/models", headers=headers).status_code == 401, timeout_s=3)
    assert http.get("/v1/models").status_code == 200, "without a key, this is the local caller"


def test_a_corrupt_model_is_refused_and_a_good_one_is_pulled_served_and_removed(
    platform: Platform, http: httpx.Client, tmp_path: Path
) -> None:
    good, broken = write_gguf(tmp_path / "good.gguf"), tmp_path / "broken.gguf"
    broken.write_bytes(good.read_bytes()[:-5000])
    refused = platform.corral("pull", str(broken), "--as", "broken")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: ")
    assert "Traceback" not in refused.stderr
    assert platform.corral("pull", str(good), "--as", "tiny:one").returncode == 0
    assert generate(http, "hello", model="tiny:one", num_predict=4) is not None
    assert [model["model"] for model in platform.corral_json("list")["models"]].count("tiny:one") == 1
    assert platform.corral("rm", "tiny:one").returncode == 0
    assert http.post("/api/show", json={"model": "tiny:one"}).status_code == 404
    assert generate(http, "the others are served as before") is not None


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", {"model": "nothing"}, 404, "model 'nothing' not found"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/chat", None, 400, "missing request body"),
        ("/v1/chat/completions", {"model": SMOLLM2, "messages": []}, 400, "[] is too short - 'messages'"),
        ("/api/show", {"model": "nothing"}, 404, "model 'nothing:latest' not found"),
    ],
)
def test_bad_requests_are_refused(
    http: httpx.Client, path: str, body: dict[str, Any] | None, status: int, message: str
) -> None:
    answer = http.post(path, json=body) if body is not None else http.post(path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["message"] if path.startswith("/v1") else error) == message


def test_the_first_commands_of_a_new_user(platform: Platform) -> None:
    output = platform.corral("run", SMOLLM2, "What is the capital of France? Answer in one word.", "--temperature", "0")
    assert output.returncode == 0, output.stderr
    assert "Paris" in output.stdout
    assert SMOLLM2 in platform.corral("list").stdout
    assert SMOLLM2 in platform.corral("ps").stdout
    assert "Q4_1" in platform.corral("show", SMOLLM2).stdout
    assert platform.corral("status").returncode == 0
    unknown = platform.corral("run", "nothing", "hi")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.count("\n") == 1


def test_the_welcome_shows_commands_to_paste(platform: Platform) -> None:
    output = platform.output.read_text()
    for hint in ("curl ", "from openai import OpenAI", f"corral run {SMOLLM2}", platform.url):
        assert hint in output


def test_starting_and_stopping_twice_leaves_nothing_behind(open_folder: Path) -> None:
    home, port = open_folder / "twice", free_port()
    for _ in range(2):
        platform = start_platform(home, "--no-demo", port=port)
        assert len(platform.processes()) >= 5
        assert platform.stop() == 0
        assert platform.processes() == []
        assert list((home / "run").iterdir()) == []
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.get(platform.url)
