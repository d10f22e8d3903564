"""Entry point of the command. Every failure becomes one line on stderr and an exit code.

Exit codes: 0 success, 1 error, 130 Ctrl-C, 141 broken pipe.
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
from services.cli.run import with_think_values

INTERRUPTED = 130
BROKEN_PIPE = 141


def main() -> None:
    sys.exit(_run())


def _run() -> int:
    try:
        code: object = app(with_think_values(sys.argv[1:]), prog_name="corral", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        if not message:  # without a command, the help has already been printed
            return 0
        err.print(f"Error: {message}")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout again at exit, which would raise a second BrokenPipeError.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 the user gets one line; the traceback goes into a file
        err.print(f"Error: {type(error).__name__}: {error}; this is a bug in Corral, the traceback is in {_keep_traceback()}")
        return 1
    return code if isinstance(code, int) else 0


def _keep_traceback() -> Path:
    path = state_folder() / "crash.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(traceback.format_exc())
    return path


if __name__ == "__main__":
    main()
