"""The workflow that ComfyUI keeps inside its files: cleaned of what we changed in it, or taken out. Pure.

Formats: PNG specification, third edition (W3C), 5.2 to 5.3 (signature, chunks) and 11.3 (texts, eXIf); WebP container
specification (Google), extended file format; JPEG, ITU-T T.81 annex B (marker segments). "comf" is ComfyUI's own
chunk of animated PNGs (comfy_api/latest/_ui.py of 0.30.0).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = frozenset({b"tEXt", b"comf"})
PNG_METADATA = PNG_TEXTS | {b"zTXt", b"iTXt", b"eXIf"}
WEBP_METADATA = frozenset({b"EXIF", b"XMP "})
WEBP_FLAGS = 0x08 | 0x04
"""In a VP8X chunk: the file has an EXIF and an XMP chunk."""
JPEG_METADATA = frozenset({0xE1, 0xFE})
"""APP1 (EXIF and XMP) and COM."""
JPEG_SCAN = 0xDA
IN_PLACE_SUFFIXES = frozenset({".webp", ".mp4", ".mov", ".webm", ".flac", ".mp3"})
"""Files whose texts may change where they stand. In .ogg, .opus and .mkv a checksum would no longer fit."""


def hide_folder(file: bytes, suffix: str, folder: str) -> bytes:
    """The file with its saving nodes' own filename_prefix again, without `folder` and the numbers below it.

    Lengths do not change: in the JSON of a prompt, spaces may follow the string that got shorter. A file of another
    kind than PNG and IN_PLACE_SUFFIXES, or one that does not name the folder, comes back as it is.
    """
    if folder.encode() not in file:
        return file
    ours = re.compile(re.escape(folder.encode()) + rb'/\d+/\d+/((?:[^"\\]|\\.)*")')

    def shorter(found: re.Match[bytes]) -> bytes:
        return found[1].ljust(len(found[0]))

    if file.startswith(PNG_SIGNATURE):
        return _png(file, lambda kind, body: ours.sub(shorter, body) if kind in PNG_TEXTS else body)
    return ours.sub(shorter, file) if suffix in IN_PLACE_SUFFIXES else file


def without_metadata(file: bytes) -> bytes:
    """A PNG, WebP or JPEG file, animated or not, without its texts, EXIF and XMP; the picture's data do not change.

    What is no whole file of these kinds comes back as it is.
    """
    try:
        if file.startswith(PNG_SIGNATURE):
            return _png(file, lambda kind, body: None if kind in PNG_METADATA else body)
        if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
            return _webp_without_metadata(file)
        if file.startswith(b"\xff\xd8"):
            return b"\xff\xd8" + b"".join(_jpeg_segments(file))
    except (struct.error, IndexError):
        return file
    return file


def _png(file: bytes, change: Callable[[bytes, bytes], bytes | None]) -> bytes:
    """The file with each chunk's body changed; None leaves the chunk out."""
    chunks, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position < len(file):
        (length,) = struct.unpack_from(">I", file.ljust(position + 4, b"\0"), position)
        end = position + 12 + length
        if end > len(file):
            return file
        kind, body = file[position + 4 : position + 8], file[position + 8 : end - 4]
        changed = change(kind, body)
        if changed == body:
            chunks.append(file[position:end])
        elif changed is not None:
            checksum = struct.pack(">I", zlib.crc32(kind + changed))
            chunks.append(struct.pack(">I", len(changed)) + kind + changed + checksum)
        position = end
    return b"".join(chunks)


def _webp_without_metadata(file: bytes) -> bytes:
    kept, position = [], 12
    while position < len(file):
        kind, length = struct.unpack_from("<4sI", file, position)
        end = position + 8 + length + length % 2
        if end > len(file):
            return file
        chunk = file[position:end]
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~WEBP_FLAGS]) + chunk[9:]
        if kind not in WEBP_METADATA:
            kept.append(chunk)
        position = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _jpeg_segments(file: bytes) -> Iterator[bytes]:
    """What follows the start of the image, without the segments that hold metadata."""
    position = 2
    while True:
        marker, length = file[position + 1], struct.unpack_from(">H", file, position + 2)[0]
        if file[position] != 0xFF or length < 2:
            raise IndexError
        if marker == JPEG_SCAN:
            yield file[position:]
            return
        if marker not in JPEG_METADATA:
            yield file[position : position + 2 + length]
        position += 2 + length
