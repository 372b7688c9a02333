"""The command line of scripts/replicate. Exit codes: 0 done, 1 failed with a reason, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from comfyui.errors import ComfyUIModelError
from comfyui.local.replicate.arguments import parse_arguments
from comfyui.local.replicate.environ import Service
from comfyui.local.terminal import Console
from comfyui.local.weights.cli import FAILED, INTERRUPTED, hear_ctrl_c
from comfyui.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = parse_arguments(arguments)
    with Console(as_json=options.json) as console, hear_ctrl_c(), ExitStack() as stack:
        try:
            settings, service = Settings.from_environ(), Service.from_environ()
        except ComfyUIModelError as error:
            console.error(str(error), _facts(error))
            return FAILED
        # Not before: the client reads the environment when it is imported, and fails with a traceback.
        from comfyui.local.replicate.commands import COMMANDS
        from comfyui.local.replicate.session import Session
        from comfyui.local.replicate.state import what_stays

        session = Session.begin(options, settings, service, console, stack)
        try:
            COMMANDS[options.command](session)
            return 0
        except KeyboardInterrupt:
            session.view.close()
            console.error(f"Stopped.{what_stays(options, settings)}", {"error": "Interrupted"})
            return INTERRUPTED
        except ComfyUIModelError as error:
            session.view.close()
            console.error(f"{_words(error)}{what_stays(options, settings)}", _facts(error))
        except BrokenPipeError:
            # Whoever read our output has gone; Python would complain about it once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            session.view.close()
            console.error(f"{_words(error)}{what_stays(options, settings)}", {"error": type(error).__name__})
    return FAILED


def _words(error: Exception) -> str:
    """An error with the sentences that were added to it on its way."""
    notes = " ".join(getattr(error, "__notes__", ()))
    return f"{str(error).rstrip('.')}. {notes}" if notes else str(error)


def _facts(error: ComfyUIModelError) -> dict[str, Any]:
    plain = {key: value for key, value in vars(error).items() if isinstance(value, str | int | float | None)}
    return {"error": type(error).__name__, **plain}


if __name__ == "__main__":
    sys.exit(main())
