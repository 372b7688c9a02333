"""What is shown while weights move: a bar where one can be drawn, lines and JSON elsewhere."""

from __future__ import annotations

import io
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.local import terminal
from comfyui.local.terminal import Bar, Console, JsonLines, can_draw, printable, printable_line

FILES = [("loras/a.safetensors", 3_000_000), ("vae/b.safetensors", 1_000_000)]


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(bar: Bar, out: io.StringIO) -> str:
    """What stands in the bar's line now."""
    bar._bar.refresh()
    return out.getvalue().rpartition("\r")[2]


def test_the_bar_shows_how_far_it_is_how_fast_and_what_is_moving() -> None:
    out = FakeTerminal()
    bar = Bar(out)
    bar.begin("baking", FILES)
    assert out.getvalue().startswith("baking 2 files, 4.0 MB\n")
    bar.advance("loras/a.safetensors", 2_000_000)
    bar.advance("vae/b.safetensors", 500_000)
    line = drawn(bar, out)
    assert "2.50MB of 4.00MB" in line
    assert "B/s" in line
    assert "left" in line
    assert line.rstrip().endswith("loras/a.safetensors and 1 more")
    bar.advance("loras/a.safetensors", 1_000_000)
    bar.proven("loras/a.safetensors", 3_000_000, "ab" * 32)
    bar.advance("vae/b.safetensors", -500_000)
    line = drawn(bar, out)
    assert "3.00MB of 4.00MB" in line
    assert line.rstrip().endswith("left: vae/b.safetensors")
    assert "loras/a.safetensors: 3.0 MB, sha256 abababababab…\n" in out.getvalue()
    bar.end()
    assert out.getvalue().splitlines()[-1].startswith("baking took")


def test_a_line_said_while_the_bar_is_there_gets_a_line_of_its_own() -> None:
    out = FakeTerminal()
    bar = Bar(out)
    bar.begin("baking", FILES)
    bar.say("something happened")
    assert "\rsomething happened\n" in out.getvalue()
    bar.end()


def test_a_total_that_nobody_knows_makes_a_bar_without_an_end() -> None:
    out = FakeTerminal()
    bar = Bar(out)
    bar.begin("fetching", [("loras/a.safetensors", None)])
    bar.advance("loras/a.safetensors", 2_000_000)
    line = drawn(bar, out)
    assert "2.00MB, " in line
    assert "left" not in line
    assert "loras/a.safetensors" in line
    bar.end()


def test_a_closed_bar_leaves_its_line_empty_and_may_be_closed_again() -> None:
    out = FakeTerminal()
    bar = Bar(out)
    bar.begin("baking", FILES)
    bar.advance("loras/a.safetensors", 1)
    bar.close()
    bar.close()
    assert out.getvalue().rpartition("\n")[2].split("\r")[-1].strip() == ""
    bar.advance("loras/a.safetensors", 1)
    bar.end()


def test_many_threads_may_advance_the_bar() -> None:
    out = FakeTerminal()
    bar = Bar(out)
    bar.begin("baking", [("loras/a.safetensors", 80_000)])

    def work() -> None:
        for _ in range(1000):
            bar.advance("loras/a.safetensors", 10)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "80.0kB of 80.0kB" in drawn(bar, out)
    bar.end()


def test_the_bar_starts_no_thread() -> None:
    bar = Bar(FakeTerminal())
    bar.begin("baking", FILES)
    assert not [thread for thread in threading.enumerate() if type(thread).__module__.startswith("tqdm")]
    bar.end()


def test_json_lines_say_each_event_and_throttle_the_frequent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    lines = JsonLines(out)
    lines.begin("baking", [*FILES, ("loras/c.safetensors", None)])
    for _ in range(100):
        lines.advance("loras/a.safetensors", 10)
    monkeypatch.setattr(terminal, "EVENT_EVERY_S", 0.0)
    lines.advance("loras/a.safetensors", 10)
    lines.say('a "sentence"\nof two lines')
    lines.proven("loras/a.safetensors", 3_000_000, "ab" * 32)
    lines.end()
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["begin", "advance", "note", "proven", "end"]
    begin, advance, note, proven, end = events
    assert begin["bytes"] is None
    assert begin["files"][0] == {"path": "loras/a.safetensors", "size": 3_000_000}
    assert (advance["done"], advance["path"]) == (1010, "loras/a.safetensors")
    assert note["text"] == 'a "sentence"\nof two lines'
    assert proven == {"event": "proven", "path": "loras/a.safetensors", "size": 3_000_000, "sha256": "ab" * 32}
    assert end["done"] == 1010


def test_people_get_results_on_stdout_and_everything_else_on_stderr() -> None:
    out, err = io.StringIO(), io.StringIO()
    with Console(as_json=False, out=out, err=err) as console:
        console.listener.say("a sentence")
        console.listener.begin("baking", FILES)
        console.result(["the tar"], {"ok": True})
        console.problem("WRONG", {})
        console.error("what failed", {"error": "WeightsError"})
    assert out.getvalue() == "the tar\nWRONG\n"
    assert err.getvalue() == "a sentence\nbaking 2 files, 4.0 MB\n\nwhat failed\n"


def test_programs_get_all_of_it_as_json_on_stdout() -> None:
    out, err = io.StringIO(), FakeTerminal()
    with Console(as_json=True, out=out, err=err) as console:
        console.listener.say("a sentence")
        console.result(["the tar"], {"ok": True})
        console.problem("WRONG", {"path": "loras/a.safetensors"})
        console.error("what failed", {"error": "WeightsError"})
    assert err.getvalue() == ""
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"event": "note", "text": "a sentence"},
        {"event": "result", "ok": True},
        {"event": "problem", "path": "loras/a.safetensors"},
        {"event": "error", "error": "WeightsError", "message": "what failed"},
    ]


def test_an_error_takes_the_bar_away_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    err = FakeTerminal()
    with Console(as_json=False, out=io.StringIO(), err=err) as console:
        assert isinstance(console.listener, Bar)
        console.listener.begin("baking", FILES)
        console.listener.advance("loras/a.safetensors", 1)
        console.error("what failed", {})
    last = err.getvalue().rpartition("%")[2]
    assert last.endswith("\r\nwhat failed\n")


@pytest.mark.parametrize(
    ("stream", "environ", "drawable"),
    [
        (FakeTerminal(), {"TERM": "xterm-256color"}, True),
        (FakeTerminal(), {"TERM": "dumb"}, False),
        (FakeTerminal(), {}, False),
        (io.StringIO(), {"TERM": "xterm-256color"}, False),
    ],
)
def test_a_bar_is_drawn_only_where_a_line_can_be_drawn_over(
    stream: io.StringIO, environ: dict[str, str], drawable: bool
) -> None:
    assert can_draw(stream, environ) is drawable


def test_printable_text_stays_as_it_is() -> None:
    assert printable("two\nlines\tänd ünï ██ 狐") == "two\nlines\tänd ünï ██ 狐"
    assert printable("\x1b[31mred\x1b[0m \x07bell") == "red  bell"


@given(st.text())
def test_no_text_from_elsewhere_moves_the_cursor(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in printable(text))
    assert printable_line(text).isprintable()
