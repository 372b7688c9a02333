"""A tar that bake made: its manifest says which bytes lie where, and the tar's own headers must not contradict it.

The bytes are proven by their SHA-256. Nothing proves the manifest's names but the headers, which have checksums of
their own: a file whose header is whole and says something else is refused, even if its bytes are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from comfyui.errors import ManifestError, SourceError, WeightsError
from comfyui.weights.bring.fetch import Fetch, Needed, reason
from comfyui.weights.http.at_once import at_once
from comfyui.weights.judge.signatures import recognise
from comfyui.weights.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from comfyui.weights.tar.layout import BLOCK, RECORD, member_header, padded, tar_length
from comfyui.weights.tar.reader import Member, TarReader
from comfyui.weights.tar.source import RangedTar, StreamTar
from comfyui.weights.transfer.faults import InterruptedPieceError, NoRangesError, PieceFault
from comfyui.weights.transfer.job import Reader

# Where every tar since POSIX 1988 says that it is one.
_MAGIC = b"ustar"
_MAGIC_AT = 257
_COMPRESSED = {b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
_WINDOW_BYTES = 1024**2
"""Headers that lie no further apart are read with one request, and what is between them too."""


@dataclass(frozen=True)
class Contents:
    """What a tar begins with: its manifest, None if it has none, and its first member, None if it is empty.

    `reader` stands behind the manifest, or behind the header of `first`.
    """

    reader: TarReader
    first: Member | None
    manifest: Manifest | None


def read_contents(tar: RangedTar | StreamTar) -> Contents:
    """Read a tar's beginning. Raises WeightsError or ManifestError, and InterruptedPieceError for a broken stream."""
    reader = tar.begin()
    head = reader.peek()
    # Without this, a compressed tar or a web page would be called a damaged one.
    if head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        packed = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)
        seen = f"compressed with {packed}; unpack it with {packed} first" if packed else recognise(head).text
        raise WeightsError(
            f"{tar.shown} is not a tar of weights: it is {seen}. Give the tar that this model's training made.",
            path=MANIFEST_NAME,
            expected="a tar",
            seen=seen,
        )
    first = reader.next_member(MANIFEST_NAME)
    if first is None or first.name != MANIFEST_NAME:
        return Contents(reader, first, None)
    if first.oddity is not None:
        raise WeightsError(
            f"{tar.shown} begins with a {MANIFEST_NAME} that is {first.oddity}. Bake the weights again.",
            path=MANIFEST_NAME,
            expected="a plain file",
            seen=first.oddity,
        )
    if first.size > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{MANIFEST_NAME} is {first.size} bytes long; {MAX_MANIFEST_BYTES} is the limit.")
    manifest = Manifest.parse(b"".join(reader.data(first.size, MANIFEST_NAME)))
    for weight in (*manifest.weights, *manifest.training):
        if weight.offset is None:
            raise ManifestError(
                f"In {MANIFEST_NAME}, {weight.path!r} has no offset, so this tar is not what training made. "
                "Bake the weights again.",
                entry=weight.path,
            )
    return Contents(reader, first, manifest)


def expected_length(contents: Contents) -> int:
    """How long the whole tar must be."""
    manifest = contents.manifest
    weights = (*manifest.weights, *manifest.training) if manifest else ()
    start = contents.first.offset + padded(contents.first.size) if contents.first else 0
    return tar_length(max([start, *(padded((weight.offset or 0) + weight.size) for weight in weights)]))


def bring_from_tar(
    tar: RangedTar | StreamTar, contents: Contents, needed: Sequence[Needed], fetch: Fetch, place: str
) -> list[Needed]:
    """Bring the files out of the tar; returns those that failed. `contents` is used up if the tar is a stream."""
    ordered = sorted(needed, key=lambda file: file.offset or 0)
    if isinstance(tar, RangedTar):
        return fetch.bring(ordered, place, lambda file: _part(tar, file))
    return fetch.bring(ordered, place, lambda file: InStream(contents.reader, file, tar.shown), one_stream=True)


def look_at_headers(tar: RangedTar, files: Iterable[Needed]) -> None:
    """Compare the headers of a ranged tar with the manifest; what differs is noted in each file's `header_fault`."""
    spans = [(max(0, (file.offset or 0) - len(_header(file))), file) for file in files]

    def look(group: list[tuple[int, Needed]]) -> None:
        start, end = group[0][0], max(file.offset or 0 for _, file in group)
        window = tar.read_at(start, end - start)
        for at, file in group:
            file.header_fault = header_fault(file, window[at - start : (file.offset or 0) - start])

    at_once(look, _close_together(spans))


def end_fault(tar: RangedTar | StreamTar, contents: Contents) -> str | None:
    """What is wrong with a tar's length and its last blocks, None if nothing is."""
    expected = expected_length(contents)
    if tar.size is not None and tar.size != expected:
        return f"it is {tar.size} bytes long, and its manifest says {expected}"
    try:
        if isinstance(tar, RangedTar):
            tail = tar.read_at(expected - 2 * BLOCK, 2 * BLOCK)
        else:
            contents.reader.skip_to(expected - 2 * BLOCK, MANIFEST_NAME)
            tail = contents.reader.peek(RECORD + BLOCK)
    except (PieceFault, SourceError) as error:
        # The files are proven without it.
        return f"its end cannot be read ({reason(error)})"
    if len(tail) != 2 * BLOCK:
        return f"it is not {expected} bytes long, as its manifest says"
    return "it does not end in zeros" if any(tail) else None


def header_fault(file: Needed, seen: bytes) -> str | None:
    """What the header blocks `seen` say in place of the file's own, in words; None if they are the file's own."""
    if seen == _header(file):
        return None
    try:
        found = TarReader(iter([seen]), "the tar").next_member(file.path)
    except WeightsError:
        return "a damaged header"
    if found is None:
        return "no header"
    if (found.name, found.size, found.oddity) == (file.path, file.size, None):
        return None
    return f"{_CONTRADICTION}{found.name[:300]!r}, {found.oddity or f'a file of {found.size} bytes'},"


_CONTRADICTION = "the header of "


def contradiction(file: Needed) -> WeightsError | None:
    """The error for a file whose header is whole and says something else than the manifest."""
    if file.header_fault is None or not file.header_fault.startswith(_CONTRADICTION):
        return None
    return WeightsError(
        f"{file.path} is not what the tar's own header says: the manifest has {file.path}, {file.size} bytes, where "
        f"the tar has {file.header_fault} so nobody knows which is right. Bake the weights again.",
        path=file.path,
        expected=f"{file.path}, {file.size} bytes",
        seen=file.header_fault.strip(","),
    )


def _header(file: Needed) -> bytes:
    return member_header(file.path, file.size)


def _part(tar: RangedTar, file: Needed) -> Reader:
    end = (file.offset or 0) + file.size
    if end > tar.size:
        raise _too_short(tar.shown, file, tar.size)
    return tar.part(file.offset or 0)


def _too_short(shown: str, file: Needed, seen: int) -> WeightsError:
    end = (file.offset or 0) + file.size
    return WeightsError(
        f"{shown} is too short to hold {file.path}: it ends after {seen} bytes, and the file at byte {end}.",
        path=file.path,
        expected=f"at least {end} bytes of tar",
        seen=f"{seen} bytes",
    )


def _close_together(spans: Sequence[tuple[int, Needed]]) -> Iterator[list[tuple[int, Needed]]]:
    group: list[tuple[int, Needed]] = []
    for span in sorted(spans, key=lambda span: span[0]):
        if group and (span[1].offset or 0) - group[0][0] > _WINDOW_BYTES:
            yield group
            group = []
        group.append(span)
    if group:
        yield group


class InStream:
    """One file of a tar that comes as a stream; files are read in their order, and what is between them is passed."""

    sequential = True

    def __init__(self, tar: TarReader, file: Needed, shown: str) -> None:
        self._tar = tar
        self._file = file
        self.shown = shown

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        """Fill `out` with the next bytes; `start` is where the last call ended. Raises as Reader says."""
        offset = self._file.offset or 0
        if start == 0:
            self._to_begin(offset)
        done = 0
        while done < len(out):
            piece = self._tar.take(len(out) - done, offset + self._file.size, self._file.path)
            out[done : done + len(piece)] = piece
            done += len(piece)
            yield done

    def close(self) -> None:
        """Nothing to do: the stream goes on with the next file."""

    def _to_begin(self, offset: int) -> None:
        length = len(_header(self._file))
        if self._tar.position <= offset - length:
            self._tar.skip_to(offset - length, self._file.path)
            self._file.header_fault = header_fault(self._file, self._tar.peek(length))
        self._tar.skip_to(offset, self._file.path)


def worth_another_look(file: Needed) -> bool:
    """Whether the same tar may give this file after all: its bytes came wrong, or not all of them came."""
    return isinstance(file.last_error, WeightsError | InterruptedPieceError | NoRangesError)
