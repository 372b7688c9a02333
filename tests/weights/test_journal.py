"""What a journal says, and what it must never say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from comfyui.weights.tar import journal
from comfyui.weights.tar.journal import Journal, JournalFile

FILES = (
    JournalFile("loras/a.safetensors", "https://example.com/a", 10_000, 1024, '"v1"', None),
    JournalFile("loras/b.safetensors", "https://example.com/b", 10_000, 12_288, None, "0" * 64),
    JournalFile("loras/c.safetensors", "https://example.com/c", 10_000, 24_576, None, None),
)


class Log:
    """A journal whose syncs and lines are remembered in their order."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.events: list[str] = []
        write = os.write

        def noted(fd: int, data: bytes) -> int:
            self.events.append(data.decode().strip())
            return write(fd, data)

        monkeypatch.setattr(os, "write", noted)

    def open(self, files: tuple[JournalFile, ...] = FILES, piece_bytes: int = 4096) -> Journal:
        return Journal(self.path, files, piece_bytes, lambda: self.events.append("sync"))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(journal, "SYNC_EVERY_S", 0.0)
    return Log(tmp_path / "journal", monkeypatch)


def written(log: Log, *pieces: tuple[int, int]) -> None:
    one = log.open()
    assert one.begin(usable=True) == {}
    for file, piece in pieces:
        one.add(file, piece)
    one.close()


def test_it_goes_on(log: Log) -> None:
    written(log, (0, 0), (0, 2), (1, 1), (2, 0))
    again = log.open()
    # c has nothing that says which version of it that was.
    assert again.begin(usable=True) == {
        "loras/a.safetensors": frozenset({0, 2}),
        "loras/b.safetensors": frozenset({1}),
    }
    again.add(0, 1)
    again.close()
    assert log.open().begin(usable=True)["loras/a.safetensors"] == frozenset({0, 1, 2})


def test_a_line_is_written_only_after_a_sync(log: Log) -> None:
    written(log, (0, 0), (1, 1))
    assert log.events[1:] == ["sync", "[[0, 0]]", "sync", "[[1, 1]]"]


def test_a_sync_that_fails_leaves_no_line(log: Log) -> None:
    def fail() -> None:
        raise OSError("the disk is gone")

    one = Journal(log.path, FILES, 4096, fail)
    one.begin(usable=True)
    with pytest.raises(OSError, match="the disk is gone"):
        one.add(0, 0)
    one.close()
    assert log.open().begin(usable=True)["loras/a.safetensors"] == frozenset()


def test_between_syncs_pieces_wait(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    one = log.open()
    one.begin(usable=True)
    monkeypatch.setattr(journal, "SYNC_EVERY_S", 1e9)
    one.add(0, 0)
    one.add(0, 1)
    assert log.events[1:] == []
    monkeypatch.setattr(journal, "SYNC_EVERY_S", 0.0)
    one.add(1, 0)
    assert log.events[1:] == ["sync", "[[0, 0], [0, 1], [1, 0]]"]
    one.close()


CHANGES: list[Callable[[JournalFile], JournalFile]] = [
    lambda file: replace(file, validator='"v2"'),
    lambda file: replace(file, validator=None),
    lambda file: replace(file, sha256="1" * 64),
    lambda file: replace(file, size=file.size + 1),
    lambda file: replace(file, offset=file.offset + 512),
    lambda file: replace(file, url="https://example.com/other"),
    lambda file: replace(file, path="loras/other.safetensors"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_another_plan(log: Log, change: Callable[[JournalFile], JournalFile]) -> None:
    written(log, (0, 0), (1, 0))
    assert log.open((change(FILES[0]), *FILES[1:])).begin(usable=True) == {}
    # The old one is gone for good.
    assert log.open().begin(usable=True) == {}


def test_other_pieces_a_file_more_and_an_unusable_part(log: Log) -> None:
    for files, piece_bytes, usable in ((FILES, 8192, True), (FILES[:2], 4096, True), (FILES, 4096, False)):
        log.path.unlink(missing_ok=True)
        written(log, (0, 0))
        assert log.open(files, piece_bytes).begin(usable=usable) == {}


def test_what_is_forgotten_stays_forgotten(log: Log) -> None:
    one = log.open()
    one.begin(usable=True)
    one.add(0, 0)
    one.add(1, 0)
    one.forget(0)
    one.add(0, 1)
    one.add(1, 1)
    one.close()
    assert log.open().begin(usable=True) == {
        "loras/a.safetensors": frozenset(),
        "loras/b.safetensors": frozenset({0, 1}),
    }


def test_after_close_nothing_is_written(log: Log) -> None:
    one = log.open()
    one.begin(usable=True)
    one.close()
    one.close()
    # The number of the file that was closed belongs to somebody else now.
    with (log.path.parent / "other").open("w+") as other:
        one.add(0, 0)
        one.forget(0)
        assert other.read() == ""


def test_what_follows_a_line_that_was_cut_counts(log: Log) -> None:
    written(log, (0, 0), (0, 1))
    log.path.write_bytes(log.path.read_bytes()[:-3])
    again = log.open()
    assert again.begin(usable=True)["loras/a.safetensors"] == frozenset({0})
    again.add(0, 7)
    again.close()
    assert log.open().begin(usable=True)["loras/a.safetensors"] == frozenset({0, 7})


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.binary(max_size=20))
def test_a_line_that_was_cut(tmp_path: Path, cut: int, more: bytes) -> None:
    """Whatever a kill left of the journal: what it says is something that was said, and it can be gone on with."""
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    one = Journal(path, FILES, 4096, lambda: None)
    one.begin(usable=True)
    pieces = {(0, piece) for piece in range(9)} | {(1, 5)}
    one._append([])
    for entry in sorted(pieces):
        one._append([entry])
    one.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut] + more.replace(b"[", b"").replace(b"\n", b""))
    known = Journal(path, FILES, 4096, lambda: None)
    found = known.begin(usable=True)
    known.close()
    assert {(0, piece) for piece in found.get("loras/a.safetensors", ())} <= pieces
    again = Journal(path, FILES, 4096, lambda: None)
    assert again.begin(usable=True) == found or not found
    again.close()
    json.loads(path.read_bytes().split(b"\n")[0])
