"""Given the arguments and the server's responses: what is printed, and the exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.cli import server
from services.cli.answer import StreamedAnswer
from services.cli.server import Server
from services.gateway.registry import TIMEOUT
from tests.cli.conftest import Corral
from tests.doubles.http_gateway import KEY, LOADED, MODEL, NODE, QUEUE, SHOWN, Answer, Gateway

BOB = KEY | {
    "name": "bob",
    "team": "",
    "admin": False,
    "revoked_at": "2020-01-01T00:00:00Z",
    "weight": 2.5,
    "priority": "batch",
    "max_waiting": 40,
}

VERSIONS = {
    "model": "m:latest",
    "versions": [
        {
            "digest": letter * 64,
            "current": letter == "a",
            "size": size,
            "source": "pypi:m",
            "named_at": "2026-11-22T12:00:00Z",
            "nodes": ["n1"],
        }
        for letter, size in (("a", 98_000_000), ("b", 97_000_000))
    ],
}

LISTINGS: list[tuple[list[str], str, Any, str]] = [
    (["versions", "m"], "GET /registry/v1/models/versions", VERSIONS, "bbbbbbbbbbbb    kept       97 MB"),
    (
        ["rollback", "m", "bb"],
        "POST /registry/v1/models/rollback",
        {"model": "m:latest", "digest": "b" * 64, "previous": "a" * 64},
        "'m:latest' is version bbbbbbbbbbbb again; it was aaaaaaaaaaaa",
    ),
    (
        ["list"],
        "GET /api/tags",
        {"models": [MODEL]},
        "NAME            ID              SIZE     MODIFIED\nsmollm2:135m    1a4fe4fc0718    98 MB    6 years ago\n",
    ),
    (["ls", "SMOL"], "GET /api/tags", {"models": [MODEL]}, "smollm2:135m    1a4fe4fc0718    98 MB    6 years ago\n"),
    (["list", "other"], "GET /api/tags", {"models": [MODEL]}, "NAME    ID    SIZE    MODIFIED\n"),
    (
        ["ps"],
        "GET /api/ps",
        {"models": [LOADED]},
        "NAME            ID              SIZE      PROCESSOR    CONTEXT    RUNNING    WAITING    UNTIL\n"
        "smollm2:135m    1a4fe4fc0718    951 MB    100% CPU     4096       -          -          Forever\n",
    ),
    (["ps"], "GET /api/ps", {"models": [LOADED | {"size_vram": 951_000_000}]}, "100% GPU"),
    (["ps"], "GET /api/ps", {"models": [LOADED | {"size_vram": 475_500_000}]}, "50%/50% CPU/GPU"),
    (["ps"], "GET /api/ps", {"models": [LOADED | {"expires_at": "2020-01-01T00:00:00Z"}]}, "Stopping..."),
    (
        ["nodes"],
        "GET /registry/v1/nodes",
        {"nodes": [NODE]},
        "vm    ready  2     4.0 GiB of 8.0 GiB  512.0 GiB of 1.0 TiB  H100     3       1         6 years ago\n",
    ),
    (
        ["key", "list"],
        "GET /registry/v1/keys",
        {"keys": [KEY, BOB]},
        "NAME  KEY              TEAM  MAY    WEIGHT  PRIORITY     WAITING  CREATED      REVOKED\n"
        "ada   corral-AbCdE...  red   admin  1       interactive  -        6 years ago  -\n"
        "bob   corral-AbCdE...  -     use    2.5     batch        40       6 years ago  6 years ago\n",
    ),
]


@pytest.mark.parametrize(("arguments", "route", "body", "expected"), LISTINGS)
def test_listings_are_tables(
    corral: Corral, gateway: Gateway, arguments: list[str], route: str, body: Any, expected: str
) -> None:
    gateway.answer(route, Answer(body=body))
    done = corral(*arguments)
    assert (done.code, done.err) == (0, "")
    assert expected in done.out


@pytest.mark.parametrize(
    ("arguments", "route", "body"),
    [
        (["list"], "GET /api/tags", {"models": [MODEL]}),
        (["nodes"], "GET /registry/v1/nodes", {"nodes": [NODE]}),
        (["key", "list"], "GET /registry/v1/keys", {"keys": [KEY]}),
        (["show", "m"], "POST /api/show", SHOWN),
    ],
)
def test_listings_with_json(corral: Corral, gateway: Gateway, arguments: list[str], route: str, body: Any) -> None:
    gateway.answer(route, Answer(body=body))
    done = corral(*arguments, "--json")
    assert (done.code, json.loads(done.out)) == (0, body)


def test_show_lists_the_sizes_of_kept_versions(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /api/show", Answer(body=SHOWN))
    gateway.answer("GET /registry/v1/models/versions", Answer(body=VERSIONS))
    assert "Kept versions\n    bbbbbbbbbbbb    97 MB\n" in corral("show", "m").out


def replica(state: str, **facts: Any) -> dict[str, Any]:
    shown = {"model": "m:latest", "version": "f" * 64, "memory_bytes": 951_000_000, "load_progress": 0.0, "reason": "", **facts}
    return {"id": "r", "state": state, **shown}


def test_ps_shows_replicas_that_are_not_ready(corral: Corral, gateway: Gateway) -> None:
    replicas = [
        replica("starting", load_progress=0.43),
        replica("fetching"),
        replica("pending", reason="n1 has no room"),
        replica("ready"),
    ]
    gateway.answer("GET /api/ps", Answer(body={"models": [LOADED]}))
    gateway.answer("GET /registry/v1/replicas", Answer(body={"replicas": replicas}), Answer(403, {"error": "no admin"}))
    shown = corral("ps").out
    assert shown.count("m:latest") == 3
    assert "m:latest      ffffffffffff  951 MB  -                   -        -        Loading 43%\n" in shown
    assert ("Fetching\n" in shown, "Waiting: n1 has no room\n" in shown) == (True, True)
    assert "m:latest" not in corral("ps").out, "for those who may not ask"
    gateway.answer("GET /registry/v1/replicas", Answer(body={"replicas": replicas[:1]}))
    gateway.answer("GET /api/ps", Answer(body={"models": [LOADED, LOADED | {"name": "m:latest", "digest": "f" * 64}]}))
    assert corral("ps").out.count("m:latest") == 1, "a model that loads is not shown as loaded too"
    gateway.answer("GET /api/ps", Answer(body={"models": [LOADED]}))
    gateway.answer("GET /registry/v1/replicas", Answer(body={"replicas": replicas}))
    assert json.loads(corral("ps", "--json").out) == {"models": [LOADED], "loading": replicas[:3], "queues": []}


def test_ps_shows_the_queue(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("GET /api/ps", Answer(body={"models": [LOADED]}))
    gateway.answer("GET /api/queue", Answer(body={"models": [QUEUE]}))
    assert "4096       8/8        12, 4 s    Forever\n" in corral("ps").out
    assert json.loads(corral("ps", "--json").out)["queues"] == [QUEUE]


def test_a_key_with_terms(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /registry/v1/keys", Answer(201, KEY | {"secret": "corral-s3cret"}))
    assert corral("key", "create", "ci", "--weight", "0.5", "--priority", "batch", "--max-waiting", "40").code == 0
    [body] = gateway.bodies("POST /registry/v1/keys")
    assert (body["weight"], body["priority"], body["max_waiting"]) == (0.5, "batch", 40)
    assert corral("key", "create", "ci", "--priority", "urgent").code == 1


def test_show_describes_the_model(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /api/show", Answer(body=SHOWN))
    assert corral("show", "smollm2:135m").out == (
        "  Model\n"
        "    architecture        llama\n"
        "    parameters          134.52M\n"
        "    context length      8192\n"
        "    embedding length    576\n"
        "    quantization        Q4_1\n\n"
        "  Capabilities\n    completion\n    chat\n\n"
        '  Parameters\n    stop           "<|im_end|>"\n    temperature    0.2\n\n'
        "  System\n    Be brief.\n    Be kind.\n    ...\n\n"
        "  License\n    Apache License\n\n"
    )
    assert gateway.bodies("POST /api/show") == [{"model": "smollm2:135m"}]


def test_show_with_few_details(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /api/show", Answer(body={"details": {"family": "llama"}, "model_info": {}}))
    assert corral("show", "m").out == "  Model\n    architecture    llama\n\n"


def test_rm_deletes_models_until_an_error(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("DELETE /registry/v1/models", Answer(), Answer(404, {"error": "model 'b' not found"}))
    done = corral("rm", "a", "b", "c")
    assert (done.code, done.out, done.err) == (1, "deleted 'a'\n", "Error: model 'b' not found\n")
    assert gateway.bodies("DELETE /registry/v1/models") == [{"model": "a"}, {"model": "b"}]


def test_stop_unloads_the_model(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /api/generate", Answer(body={"done": True}), Answer(404, {"error": "model 'x' not found"}))
    assert corral("stop", "m").out == "stopping 'm'\n"
    assert gateway.bodies("POST /api/generate") == [{"model": "m", "keep_alive": 0, "stream": False}]
    done = corral("stop", "x")
    assert (done.code, done.err) == (1, 'Error: couldn\'t find model "x" to stop\n')


def test_a_new_key_is_the_only_output_on_stdout(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /registry/v1/keys", Answer(201, KEY | {"secret": "corral-s3cret"}))
    done = corral("key", "create", "ada", "--team", "red", "--admin")
    assert (done.code, done.out) == (0, "corral-s3cret\n")
    assert "an admin key named 'ada'" in done.err
    assert "s3cret" not in done.err
    assert gateway.bodies("POST /registry/v1/keys") == [
        {"weight": 1, "priority": "interactive", "max_waiting": None, "name": "ada", "team": "red", "admin": True}
    ]
    assert json.loads(corral("key", "create", "ada", "--json").out)["secret"] == "corral-s3cret"


def test_key_set_changes_the_terms(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("PATCH /registry/v1/keys/team%2Fada", Answer(body=KEY | {"weight": 2.5}))
    done = corral("key", "set", "team/ada", "--weight", "2.5", "--max-waiting", "0", "--no-admin")
    assert (done.code, done.out) == (0, "changed 'ada': weight 2.5, interactive, admin\n")
    assert gateway.bodies("PATCH /registry/v1/keys/team%2Fada") == [{"weight": 2.5, "max_waiting": None, "admin": False}]
    assert "nothing to change" in corral("key", "set", "ada").err


def test_key_revoke(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("DELETE /registry/v1/keys/ada", Answer())
    assert corral("key", "revoke", "ada").out == "revoked 'ada'\n"


def test_status_of_a_cluster(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("GET /readyz", Answer(body={"status": "ok"}), Answer(503, {"status": "unavailable", "missing": ["redis"]}))
    gateway.answer("GET /api/version", Answer(body={"version": "0.32.15", "corral": "1.2.3"}))
    gateway.answer("GET /api/ps", Answer(body={"models": [LOADED]}))
    gateway.answer("GET /registry/v1/nodes", Answer(body={"nodes": [NODE]}), Answer(403, {"error": "this needs an admin key"}))
    done = corral("status")
    assert done.code == 0
    assert done.out.startswith(f"Corral 1.2.3 at {gateway.url} is ready\n")
    assert "vm " in done.out
    assert "smollm2:135m" in done.out
    done = corral("status", "--json")
    assert done.code == 1, "not ready"
    found = json.loads(done.out)
    assert (found["ready"], found["checks"]["missing"], found["nodes"], found["parts"]) == (False, ["redis"], None, None)


def test_status_lists_a_loading_model_once(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("GET /readyz", Answer(body={"status": "ok"}))
    gateway.answer("GET /api/version", Answer(body={"version": "0.12.6", "corral": "1.0"}))
    gateway.answer("GET /api/ps", Answer(body={"models": [LOADED | {"name": "m:latest", "digest": "f" * 64}]}))
    gateway.answer("GET /registry/v1/nodes", Answer(body={"nodes": [NODE]}))
    gateway.answer("GET /registry/v1/replicas", Answer(body={"replicas": [replica("starting", load_progress=0.43)]}))
    shown = corral("status").out
    assert (shown.count("m:latest"), "Loading 43%" in shown) == (1, True)
    assert json.loads(corral("status", "--json").out)["models"] == []


def test_a_server_that_does_not_answer_in_time(corral: Corral, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_TIMEOUT_S", 0.1)
    gateway.answer("POST /registry/v1/keys", Answer(201, KEY, silence_s=0.5))
    done = corral("key", "create", "ci")
    assert (done.code, done.err) == (1, f"Error: {gateway.url} did not answer in time\n")


def test_loading_may_take_longer(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_TIMEOUT_S", 0.1)
    gateway.answer("POST /api/generate", Answer(body={"done": True}, silence_s=0.5))
    StreamedAnswer(Server(gateway.url), "m", system=None, keep_alive=None, verbose=False).load()
    assert gateway.bodies("POST /api/generate") == [{"model": "m", "options": {}, "stream": False}]


def test_the_gateway_gives_up_on_the_registry_before_the_command_does() -> None:
    assert TIMEOUT.read is not None
    assert TIMEOUT.read < server.READ_TIMEOUT_S


def test_the_key_is_sent(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("GET /api/tags", Answer(body={"models": []}))
    corral("list", CORRAL_API_KEY="corral-k")
    assert gateway.headers[-1]["Authorization"] == "Bearer corral-k"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(401, {"error": "an API key is required"}), "an API key is required; set CORRAL_API_KEY"),
        (Answer(403, {"error": "this needs an admin key"}), "this needs an admin key"),
        (Answer(503, {"error": {"message": "in OpenAI's shape"}}), "in OpenAI's shape"),
        (Answer(502), "the server answered 502"),
    ],
)
def test_errors_of_the_server_are_one_line(corral: Corral, gateway: Gateway, answer: Answer, message: str) -> None:
    gateway.answer("GET /api/tags", answer)
    done = corral("list")
    assert (done.code, done.out, done.err) == (1, "", f"Error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["pull"], {}, "Missing argument 'source'."),
        (["lst"], {}, "No such command 'lst'. Did you mean 'list', 'ls'?"),
        (["list", "--jsn"], {}, "No such option: --jsn (Possible options: --json)"),
        (["run", "m", "hi", "--seed", "x"], {}, "Invalid value for '--seed': "),
        (["list"], {"CORRAL_HOST": "127.0.0.1:x"}, "CORRAL_HOST: 'x' is not a port"),
        (["list"], {"CORRAL_MIN_FREE_BYTES": "few"}, "CORRAL_MIN_FREE_BYTES: Input should be a valid integer"),
    ],
)
def test_wrong_usage_is_one_line(corral: Corral, arguments: list[str], environment: dict[str, str], message: str) -> None:
    done = corral(*arguments, **environment)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"Error: {message}")
    assert done.err.count("\n") == 1


def test_no_server_is_a_one_line_error(corral: Corral) -> None:
    done = corral("list", CORRAL_HOST="127.0.0.1:1")
    assert (done.code, done.out) == (1, "")
    assert done.err == 'Error: no Corral at http://127.0.0.1:1; start one with "corral up" or set CORRAL_HOST\n'


def test_an_unexpected_response_is_logged_as_a_crash(corral: Corral, gateway: Gateway, environment: dict[str, str]) -> None:
    gateway.answer("GET /api/tags", Answer(body={"surprise": 1}))
    done = corral("list")
    crash = Path(environment["XDG_STATE_HOME"]) / "corral" / "crash.log"
    assert done.err == f"Error: KeyError: 'models'; this is a bug in Corral, the traceback is in {crash}\n"
    assert "Traceback" in crash.read_text()


def test_ollama_host_is_the_default_address(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("GET /api/tags", Answer(body={"models": []}))
    assert corral("list", CORRAL_HOST="", OLLAMA_HOST=gateway.url).code == 0


def test_help_lists_the_commands(corral: Corral) -> None:
    done = corral("--help")
    assert done.code == 0
    for command in ("up", "pull", "run", "list", "ps", "show", "stop", "rm", "status", "nodes", "key"):
        assert f" {command} " in done.out
    for bare in (corral(), corral("key")):
        assert bare.code == 0
        assert "Usage:" in bare.out
        assert bare.err == ""
    assert corral("--version").out.startswith("corral ")


def test_the_shell_completes_model_names(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("GET /api/tags", Answer(body={"models": [MODEL, MODEL | {"name": "gemma3:270m"}]}))
    for line in ("corral run smol", "corral rm smol"):
        completed = corral(_CORRAL_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="2")
        assert "smollm2:135m" in completed.out
        assert "gemma3" not in completed.out


def test_a_closed_pipe_is_not_an_error(gateway: Gateway, environment: dict[str, str]) -> None:
    gateway.answer("GET /api/tags", Answer(body={"models": [MODEL] * 20_000}))
    command = f"{sys.executable} -m services.cli list | head -n 1"
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("NAME")
    assert done.stderr == ""


@pytest.mark.parametrize(("options", "path"), [([], "n%2F1"), (["--force"], "n%2F1?force=true")], ids=["lost", "forced"])
def test_node_rm_removes_a_node(corral: Corral, gateway: Gateway, options: list[str], path: str) -> None:
    gateway.answer(f"DELETE /registry/v1/nodes/{path}", Answer(body={"name": "n/1"}))
    assert corral("node", "rm", "n/1", *options).out == "removed node 'n/1'\n"


def test_ps_shows_when_a_failed_load_is_retried_and_why(corral: Corral, gateway: Gateway) -> None:
    due = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    rows = [replica("failed", reason="llama.cpp failed", retry_at=at) for at in (due, "2020-01-01T00:00:00Z", None)]
    gateway.answer("GET /api/ps", Answer(body={"models": []}))
    gateway.answer("GET /registry/v1/replicas", Answer(body={"replicas": rows}))
    gateway.answer("GET /api/queue", Answer(body={"models": []}))
    _, *shown = corral("ps").out.splitlines()
    assert len(shown) == 1
    assert re.search(r"Retry in 3[56]\d\d s: llama.cpp failed$", shown[0].rstrip())


def test_an_undecodable_response_is_not_an_outage(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("GET /api/tags", Answer(body={"models": []}, encoding="gzip"))
    done = corral("list")
    assert (done.code, done.err) == (1, f"Error: the request to {gateway.url} failed (DecodingError)\n")
