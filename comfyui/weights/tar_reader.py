"""Read a tar of weights from a stream, one block after another, missing nothing.

Python's tarfile takes a damaged header, and a tar cut between two members, for its end; a restore must not. So this
reads the blocks itself, leaves the parsing of a header to tarfile, and knows at each byte where it is. Only what
`archive` writes is understood: plain files and GNU long names.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from comfyui.errors import WeightsError
from comfyui.weights.archive import BLOCK, RECORD, padded
from comfyui.weights.folders import MAX_PATH_BYTES

_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CONTTYPE: "a contiguous file",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGLINK: "a link with a long name",
    tarfile.XHDTYPE: "a pax header",
    tarfile.XGLTYPE: "a pax header",
}


@dataclass(frozen=True)
class Member:
    """A member's header: its name, its size in bytes, and where its data begins in the tar.

    `oddity` says what it is when it is not a plain file ("a symbolic link"), else it is None.
    """

    name: str
    size: int
    offset: int
    oddity: str | None


class TarReader:
    """A tar as it comes in `chunks`. `where` names it in errors; `position` is the next byte's place in it.

    Every method takes as `expecting` the path to name in a WeightsError when the tar is cut or damaged there.
    """

    def __init__(self, chunks: Iterator[bytes], where: str) -> None:
        self._chunks = chunks
        self._where = where
        self._buffer = memoryview(b"")
        self.position = 0

    def peek(self) -> bytes:
        """The next block's bytes, fewer at the end, without moving on."""
        while len(self._buffer) < BLOCK:
            chunk = next(filter(None, self._chunks), b"")
            if not chunk:
                break
            self._buffer = memoryview(bytes(self._buffer) + chunk)
        return bytes(self._buffer[:BLOCK])

    def next_member(self, expecting: str) -> Member | None:
        """Read the next member's header, or None at the block of zeros that ends a tar."""
        info = self._header(expecting)
        if info is None:
            return None
        name = info.name
        if info.type == tarfile.GNUTYPE_LONGNAME:
            if info.size > MAX_PATH_BYTES + 1:
                self._fail(expecting, "a file name of usual length", f"one of {info.size} bytes")
            name = b"".join(self.data(info.size, expecting)).rstrip(b"\0").decode(errors="replace")
            info = self._header(expecting)
            if info is None:
                self._fail(expecting, "a file after its long name", "the end of the tar")
        plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        oddity = None if plain else _KINDS.get(info.type, f"a member of type {info.type!r}")
        return Member(name, info.size, self.position, oddity)

    def data(self, size: int, expecting: str) -> Iterator[bytes]:
        """The next `size` bytes in pieces, then over the padding behind them."""
        end = self.position + size
        while self.position < end:
            yield self._take(end - self.position, end, expecting)
        while self.position < padded(end):
            self._take(padded(end) - self.position, padded(end), expecting)

    def finish(self, expecting: str) -> None:
        """After `next_member` gave None: check that the tar ends here as a whole one does."""
        end = padded(self.position + BLOCK, RECORD)
        while self.position < end:
            if any(self._take(end - self.position, end, expecting)):
                self._fail(expecting, "zeros up to the end of the tar", "other bytes")
        if self._buffer or self._fill():
            self._fail(expecting, f"the end of the tar at {end} bytes", "more bytes")

    def _header(self, expecting: str) -> tarfile.TarInfo | None:
        end = self.position + BLOCK
        block = b""
        while self.position < end:
            block += self._take(end - self.position, end, expecting)
        if not any(block):
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError as e:
            fault = f"a damaged one ({e})"
            raise self._error(expecting, f"a member's header at byte {end - BLOCK}", fault) from e

    def _take(self, limit: int, end: int, expecting: str) -> bytes:
        """Up to `limit` bytes, at least one."""
        if not self._buffer and not self._fill():
            raise WeightsError(
                f"{self._where} is cut: it ends after {self.position} bytes, in or before {expecting}, which needs "
                f"bytes up to {end}. Fetch it again or bake it again.",
                path=expecting,
                expected=f"at least {end} bytes",
                seen=f"{self.position} bytes",
            )
        piece, self._buffer = self._buffer[:limit], self._buffer[limit:]
        self.position += len(piece)
        return bytes(piece)

    def _fill(self) -> bool:
        self._buffer = memoryview(next(filter(None, self._chunks), b""))
        return bool(self._buffer)

    def _fail(self, expecting: str, expected: str, seen: str) -> NoReturn:
        raise self._error(expecting, expected, seen)

    def _error(self, expecting: str, expected: str, seen: str) -> WeightsError:
        return WeightsError(
            f"{self._where} is damaged at {expecting}: expected {expected}, seen {seen}. "
            "Fetch it again or bake it again.",
            path=expecting,
            expected=expected,
            seen=seen,
        )
