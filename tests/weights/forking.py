"""A process that has imported what it needs and forks a child for each order: hundreds of kills in seconds.

`python -m tests.weights.forking` reads an order from each line of its input (a JSON object), forks, and answers with
the child's exit status when it is gone; the child bakes as the order says.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from comfyui.settings import Settings
from comfyui.weights.bake.bake import bake
from comfyui.weights.listener import PlainLines
from comfyui.weights.sources import NO_TOKENS
from comfyui.weights.tar import journal
from comfyui.weights.transfer.pump import TransferOptions

PROJECT = Path(__file__).parents[2]


class ForkingProcess:
    """Runs orders in children of one process; use it as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.weights.forking"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()

    def run(self, *, kill_after_s: float | None = None, **order: Any) -> int:
        """Follow an order in a child, killed after a while; returns its exit status, negative for a signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kill_after_s": kill_after_s, "order": order}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def follow(order: dict[str, Any]) -> None:
    """Bake: `request`, `out`, `piece_bytes`, `sync_every_s`; what is told goes to the file `told`."""
    journal.SYNC_EVERY_S = order["sync_every_s"]
    settings = Settings.from_environ({"ALLOW_PRIVATE_URLS": "1", "DATA_DIR": str(Path(order["out"]).parent)})
    options = TransferOptions(connections=4, piece_bytes=order["piece_bytes"])
    with Path(order["told"]).open("a", buffering=1) as told:
        listener = PlainLines(lambda line: print(line, file=told))
        bake(order["request"], Path(order["out"]), settings, NO_TOKENS, listener, resume=True, options=options)


def main() -> None:
    for line in sys.stdin:
        given = json.loads(line)
        child = os.fork()
        if not child:
            try:
                follow(given["order"])
            except BaseException:  # noqa: BLE001 - the child must never return into the loop
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ended = os.pidfd_open(child)
        if given["kill_after_s"] is not None and not select.select([ended], [], [], given["kill_after_s"])[0]:
            os.kill(child, signal.SIGKILL)
        os.close(ended)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
