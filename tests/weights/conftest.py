"""What the tests of the weights room share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.weights.file_server import FileServer


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A file server of this test's own."""
    with FileServer() as running:
        yield running


@pytest.fixture
def other_server() -> Iterator[FileServer]:
    """Another one, on another port: another origin."""
    with FileServer() as running:
        yield running


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread as a terminal would, whoever calls it; also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    signal.signal(signal.SIGINT, before)
