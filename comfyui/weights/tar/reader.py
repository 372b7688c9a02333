"""Read a tar from its beginning, one block after another, missing nothing.

Python's tarfile takes a damaged header, and a tar cut between two members, for its end; a restore must not. So this
reads the blocks itself, leaves the parsing of a header block to tarfile, and knows at each byte where it is. GNU long
names and pax headers are understood (POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"), and
whatever is not a plain file is named.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Protocol, runtime_checkable

from comfyui.errors import WeightsError
from comfyui.weights.folders import MAX_PATH_BYTES
from comfyui.weights.tar.layout import BLOCK, padded

MAX_PAX_BYTES = 64 * 1024
"""The longest pax header that is read: names, times and owners take a few hundred bytes."""

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
}

_MAX_EXTENSIONS = 16
_TELLING = ("path", "size", "linkpath")


@dataclass(frozen=True)
class Member:
    """A member's header: its name, its size in bytes, and where its data begins in the tar.

    `oddity` says what it is when it is not a plain file ("a symbolic link"), else it is None. A folder has no data.
    """

    name: str
    size: int
    offset: int
    oddity: str | None
    is_folder: bool = False


@runtime_checkable
class Seekable(Protocol):
    """Chunks that can leave some out."""

    def seek(self, position: int) -> None:
        """Let the next chunk begin at this byte of the tar."""


class TarReader:
    """A tar as it comes in `chunks`. `where` names it in errors; `position` is the next byte's place in it.

    Every method takes as `expecting` the path to name in a WeightsError when the tar is cut or damaged there.
    """

    def __init__(self, chunks: Iterator[bytes], where: str) -> None:
        self._chunks = chunks
        self._where = where
        self._buffer = memoryview(b"")
        self._broken: Exception | None = None
        self.position = 0

    def peek(self, size: int = BLOCK) -> bytes:
        """The next `size` bytes, fewer at the end, without moving on."""
        while len(self._buffer) < size:
            chunk = self._next_chunk()
            if not chunk:
                break
            self._buffer = memoryview(bytes(self._buffer) + chunk)
        return bytes(self._buffer[:size])

    def next_member(self, expecting: str) -> Member | None:
        """Read the next member's header, or None at the block of zeros that ends a tar."""
        long_name: str | None = None
        pax: dict[str, str] = {}
        for _ in range(_MAX_EXTENSIONS):
            info = self._header(expecting)
            if info is None:
                if long_name is not None or pax:
                    self._fail(expecting, "a file after its long name", "the end of the tar")
                return None
            if info.type == tarfile.GNUTYPE_LONGNAME:
                self._bound(info.size, MAX_PATH_BYTES + 1, "a file name", expecting)
                long_name = self._all(info.size, expecting).rstrip(b"\0").decode(errors="replace")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
                self._bound(info.size, MAX_PAX_BYTES, "a pax header", expecting)
                records = self._pax(self._all(info.size, expecting), expecting)
                # A global header is for comments; one that names or measures files would be a trick.
                pax |= records if info.type != tarfile.XGLTYPE else {k: records[k] for k in records if k in _TELLING}
            else:
                return self._member(info, long_name, pax, expecting)
        raise self._error(expecting, "a file", f"{_MAX_EXTENSIONS} headers without one")

    def skip_to(self, position: int, expecting: str) -> None:
        """Move on to this byte of the tar, which must not lie behind."""
        if position < self.position:
            self._fail(expecting, f"bytes from {position} on", f"a place behind: byte {self.position}")
        here = self.position + len(self._buffer)
        if position > here and isinstance(self._chunks, Seekable):
            self._buffer, self.position = memoryview(b""), position
            self._chunks.seek(position)
        while self.position < position:
            self.take(position - self.position, position, expecting)

    def data(self, size: int, expecting: str) -> Iterator[memoryview]:
        """The next `size` bytes in pieces, then over the padding behind them."""
        end = self.position + size
        while self.position < end:
            yield self.take(end - self.position, end, expecting)
        while self.position < padded(end):
            self.take(padded(end) - self.position, padded(end), expecting)

    def check_zeros(self, expecting: str, limit: int) -> None:
        """After `next_member` gave None: nothing but zeros may follow, up to `limit` bytes of them."""
        start = self.position
        while rest := self.peek():
            if any(rest):
                self._fail(expecting, "zeros up to the end of the tar", f"other bytes behind byte {self.position}")
            self.take(len(rest), self.position + len(rest), expecting)
            if self.position - start > limit:
                self._fail(expecting, "the end of the tar", f"more than {limit} bytes of zeros")

    def take(self, limit: int, end: int, expecting: str) -> memoryview:
        """The next bytes, at least one and up to `limit`; `end` is the byte that is to be reached in the end."""
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
        return piece

    def _member(self, info: tarfile.TarInfo, long_name: str | None, pax: dict[str, str], expecting: str) -> Member:
        size = info.size
        if "size" in pax:
            size = int(pax["size"]) if pax["size"].isdecimal() else -1
        if size < 0:
            self._fail(expecting, "a member's size", pax.get("size", str(info.size))[:100])
        name = pax.get("path", info.name if long_name is None else long_name)
        oddity = None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            oddity = _KINDS.get(info.type, f"a member of type {info.type!r}")
        if any(key.startswith("GNU.sparse") for key in pax):
            oddity = _KINDS[tarfile.GNUTYPE_SPARSE]
        is_folder = info.type == tarfile.DIRTYPE and not size
        return Member(name, size, self.position, oddity, is_folder)

    def _pax(self, text: bytes, expecting: str) -> dict[str, str]:
        records: dict[str, str] = {}
        while text:
            digits, space, _ = text.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
            record = text[len(digits) + 1 : length]
            key, equals, value = record.partition(b"=")
            if not (space and equals and length <= len(text) and record.endswith(b"\n")):
                self._fail(expecting, "a pax header", "one that is damaged")
            records[key.decode(errors="replace")] = value[:-1].decode(errors="replace")
            text = text[length:]
        return records

    def _bound(self, size: int, limit: int, what: str, expecting: str) -> None:
        if not 0 <= size <= limit:
            self._fail(expecting, f"{what} of usual length", f"one of {size} bytes")

    def _all(self, size: int, expecting: str) -> bytes:
        return b"".join(self.data(size, expecting))

    def _header(self, expecting: str) -> tarfile.TarInfo | None:
        end = self.position + BLOCK
        block = b""
        while self.position < end:
            block += self.take(end - self.position, end, expecting)
        if not any(block):
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError as e:
            fault = f"a damaged one ({e})"
            raise self._error(expecting, f"a member's header at byte {end - BLOCK}", fault) from e

    def _fill(self) -> bool:
        self._buffer = memoryview(self._next_chunk())
        return bool(self._buffer)

    def _next_chunk(self) -> bytes:
        # A generator that has raised ends in silence when it is asked again, which would look like the tar's end.
        if self._broken is not None:
            raise self._broken
        try:
            return next(filter(None, self._chunks), b"")
        except Exception as error:
            self._broken = error
            raise

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
