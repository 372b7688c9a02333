"""What lies in the models folder already: is it the file it should be?"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from comfyui.errors import StoppedError, WeightsError
from comfyui.weights.judge.formats import structure_check
from comfyui.weights.judge.safetensors_check import MAX_HEADER_BYTES
from comfyui.weights.judge.signatures import SNIFF_BYTES
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.transfer.buffers import PAGE_BYTES

READ_BYTES = 1024**2
_HASHED_AT_ONCE = min(4, os.cpu_count() or 1)


def judge_all(
    files: Sequence[tuple[str, Digest, Path]], check: Callable[[str, Digest, Path], None]
) -> dict[str, WeightsError]:
    """Check several files at once; returns what is wrong, by path. Files that do not exist are not asked about."""

    def judge(entry: tuple[str, Digest, Path]) -> WeightsError | None:
        try:
            check(*entry)
        except WeightsError as error:
            return error
        except OSError as error:
            return WeightsError(f"{entry[0]} cannot be read: {error.strerror}.", path=entry[0], seen=error.strerror)
        return None

    with ThreadPoolExecutor(_HASHED_AT_ONCE, thread_name_prefix="check") as pool:
        verdicts = list(pool.map(judge, files))
    return {path: verdict for (path, _, _), verdict in zip(files, verdicts, strict=True) if verdict is not None}


def full_check(stop: Event, *, allow_pickle: bool) -> Callable[[str, Digest, Path], None]:
    """A check of every byte: size, SHA-256 and structure."""

    def check(path: str, expected: Digest, file: Path) -> None:
        _check_size(path, expected, file)
        digest_of(path, file, stop, allow_pickle=allow_pickle, expected=expected)

    return check


def digest_of(path: str, file: Path, stop: Event, *, allow_pickle: bool, expected: Digest | None = None) -> Digest:
    """Read every byte of a weight file: its size in bytes and its SHA-256. `path` is what errors call it.

    Raises WeightsError for one that is not whole, or not `expected`, OSError, and StoppedError once `stop` is set.
    """
    verifier = Verifier(path, allow_pickle=allow_pickle, expected=expected)
    for chunk in file_chunks(file):
        if stop.is_set():
            raise StoppedError("The check of the weights was stopped.")
        verifier.feed(chunk)
    return verifier.finish()


def quick_check(*, allow_pickle: bool) -> Callable[[str, Digest, Path], None]:
    """A check of size and structure that reads no more than a header."""

    def check(path: str, expected: Digest, file: Path) -> None:
        _check_size(path, expected, file)
        structure = structure_check(path, allow_pickle=allow_pickle)
        if expected.size:
            with (
                file.open("rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
            ):
                # A structure check looks at the head and counts the rest: pages that nobody looks at are not read.
                head = 8 + min(int.from_bytes(view[:8], "little"), MAX_HEADER_BYTES)
                head = min(max(head, SNIFF_BYTES), len(view))
                with view[:head] as first, view[head:] as rest:
                    structure.feed(first)
                    structure.feed(rest)
        structure.finish()

    return check


def file_chunks(file: Path) -> Iterator[memoryview]:
    """A file's bytes, each piece good until the next; past the page cache where the disk allows it, for speed."""
    with mmap.mmap(-1, READ_BYTES) as memory, memoryview(memory) as buffer:
        try:
            handle = os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            handle = os.open(file, os.O_RDONLY)
        try:
            position = 0
            while count := os.preadv(handle, [buffer], position):
                position += count
                with buffer[:count] as chunk:
                    yield chunk
                if count % PAGE_BYTES:
                    # The end, or so near to it that an unaligned read would be refused.
                    os.close(handle)
                    handle = os.open(file, os.O_RDONLY)
        finally:
            os.close(handle)


def _check_size(path: str, expected: Digest, file: Path) -> None:
    size = file.stat().st_size
    if size != expected.size:
        raise WeightsError(
            f"{path} does not have its size: expected {expected.size} bytes, seen {size}.",
            path=path,
            expected=f"{expected.size} bytes",
            seen=f"{size} bytes",
        )
