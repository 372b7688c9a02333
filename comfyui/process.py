"""A child process that cannot be forgotten: started by an argv list, drained, watched, stopped with its group."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LAUNCH_SCRIPT = Path(__file__).with_name("launch.py")
KEPT_LINES = 60
KILLED_S = 10.0
"""How many of its last lines a process's log keeps for an error message."""
MAX_LINE_CHARS = 8192
"""A longer line is handed on in pieces, so that a program that never ends its line cannot fill our memory."""

ANSI_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours and cursor moves (ECMA-48 CSI): noise in a log file or an error message."""


class LineLog:
    """The lines a process prints: each goes at once to who listens, or else to `sink`; the last ones are kept.

    A listener takes the lines over because it prints them itself: Cog counts as a prediction's log only what is
    printed inside that prediction. Safe to use from any thread.
    """

    def __init__(self, sink: Callable[[str], None]) -> None:
        self._sink = sink
        self._last: deque[str] = deque(maxlen=KEPT_LINES)
        self._listeners: set[queue.SimpleQueue[str]] = set()
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Take one line, without its line end."""
        with self._lock:
            self._last.append(line)
            for listener in self._listeners:
                listener.put(line)
            unheard = not self._listeners
        if unheard:
            self._sink(line)

    def last_lines(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        with self._lock:
            return tuple(self._last)

    @contextmanager
    def listen(self) -> Iterator[queue.SimpleQueue[str]]:
        """A queue that gets every line printed from now until the end of the block."""
        listener: queue.SimpleQueue[str] = queue.SimpleQueue()
        with self._lock:
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)


class ManagedProcess:
    """A Python program that runs in its own process group and dies with us.

    `program` is what follows `python` on a command line: a script or `-m module`, then its arguments. stdout and
    stderr go to `log` line by line (a carriage return ends a line too: progress bars use it).
    """

    def __init__(self, program: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: LineLog) -> None:
        self.log = log
        self._stopping = threading.Lock()
        self._given_up = False
        watch_read, self._watch_write = os.pipe()
        try:
            self._popen = subprocess.Popen(
                [sys.executable, str(LAUNCH_SCRIPT), str(watch_read), *program],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                pass_fds=(watch_read,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._watch_write)
            raise
        finally:
            os.close(watch_read)
        self._drain = threading.Thread(target=self._drain_output, name=f"drain-{self._popen.pid}", daemon=True)
        self._drain.start()

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._popen.pid

    def returncode(self) -> int | None:
        """None while it runs; then its exit code, negative for the signal that ended it.

        One that SIGKILL did not end in time counts as ended by it.
        """
        returncode = self._popen.poll()
        return -signal.SIGKILL if returncode is None and self._given_up else returncode

    def ended_lines(self) -> tuple[str, ...]:
        """The last lines of a process that has ended, read to the very end of its output."""
        self._drain.join(timeout=5)
        return self.log.last_lines()

    def stop(self, grace_s: float = 5.0) -> int:
        """Ask the group to end (SIGTERM), then make it (SIGKILL) after `grace_s` seconds; returns the exit code.

        After the process ended by itself, what is left of its group is killed. Calling it again, or from two threads,
        is harmless: nobody is signalled twice, for by then the group's number may be another's.
        """
        with self._stopping:
            if self._watch_write < 0:
                return self.returncode() or 0
            if self._popen.poll() is None:
                self._signal_group(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self._popen.wait(timeout=grace_s)
            self._signal_group(signal.SIGKILL)
            # A process that is stuck in the kernel, in the driver of a GPU say, ends when the kernel lets it.
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=KILLED_S)
            self._given_up = self._popen.poll() is None
            returncode = self.returncode() or 0
            os.close(self._watch_write)
            self._watch_write = -1
        self._drain.join(timeout=5)
        return returncode

    def _signal_group(self, signum: int) -> None:
        try:
            os.killpg(self._popen.pid, signum)
        except (ProcessLookupError, PermissionError):
            # The whole group is gone already (macOS answers EPERM for a group of zombies).
            return

    def _drain_output(self) -> None:
        pipe = self._popen.stdout
        assert pipe is not None  # noqa: S101 - Popen was given stdout=PIPE
        with pipe:
            while line := pipe.readline(MAX_LINE_CHARS):
                if text := ANSI_SEQUENCE.sub("", line).rstrip():
                    self.log.add(text)
