"""The workflow that ComfyUI keeps inside its files: cleaned of what we changed in it, or taken out. Pure.

Images are written anew; in videos and sounds, texts change where they stand, and their lengths do not: in JSON, spaces
may stand where something got shorter.

Formats: PNG specification, third edition (W3C), 5.2 to 5.3 (signature, chunks) and 11.3 (texts, eXIf); WebP container
specification (Google), extended file format; JPEG, ITU-T T.81 annex B (marker segments). "comf" is ComfyUI's own
chunk of animated PNGs (comfy_api/latest/_ui.py of 0.30.0).
"""

from __future__ import annotations

import json
import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator

from comfyui.weights.linked.names import BY_LINK
from comfyui.workflow.changes import RUN_ANEW

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = frozenset({b"tEXt", b"comf"})
PNG_METADATA = PNG_TEXTS | {b"zTXt", b"iTXt", b"eXIf"}
WEBP_METADATA = frozenset({b"EXIF", b"XMP "})
WEBP_FLAGS = 0x08 | 0x04
"""In a VP8X chunk: the file has an EXIF and an XMP chunk."""
JPEG_METADATA = frozenset({0xE1, 0xFE})
"""APP1 (EXIF and XMP) and COM."""
JPEG_SCAN = 0xDA
IN_PLACE_SUFFIXES = frozenset({".mp4", ".mov", ".webm", ".flac", ".mp3"})
"""Videos and sounds whose texts may change where they stand. In .ogg, .opus and .mkv a checksum would no longer fit."""
PROMPT_START = re.compile(rb'\{"(?:[^"\\]|\\.){1,100}": \{"(?:inputs|class_type|_meta)": ')
"""As ComfyUI's saving nodes write a prompt: json.dumps() with its usual spaces (comfy_extras/nodes_video.py)."""
MAX_PROMPT_BYTES = 32 * 1024**2
_STRING = rb'(?:[^"\\]|\\.)*'


def our_names_hidden(file: bytes, folder: str) -> bytes:
    """A PNG or WebP file, or a text, in which the prompt has the names that the person knows.

    That is a filename_prefix without `folder` and the numbers below it, and a file that came by link without our
    folder and digest. Its length does not change.
    """
    ours = _our_names(folder)
    if file.startswith(PNG_SIGNATURE):
        return _png(file, lambda kind, body: ours.sub(_shorter, body) if kind in PNG_TEXTS else body)
    return ours.sub(_shorter, file)


def changes_in_place(file: bytes | mmap.mmap, folder: str, *, keep_prompt: bool) -> Iterator[tuple[int, bytes]]:
    """What to write where, so that a video or sound has the person's names in its prompt, or no prompt at all.

    Only prompts are found that stand there as ComfyUI's own nodes write them.
    """
    if keep_prompt:
        for found in _our_names(folder).finditer(file):
            yield found.start(), _shorter(found)
    else:
        end = 0
        for found in PROMPT_START.finditer(file):
            if found.start() < end:
                continue
            text = file[found.start() : found.start() + MAX_PROMPT_BYTES].decode("latin-1")
            try:
                _, length = json.JSONDecoder().raw_decode(text)
            except (ValueError, RecursionError):
                continue
            end = found.start() + length
            yield found.start(), b" " * length


def _our_names(folder: str) -> re.Pattern[bytes]:
    place = re.escape(folder.encode()) + rb"/\d+/\d+"
    digest = rb"-(?:[0-9a-f]{64}|[0-9a-f]{12})"
    forms = (
        place + rb"/(?P<prefix>" + _STRING + rb'")',
        BY_LINK.encode() + rb"/[0-9a-f]{16}/(?P<stem>" + _STRING + rb"?)" + digest + rb'(?P<ending>\.\w+")',
        rb'(?:, )?"' + RUN_ANEW.encode() + rb'": "' + place + rb'"',
    )
    return re.compile(rb"|".join(forms))


def _shorter(found: re.Match[bytes]) -> bytes:
    parts = found["prefix"], found["stem"], found["ending"]
    return b"".join(part for part in parts if part is not None).ljust(len(found[0]))


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
