"""Writes at any place of a file, past the page cache or not."""

from __future__ import annotations

import errno
import itertools
import os
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from comfyui.weights.transfer.buffers import PAGE_BYTES, Buffer
from comfyui.weights.transfer.target import Target, TargetClosedError, place_in

SHM = Path("/dev/shm")
EDGES = (0, 1, 511, 512, 4095, 4096, 4097, 8191, 8192, 8193, 12_288, 20_000)


@pytest.fixture(params=["disk", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path / "file"
        return
    if not SHM.is_dir():
        pytest.skip("there is no /dev/shm here")
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        yield Path(folder) / "file"


def placed(data: bytes, offset: int) -> memoryview:
    view = place_in(Buffer(len(data)).view, offset, len(data))
    view[:] = data
    return view


@pytest.mark.parametrize("aligned", [True, False])
def test_every_edge(path: Path, aligned: bool) -> None:
    expected = bytearray(random.Random(1).randbytes(64_000))
    path.write_bytes(expected)
    number = 0
    with closing(Target(path)) as target:
        for offset in EDGES:
            for length in EDGES:
                number += 1
                data = random.Random(number).randbytes(length)
                view = placed(data, offset if aligned else offset + 100)
                target.write(offset, view)
                expected[offset : offset + length] = data
                back = bytearray(length)
                target.read_into(offset, memoryview(back))
                assert back == data, (offset, length)
        assert path.read_bytes() == expected


def test_neighbours_in_one_page_at_once(path: Path) -> None:
    """Pieces whose ragged ends share pages, from many threads: no end overwrites another."""
    choose = random.Random(2)
    expected = choose.randbytes(2_000_000)
    cuts = sorted({0, len(expected), *(choose.randrange(len(expected)) for _ in range(300))})
    spans = list(itertools.pairwise(cuts))
    choose.shuffle(spans)
    with closing(Target(path)) as target:
        target.allocate(len(expected))

        def write(mine: list[tuple[int, int]]) -> None:
            for start, end in mine:
                target.write(start, placed(expected[start:end], start))

        threads = [threading.Thread(target=write, args=(spans[number::8],)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        target.sync()
    assert path.read_bytes() == expected


def test_a_disk_that_takes_no_direct_write_after_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, direct = os.pwrite, []
    with closing(Target(path)) as target:
        if target._direct_fd is None:
            pytest.skip("there is no direct I/O here")

        def refused(fd: int, data: memoryview, offset: int) -> int:
            if fd == target._direct_fd:
                direct.append(len(data))
                if len(direct) % 3 == 1:
                    raise OSError(errno.EINVAL, "no")
                return pwrite(fd, data[:PAGE_BYTES] if len(direct) % 3 == 2 else data[:700].tobytes(), offset)
            return pwrite(fd, data, offset)

        # The odd one: a write that stops off a page's edge cannot really happen here, so that call is buffered.
        def written(fd: int, data: memoryview, offset: int) -> int:
            if fd == target._direct_fd and len(direct) % 3 == 2:
                direct.append(len(data))
                return pwrite(target.fileno(), data[:700], offset)
            return refused(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", written)
        data = random.Random(3).randbytes(50_000)
        for offset in (0, 4096, 100_000):
            target.write(offset, placed(data, offset))
            back = bytearray(len(data))
            target.read_into(offset, memoryview(back))
            assert back == data
    assert len(direct) > 3


def test_a_full_disk_is_an_error_and_not_a_silence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    with closing(Target(path)) as target:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="no room"):
            target.write(0, placed(bytes(10_000), 0))
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="no room"):
            target.allocate(10_000)


def test_reading_past_the_end(path: Path) -> None:
    with closing(Target(path)) as target:
        target.write(0, placed(b"abc", 0))
        with pytest.raises(OSError, match="the file ends at 3"):
            target.read_into(0, memoryview(bytearray(4)))


def test_close_waits_for_writers_and_refuses_later_ones(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, began, go_on = os.pwrite, threading.Event(), threading.Event()

    def slow(fd: int, data: memoryview, offset: int) -> int:
        began.set()
        assert go_on.wait(10)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    target = Target(path)
    writer = threading.Thread(target=target.write, args=(0, placed(b"x" * 10_000, 0)))
    writer.start()
    assert began.wait(10)
    closer = threading.Thread(target=target.close)
    closer.start()
    closer.join(0.1)
    assert closer.is_alive(), "closed under a writer's hands"
    with pytest.raises(TargetClosedError):
        target.write(0, placed(b"late", 0))
    go_on.set()
    closer.join(10)
    writer.join(10)
    assert path.read_bytes() == b"x" * 10_000
    target.close()
    with pytest.raises(TargetClosedError):
        target.sync()
    with pytest.raises(TargetClosedError):
        target.truncate(0)
