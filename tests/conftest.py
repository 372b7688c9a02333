"""What every test stands on: the socket guard, and settings that point into a temporary folder."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

GUARD_DIR = Path(__file__).parent / "guard"
sys.path.insert(0, str(GUARD_DIR))
import loopback_only  # noqa: E402

loopback_only.install()
os.environ["PYTHONPATH"] = os.pathsep.join([str(GUARD_DIR), *filter(None, [os.environ.get("PYTHONPATH")])])
# For all that the tests start, ComfyUI above all. On tiny weights a second thread gains little, and threads that spin
# while they wait for each other take the cores away from the tests beside them: pictures took up to ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

import hypothesis  # noqa: E402

from comfyui.settings import Settings  # noqa: E402

# No property here is about time, and one stall of a busy machine takes longer than Hypothesis' deadline of 200 ms.
# In CI the cases are the same each time: no change fails by one that has nothing to do with it.
hypothesis.settings.register_profile(
    "ours",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("ours")


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings whose models and data live in this test's folder; loopback URLs allowed; more by keyword."""

    def make(**changes: object) -> Settings:
        base = Settings.from_environ({"ALLOW_PRIVATE_URLS": "1", "COMFYUI_DIR": os.environ.get("COMFYUI_DIR", "")})
        base = replace(base, models_dir=tmp_path / "models", data_dir=tmp_path / "data")
        return replace(base, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """The plain settings of a test."""
    return make_settings()


@pytest.fixture
def nobody() -> Iterator[str]:
    """A URL where nobody listens, nor will: a socket that does not listen keeps the port."""
    with socket.socket() as keeper:
        keeper.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{keeper.getsockname()[1]}"


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread as a terminal would, whoever calls it; also where the tests run in the background.

    Python prints and forgets an exception in a callback of the garbage collector, a KeyboardInterrupt, too.
    Hypothesis installs such a callback, for good: it is away meanwhile.
    """
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    gc.callbacks.extend(callbacks)
