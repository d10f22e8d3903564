from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Corral
from tests.cli.terminal import Terminal
from tests.doubles.http_gateway import PULL, SHOWN, Answer, Gateway, chatted, generated


@pytest.fixture(autouse=True)
def known_model(gateway: Gateway) -> None:
    gateway.answer("POST /api/show", Answer(body=SHOWN))
    gateway.answer("POST /api/generate", Answer(lines=generated("The ", "sky.")))


def test_the_answer_is_printed(corral: Corral, gateway: Gateway) -> None:
    done = corral("run", "m", "Why", "blue?")
    assert (done.code, done.out, done.err) == (0, "The sky.\n", "")
    assert gateway.bodies("POST /api/generate") == [{"model": "m", "prompt": "Why blue?", "options": {}}]


def test_stdin_comes_before_the_prompt(corral: Corral, gateway: Gateway) -> None:
    corral("run", "m", "Summarise.", stdin="A long text.\n")
    corral("run", "m", stdin="Only this.")
    assert [body["prompt"] for body in gateway.bodies("POST /api/generate")] == ["A long text.\n Summarise.", "Only this."]


def test_options_are_sent(corral: Corral, gateway: Gateway) -> None:
    corral(
        *["run", "m", "hi", "--system", "Be!", "--temperature", "0", "--seed", "7", "--num-predict", "9", "--keepalive", "10m"]
    )
    corral(*["run", "m", "hi", "--keepalive", "-1"])
    first, second = gateway.bodies("POST /api/generate")
    assert first["options"] == {"temperature": 0.0, "seed": 7, "num_predict": 9}
    assert (first["system"], first["keep_alive"], second["keep_alive"]) == ("Be!", "10m", -1)


def test_thinking_goes_to_stderr(corral: Corral, gateway: Gateway) -> None:
    thoughts = [{"model": "m", "response": "", "thinking": text, "done": False} for text in ("Let me ", "[see]")]
    gateway.answer("POST /api/generate", Answer(lines=[*thoughts, *generated("Blue.")]))
    done = corral("run", "m", "hi", "--think", "high")
    assert (done.out, done.err) == ("Blue.\n", "Let me [see]\n\n")
    corral("run", "m", "hi", "--think", "false")
    assert [body["think"] for body in gateway.bodies("POST /api/generate")] == ["high", False]


@pytest.mark.parametrize(
    ("arguments", "prompt", "think"),
    [
        (["--think", "Why?"], "Why?", True),
        (["Why?", "--think"], "Why?", True),
        (["--think=false", "Why?"], "Why?", False),
        (["Why?", "--think=max"], "Why?", "max"),
        (["--", "--think", "Why?"], "--think Why?", None),
    ],
)
def test_think_does_not_consume_the_prompt(
    corral: Corral, gateway: Gateway, arguments: list[str], prompt: str, think: bool | str | None
) -> None:
    assert corral("run", "m", *arguments).code == 0
    [body] = gateway.bodies("POST /api/generate")
    assert (body["prompt"], body.get("think")) == (prompt, think)


def test_the_position_in_the_queue_is_shown_while_the_request_waits(gateway: Gateway, environment: dict[str, str]) -> None:
    gateway.answer("POST /api/generate", Answer(lines=[{"queue_position": 3, "done": False}], hang=True))
    with Terminal(["run", "m", "hi"], environment) as terminal:
        terminal.expect("waiting for m: number 3 in the queue")
    assert gateway.headers[-1]["X-Queue-Updates"] == "true"


def test_positions_in_the_queue_are_not_in_the_answer(corral: Corral, gateway: Gateway) -> None:
    places = [{"queue_position": position, "done": False} for position in (2, 1)]
    gateway.answer("POST /api/generate", Answer(lines=[*places, *generated("The sky.")]))
    assert corral("run", "m", "hi").out == "The sky.\n"


def test_long_answers_are_wrapped_between_words(gateway: Gateway, environment: dict[str, str]) -> None:
    gateway.answer("POST /api/generate", Answer(lines=generated("The quick brown ", "fox jumps ", "over it.")))
    with Terminal(["run", "m", "hi"], environment | {"COLUMNS": "20"}, columns=20) as terminal:
        assert terminal.wait() == 0
        lines = [line.rstrip() for line in terminal.output.splitlines()]
    assert [line for line in lines if line] == ["The quick brown fox", "jumps over it."]


def test_format_is_json_or_a_schema_file(corral: Corral, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "text").write_text("no JSON")
    corral("run", "m", "hi", "--format", "json")
    corral("run", "m", "hi", "--format", str(tmp_path / "schema.json"))
    assert [body["format"] for body in gateway.bodies("POST /api/generate")] == ["json", {"type": "object"}]
    for name in ("text", "nowhere"):
        refused = corral("run", "m", "hi", "--format", str(tmp_path / name))
        assert refused.code == 1
        assert refused.err.startswith(f"Error: {tmp_path / name} is not a JSON Schema: ")


def test_verbose_prints_timings(corral: Corral) -> None:
    done = corral("run", "m", "hi", "--verbose")
    assert done.out == "The sky.\n"
    assert done.err.strip().splitlines() == [
        "total duration:       2.5s",
        "load duration:        81.2ms",
        "prompt eval count:    12 token(s)",
        "prompt eval duration: 500ms",
        "prompt eval rate:     24.00 tokens/s",
        "eval count:           50 token(s)",
        "eval duration:        2s",
        "eval rate:            25.00 tokens/s",
    ]


def test_a_missing_prompt_is_an_error(corral: Corral) -> None:
    done = corral("run", "m")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: no prompt: ")


def test_a_missing_model_is_pulled(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /api/show", Answer(404, {"error": "model 'm' not found"}), Answer(body=SHOWN))
    gateway.answer("POST /api/pull", Answer(lines=PULL))
    done = corral("run", "m", "hi")
    assert (done.code, done.out) == (0, "The sky.\n")


def test_an_unknown_model_is_a_one_line_error(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("POST /api/show", Answer(404, {"error": "model 'm' not found"}))
    refusal = "pull model manifest: file does not exist: Corral pulls other things"
    unknown = [{"status": "pulling manifest"}, {"error": refusal}]
    gateway.answer("POST /api/pull", Answer(lines=unknown))
    done = corral("run", "m", "hi")
    assert (done.code, done.out, done.err) == (
        1,
        "",
        "Error: model 'm' not found: Corral pulls other things\n",
    )


def test_an_error_in_the_middle_of_an_answer(corral: Corral, gateway: Gateway) -> None:
    gateway.answer(
        "POST /api/generate", Answer(lines=[*generated("The ")[:1], {"error": "model runner has unexpectedly stopped"}])
    )
    done = corral("run", "m", "hi")
    assert (done.code, done.out) == (1, "The ")
    assert done.err == "Error: model runner has unexpectedly stopped\n"


def test_ctrl_c_cancels_the_request(gateway: Gateway, environment: dict[str, str]) -> None:
    gateway.answer("POST /api/generate", Answer(lines=generated("Once upon")[:1], hang=True))
    with Terminal(["run", "m", "hi"], environment) as terminal:
        terminal.expect("Once upon")
        terminal.type("\x03")
        assert terminal.wait() == 130
    assert gateway.left.wait(timeout=5)
    assert "Traceback" not in terminal.output


class TestChat:
    @pytest.fixture(autouse=True)
    def chats(self, gateway: Gateway) -> None:
        gateway.answer("POST /api/generate", Answer(body={"done": True}))

    def test_every_turn_sends_the_history(self, gateway: Gateway, environment: dict[str, str]) -> None:
        gateway.answer("POST /api/chat", Answer(lines=chatted("Hi ", "Ada.")), Answer(lines=chatted("Bye.")))
        with Terminal(["run", "m", "--system", "Be kind."], environment) as terminal:
            terminal.expect(">>> ")
            terminal.type("I am Ada\r")
            terminal.expect("Hi Ada.")
            terminal.expect(">>> ", times=2)
            terminal.type('"""two\rlines"""\r')
            terminal.expect("Bye.")
            terminal.expect(">>> ", times=3)
            terminal.type("\x04")
            assert terminal.wait() == 0
        system = {"role": "system", "content": "Be kind."}
        first = [system, {"role": "user", "content": "I am Ada"}]
        second = [*first, {"role": "assistant", "content": "Hi Ada."}, {"role": "user", "content": "two\nlines"}]
        assert [body["messages"] for body in gateway.bodies("POST /api/chat")] == [first, second]

    def test_pasted_lines_are_one_message(self, gateway: Gateway, environment: dict[str, str]) -> None:
        gateway.answer("POST /api/chat", Answer(lines=chatted("Yes.")))
        with Terminal(["run", "m"], environment) as terminal:
            terminal.expect(">>> ")
            terminal.type("\x1b[200~first line\rsecond line\r\rthird\x1b[201~")
            terminal.expect("third")
            terminal.type("\r")
            terminal.expect("Yes.")
            terminal.expect(">>> ", times=2)
            terminal.type("\x04")
            assert terminal.wait() == 0
        [body] = gateway.bodies("POST /api/chat")
        assert body["messages"] == [{"role": "user", "content": "first line\nsecond line\n\nthird"}]

    def test_typed_messages_are_kept_for_the_next_chat(self, gateway: Gateway, environment: dict[str, str]) -> None:
        gateway.answer("POST /api/chat", Answer(lines=chatted("Yes.")))
        for typed in ("Remember me\r", "\x1b[A\r"):
            with Terminal(["run", "m"], environment) as terminal:
                terminal.expect(">>> ")
                terminal.type(typed)
                terminal.expect("Yes.")
                terminal.expect(">>> ", times=2)
                terminal.type("\x04")
                assert terminal.wait() == 0
        assert [body["messages"][0]["content"] for body in gateway.bodies("POST /api/chat")] == ["Remember me"] * 2
        history = Path(environment["XDG_STATE_HOME"]) / "corral" / "history"
        assert history.stat().st_mode & 0o777 == 0o600

    def test_ctrl_c_stops_the_answer_and_the_chat_continues(self, gateway: Gateway, environment: dict[str, str]) -> None:
        gateway.answer("POST /api/chat", Answer(lines=chatted("Once")[:1], hang=True), Answer(lines=chatted("Again.")))
        with Terminal(["run", "m"], environment) as terminal:
            terminal.expect(">>> ")
            terminal.type("tell\r")
            terminal.expect("Once")
            terminal.type("\x03")
            terminal.expect(">>> ", times=2)
            assert gateway.left.wait(timeout=5)
            terminal.type("x")  # its echo shows that the prompt is reading
            terminal.expect(">>> x")
            terminal.type("\x03")
            terminal.expect("Use Ctrl-D or /bye to leave.")
            terminal.expect(">>> ", times=3)
            terminal.type("go on\r")
            terminal.expect("Again.")
            terminal.expect(">>> ", times=4)
            terminal.type("/bye\r")
            assert terminal.wait() == 0
        assert gateway.bodies("POST /api/chat")[1]["messages"][1] == {"role": "assistant", "content": "Once"}

    def test_commands_and_errors(self, gateway: Gateway, environment: dict[str, str]) -> None:
        gateway.answer("POST /api/chat", Answer(503, {"error": "server busy"}), Answer(lines=chatted("Yes.")))
        with Terminal(["run", "m"], environment) as terminal:
            for count, (typed, shown) in enumerate(
                [
                    ("/?", "forget the conversation"),
                    ("/nonsense", "Unknown command '/nonsense'"),
                    ("hello", "Error: server busy"),
                    ("again", "Yes."),
                    ("/clear", "Conversation cleared."),
                    ("anew", "Yes."),
                ],
                start=1,
            ):
                terminal.expect(">>> ", times=count)
                terminal.type(f"{typed}\r")
                terminal.expect(shown)
            terminal.expect(">>> ", times=7)
            terminal.type("/bye\r")
            assert terminal.wait() == 0
        assert [len(body["messages"]) for body in gateway.bodies("POST /api/chat")] == [1, 1, 1]

    def test_a_model_without_a_template_completes_texts(self, gateway: Gateway, environment: dict[str, str]) -> None:
        gateway.answer("POST /api/show", Answer(body=SHOWN | {"capabilities": ["completion"]}))
        gateway.answer("POST /api/generate", Answer(body={"done": True}), Answer(lines=generated(" upon a time")))
        with Terminal(["run", "m"], environment) as terminal:
            terminal.expect("no chat template")
            terminal.expect(">>> ")
            terminal.type("Once\r")
            terminal.expect("upon a time")
            terminal.expect(">>> ", times=2)
            terminal.type("\x04")
            assert terminal.wait() == 0
        assert gateway.bodies("POST /api/generate")[1]["prompt"] == "Once"
