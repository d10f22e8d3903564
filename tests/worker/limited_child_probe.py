"""The entry point of the children in test_limited_process. Each request names an action."""

import os
import signal
import time
from typing import Any

from services.protocol.errors import BadRequest, InvalidModelFile
from services.worker.limited_child import serve


def _handle(request: list[Any]) -> Any:  # noqa: C901 - a list of cases
    match request:
        case ["pid"]:
            return os.getpid()
        case ["niceness"]:
            return os.nice(0)
        case ["oom score"]:
            with open("/proc/self/oom_score_adj") as score:
                return int(score.read())
        case ["environment"]:
            return sorted(os.environ)
        case ["descriptors"]:
            paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            return [os.readlink(path) for path in paths if os.path.lexists(path)]
        case ["echo", value]:
            return value
        case ["burn"]:
            while True:
                pass
        case ["sleep", seconds, path]:
            open(path, "wb").close()
            time.sleep(seconds)
            return "slept"
        case ["allocate", size]:
            return len(b"x" * size)
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["abort"]:
            os.abort()
        case ["exit", code]:
            os._exit(code)
        case ["refuse"]:
            raise BadRequest("not this", field="that")
        case ["print"]:
            print("not a reply")  # noqa: T201 - what the test is about
            return "said"
    raise ValueError("a bug")


def _start(setup: str) -> tuple[str, Any]:
    if setup == "refuse":
        raise InvalidModelFile("no such setup")
    return setup.upper(), _handle


if __name__ == "__main__":
    serve(str, list[Any], _start)
