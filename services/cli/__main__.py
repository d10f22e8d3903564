"""The command's entry: every failure becomes one line on stderr and an exit code.

0 done; 1 an error; 130 Ctrl-C; 141 whoever read the output is gone.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import typer

from services.cli.app import app
from services.cli.config import state_folder
from services.cli.console import err

INTERRUPTED = 130
BROKEN_PIPE = 141


def main() -> None:
    sys.exit(_run())


def _run() -> int:
    try:
        code: object = app(standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        # The help that a bare `corral` prints has no message of its own.
        if message := " ".join(error.format_message().split()):
            err.print(f"Error: {message}")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 a person gets one line; whoever mends it gets the traceback
        err.print(f"Error: {type(error).__name__}: {error}; this should not happen, the details are in {_keep_traceback()}")
        return 1
    return code if isinstance(code, int) else 0


def _keep_traceback() -> Path:
    path = state_folder() / "crash.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(traceback.format_exc())
    return path


if __name__ == "__main__":
    main()
