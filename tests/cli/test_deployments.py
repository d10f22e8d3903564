"""`corral deploy`, `undeploy` and `deployments`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Corral
from tests.doubles.http_gateway import Answer, Gateway

DEPLOYED: dict[str, Any] = {
    "model": "m:latest",
    "version": "1a4fe4fc0718" + "0" * 52,
    "origin": "pinned",
    "replicas": 2,
    "ready": 1,
    "updated": 1,
    "on_trial": False,
    "reason": "",
    "overrides": {"slots": 4, "kv_type_k": "q8_0", "lora": [["a.gguf", 1.0]], "mlock": True},
    "engine": {"slots": 4},
    "created_at": "2020-01-01T00:00:00Z",
}
PUT = "PUT /registry/v1/deployments/m"
LIST = "GET /registry/v1/deployments"
REPLICAS = "GET /registry/v1/replicas"
STARTING: dict[str, Any] = {
    "id": "r2",
    "version": DEPLOYED["version"],
    "state": "starting",
    "load_progress": 0.4,
    "reason": "loading",
}
EARLIER = STARTING | {"id": "r1", "state": "failed", "reason": "another time"}


def test_deploy_sends_only_the_given_options(corral: Corral, gateway: Gateway) -> None:
    gateway.answer(PUT, Answer(body=DEPLOYED))
    done = corral("deploy", "m", "--no-wait")
    assert done.out == ("deployed 'm:latest': replicas=2, kv_type_k=q8_0 lora=[[\"a.gguf\",1.0]] mlock=true slots=4\n")
    assert gateway.bodies(PUT) == [{"engine": {}, "replicas": 1}]


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        (["--slots", "4", "--context", "8192"], {"slots": 4, "context_tokens": 8192}),
        (["--kv-type", "q8_0"], {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
        (["--kv-type", "q8_0", "--set", "kv_type_v=f16"], {"kv_type_k": "q8_0", "kv_type_v": "f16"}),
        (["--kv-tokens", "20000", "--flash-attention", "off"], {"kv_tokens": 20000, "flash_attention": "off"}),
        (["--gpu-layers", "-1", "--tensor-split", "3,1"], {"gpu_layers": -1, "tensor_split": [3.0, 1.0]}),
        (["--lora", "/a.gguf", "--lora", "sha256:b=0.5"], {"lora": [["/a.gguf", 1.0], ["sha256:b", 0.5]]}),
        (["--image", "corral-worker:b9000-{backend}"], {"image": "corral-worker:b9000-{backend}"}),
        (
            ["--set", "mlock=true", "--set", "batch_tokens=64", "--set", "pooling=mean"],
            {"mlock": True, "batch_tokens": 64, "pooling": "mean"},
        ),
    ],
)
def test_options_become_engine_settings(corral: Corral, gateway: Gateway, options: list[str], engine: dict[str, Any]) -> None:
    gateway.answer(PUT, Answer(body=DEPLOYED))
    assert corral("deploy", "m", "--replicas", "0", *options).code == 0
    assert gateway.bodies(PUT) == [{"engine": engine, "replicas": 0}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "slots"], "--set slots: expected NAME=VALUE"),
        (["--tensor-split", "3;1"], "--tensor-split 3;1: expected numbers separated by commas, for example 3,1"),
        (["--lora", "a=b"], "--lora a=b: the scale after = must be a number"),
    ],
)
def test_invalid_options_are_refused(corral: Corral, options: list[str], message: str) -> None:
    done = corral("deploy", "m", *options)
    assert (done.code, done.err) == (1, f"Error: {message}\n")


def test_an_error_of_the_server_is_shown(corral: Corral, gateway: Gateway) -> None:
    gateway.answer(PUT, Answer(400, {"error": "engine.slots: Expected `int` >= 1"}))
    done = corral("deploy", "m", "--slots", "0")
    assert (done.code, done.err) == (1, "Error: engine.slots: Expected `int` >= 1\n")


def test_a_rollout_shows_its_steps_until_all_replicas_are_ready(corral: Corral, gateway: Gateway) -> None:
    steps = [
        ({"updated": 0}, STARTING | {"state": "fetching", "reason": "fetching pypi:m"}),
        ({"updated": 0}, STARTING),
        ({"updated": 1}, STARTING | {"state": "ready"}),
        ({"updated": 1}, STARTING | {"state": "ready"}),
        ({"updated": 2}, STARTING | {"state": "ready"}),
    ]
    gateway.answer(PUT, Answer(body=DEPLOYED))
    gateway.answer(LIST, *(Answer(body={"deployments": [DEPLOYED | row]}) for row, _ in steps))
    gateway.answer(REPLICAS, *_replicas([EARLIER], *([replica, EARLIER] for _, replica in steps)))
    done = corral("deploy", "m", "--replicas", "2")
    assert done.err == "fetching pypi:m; ready 0 of 2\nloading 40%; ready 0 of 2\nready 1 of 2\nready 2 of 2\n"
    assert (done.code, done.out.split(":")[0]) == (0, "deployed 'm")


def test_a_failed_rollout_gives_the_reason(corral: Corral, gateway: Gateway) -> None:
    gateway.answer(PUT, Answer(body=DEPLOYED))
    gateway.answer(LIST, Answer(body={"deployments": [DEPLOYED]}))
    gateway.answer(REPLICAS, *_replicas([EARLIER], [EARLIER], [STARTING | {"state": "failed", "reason": "no luck"}, EARLIER]))
    done = corral("deploy", "m")
    assert (done.code, done.out, done.err) == (1, "", "ready 1 of 2\nError: 'm:latest' was not deployed: no luck\n")


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ([DEPLOYED | {"overrides": {}, "reason": "no luck (put back)"}], "no luck (put back)"),
        ([DEPLOYED | {"overrides": {}}], "it was deployed again with other settings"),
        ([], "the deployment was removed"),
    ],
)
def test_a_rollout_whose_settings_were_replaced_fails(
    corral: Corral, gateway: Gateway, after: list[dict[str, Any]], message: str
) -> None:
    failed = STARTING | {"state": "failed", "reason": "not shown yet"}
    gateway.answer(PUT, Answer(body=DEPLOYED))
    on_trial = DEPLOYED | {"on_trial": True}
    gateway.answer(LIST, Answer(body={"deployments": [on_trial]}), Answer(body={"deployments": after}))
    gateway.answer(REPLICAS, *_replicas([EARLIER], [failed, EARLIER]))
    done = corral("deploy", "m")
    assert (done.code, done.err) == (1, f"ready 1 of 2\nError: 'm:latest' was not deployed: {message}\n")


def _replicas(*looks: list[dict[str, Any]]) -> list[Answer]:
    return [Answer(body={"replicas": replicas}) for replicas in looks]


def test_undeploy(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("DELETE /registry/v1/deployments/m", Answer(body=DEPLOYED))
    assert corral("undeploy", "m").out == "'m' is loaded on demand, with the platform's settings\n"


def test_deployments_are_listed(corral: Corral, gateway: Gateway) -> None:
    idle = DEPLOYED | {"model": "n:latest", "origin": "on_demand", "replicas": 0, "ready": 0, "overrides": {}}
    body = {"deployments": [DEPLOYED, idle]}
    gateway.answer("GET /registry/v1/deployments", Answer(body=body))
    assert corral("deployments").out == (
        "NAME      ID            READY  ORIGIN     SETTINGS\n"
        'm:latest  1a4fe4fc0718  1/2    pinned     kv_type_k=q8_0 lora=[["a.gguf",1.0]] mlock=true slots=4\n'
        "n:latest  1a4fe4fc0718  0/0    on demand  default settings\n"
    )
    assert json.loads(corral("deployments", "--json").out) == body


def test_the_reason_is_a_column_if_there_is_one(corral: Corral, gateway: Gateway) -> None:
    reason = "exited with code 3: the model could not be loaded"
    gateway.answer("GET /registry/v1/deployments", Answer(body={"deployments": [{**DEPLOYED, "reason": reason}, DEPLOYED]}))
    heading, first, second = corral("deployments").out.splitlines()
    assert heading.split()[-1] == "REASON"
    assert first.endswith(reason)
    assert not second.endswith(reason)
