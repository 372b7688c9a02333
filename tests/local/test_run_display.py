"""What a person sees while a prediction runs."""

from __future__ import annotations

import io
import os
import threading
from types import SimpleNamespace

import pytest

from comfyui.local import run_display
from comfyui.local.run_display import RunDisplay

STEP = " 65%|██████▌   | 5/8 Sampler, step 3 of 12"


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal, and tells when it has been written to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time of the display alone, in seconds: it stands until a test moves it on."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(run_display, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def shown(stream: io.StringIO) -> list[str]:
    """The lines of a terminal after what was written to it: each ends as it was drawn last."""
    return [line.split("\r\x1b[K")[-1] for line in stream.getvalue().split("\n")]


def test_elsewhere_than_on_a_terminal_everything_is_a_plain_line() -> None:
    stream = io.StringIO()
    with RunDisplay(stream, verbose=False) as display:
        display.say("Seed 7")
        display.log(STEP)
        display.log("Input files: input.png")
        display.log("[comfyui] [INFO] got prompt")
    assert stream.getvalue() == f"Seed 7\n{STEP}\nInput files: input.png\n"


def test_comfyuis_own_lines_are_there_for_those_who_ask() -> None:
    stream = io.StringIO()
    with RunDisplay(stream, verbose=True) as display:
        display.log("[comfyui] [INFO] got prompt")
    assert stream.getvalue() == "[comfyui] [INFO] got prompt\n"


def test_on_a_terminal_the_bar_moves_in_place_below_the_lines_and_is_gone_at_the_end(clock: SimpleNamespace) -> None:
    stream = FakeTerminal()
    with RunDisplay(stream, verbose=False) as display:
        display.log(STEP)
        assert shown(stream) == [f"   0 s  {STEP}"]
        display.say("something happened")
        assert shown(stream) == ["something happened", f"   0 s  {STEP}"]
        clock.now += 42.4
        display.log(" 75%|███████▌  | 6/8 Decode")
        assert shown(stream)[-1] == "  42 s   75%|███████▌  | 6/8 Decode"
    assert shown(stream) == ["something happened", ""]


def test_a_server_that_says_nothing_has_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_display, "TICK_S", 0.01)
    stream = FakeTerminal()
    with RunDisplay(stream, verbose=False):
        assert stream.written.wait(10)
    assert "   0 s  running" in stream.getvalue()


def test_the_bar_fits_into_one_line() -> None:
    stream = FakeTerminal()
    with RunDisplay(stream, verbose=False) as display:
        display.log(STEP + "x" * 200)
        assert len(shown(stream)[-1]) == int(os.environ["COLUMNS"]) - 1


@pytest.mark.parametrize(
    "line", ["\x1b[2Jgone", "\x1b]0;title\x07", "back\rward", "a\x9b31mb", "\x00", " 65%|██| 5/8 \x1b[31mSampler"]
)
def test_a_log_cannot_touch_the_terminal(line: str) -> None:
    stream = io.StringIO()
    with RunDisplay(stream, verbose=False) as display:
        display.log(line)
    assert stream.getvalue().removesuffix("\n").isprintable()
