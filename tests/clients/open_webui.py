"""The first five minutes with Open WebUI: `corral up` with its demonstration model, and the real Open WebUI with its defaults.

It signs up, lists the models of both connections (Ollama and OpenAI), and chats over both like the page: with Open WebUI's tools, and
with a title, tags and follow-up questions generated next to the answer. It fails if a chat has an error or no answer.

Open WebUI and its dependencies take 7 GB, so `make` does not install it and the suite does not run this:

    uv venv /tmp/open-webui && uv pip install --python /tmp/open-webui open-webui==0.12.4
    .venv/bin/python -m tests.clients.open_webui /tmp/open-webui/bin/open-webui

`--record FILE` writes Open WebUI's requests to Corral, one JSON object per line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from services.cli.embedded.ports import free_ports

MODEL = "smollm2:135m"
START_S = 240.0
ANSWER_S = 120.0
QUESTION = "Hello! What is the capital of France?"
#: The prefix for models of the OpenAI connection: without one, Open WebUI shows a model of both connections only once.
PREFIX = "openai"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("open_webui", type=Path, help="the program open-webui")
    parser.add_argument("--record", type=Path, help="file for the requests that Open WebUI makes")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corral-")))
        corral = stack.enter_context(corral_up(folder / "home"))
        if arguments.record:
            corral = stack.enter_context(recorder(corral, arguments.record))
        page = stack.enter_context(open_webui(arguments.open_webui, folder / "open-webui", corral))
        with httpx.Client(base_url=page, timeout=ANSWER_S) as http:
            first_minutes(http, corral)


def first_minutes(http: httpx.Client, corral: str) -> None:
    person = {"name": "Ada", "email": "ada@example.com", "password": "correct horse battery"}
    http.headers["authorization"] = f"Bearer {posted(http, '/api/v1/auths/signup', person)['token']}"
    connection = {"enable": True, "prefix_id": PREFIX}
    posted(
        http,
        "/openai/config/update",
        {
            "ENABLE_OPENAI_API": True,
            "OPENAI_API_BASE_URLS": [f"{corral}/v1"],
            "OPENAI_API_KEYS": ["none"],
            "OPENAI_API_CONFIGS": {"0": connection},
        },
    )
    names = {model["id"]: model["owned_by"] for model in http.get("/api/models", params={"refresh": "true"}).json()["data"]}
    print("models:", names)
    assert names[MODEL] == "ollama"
    assert names[f"{PREFIX}.{MODEL}"] == "openai"
    for name in (MODEL, f"{PREFIX}.{MODEL}"):
        chat(http, name)


def chat(http: httpx.Client, model: str) -> None:
    """Chats like the page: the answer is generated in the background and saved in the chat."""
    question = {"id": str(uuid.uuid4()), "role": "user", "content": QUESTION, "models": [model], "timestamp": int(time.time())}
    started = posted(
        http,
        "/api/chat/completions",
        {
            "model": model,
            "messages": [{"role": "user", "content": QUESTION}],
            "stream": True,
            "params": {},
            "features": {},
            "session_id": str(uuid.uuid4()),
            "id": str(uuid.uuid4()),
            "parent_id": None,
            "user_message": question,
            "background_tasks": {"title_generation": True, "tags_generation": True, "follow_up_generation": True},
        },
    )
    answer = eventually(lambda: finished_answer(http, started["chat_id"]), ANSWER_S, f"an answer of {model}")
    print(f"{model}: {answer['content']!r}")
    assert not answer.get("error"), answer


def finished_answer(http: httpx.Client, chat_id: str) -> dict[str, Any] | None:
    messages = http.get(f"/api/v1/chats/{chat_id}").json()["chat"]["history"]["messages"].values()
    answers = (message for message in messages if message["role"] == "assistant")
    return next((answer for answer in answers if answer.get("error") or (answer.get("done") and answer.get("content"))), None)


def posted(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    response = http.post(path, json=body)
    assert response.is_success, f"{path}: {response.status_code} {response.text[:500]}"
    return response.json()


@contextmanager
def corral_up(home: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    variables = {"CORRAL_HOME": str(home), "CORRAL_HOST": address}
    with process([sys.executable, "-m", "services.cli", "up"], variables, home.with_suffix(".log")):

        def has_model() -> bool:
            return MODEL in httpx.get(f"http://{address}/api/tags").text

        eventually(has_model, START_S, "the demonstration model")
        yield f"http://{address}"


@contextmanager
def open_webui(program: Path, data: Path, corral: str) -> Iterator[str]:
    """Open WebUI with its default settings, except the two connections and downloads from the Internet."""
    data.mkdir()
    port = free_ports(1)[0]
    variables = {
        "DATA_DIR": str(data),
        "WEBUI_SECRET_KEY": uuid.uuid4().hex,
        "OLLAMA_BASE_URL": corral,
        "OPENAI_API_BASE_URL": f"{corral}/v1",
        "OPENAI_API_KEY": "none",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "RAG_EMBEDDING_ENGINE": "openai",
    }
    with process([str(program), "serve", "--host", "127.0.0.1", "--port", str(port)], variables, data / "log"):
        page = f"http://127.0.0.1:{port}"
        eventually(lambda: httpx.get(f"{page}/health").is_success, START_S, "Open WebUI")
        yield page


@contextmanager
def process(command: list[str], variables: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as output:
        running = subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    except BaseException:
        print(f"--- the end of {log}:", log.read_text()[-4000:], sep="\n", file=sys.stderr)
        raise
    finally:
        running.terminate()
        running.wait(timeout=60)


@contextmanager
def recorder(corral: str, file: Path) -> Iterator[str]:
    """A server that forwards every request to `corral` and records it."""
    lock = threading.Lock()

    class Forward(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length") or 0))
            kept = {name: value for name, value in self.headers.items() if name.lower() in ("authorization", "content-type")}
            with httpx.stream(self.command, corral + self.path, content=sent, headers=kept, timeout=ANSWER_S) as answer:
                with lock, file.open("a") as record:
                    seen = {"method": self.command, "path": self.path, "body": sent.decode(), "status": answer.status_code}
                    print(json.dumps(seen), file=record)
                self.send_response(answer.status_code)
                self.send_header("content-type", answer.headers.get("content-type", ""))
                self.end_headers()
                for part in answer.iter_raw():
                    self.wfile.write(part)
                    self.wfile.flush()

        do_GET = do_HEAD = do_DELETE = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def eventually(condition: Callable[[], Any], within_s: float, what: str) -> Any:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except (httpx.HTTPError, KeyError):
            pass
        time.sleep(0.5)
    raise TimeoutError(f"{what}: not within {within_s:.0f} s")


if __name__ == "__main__":
    main()
