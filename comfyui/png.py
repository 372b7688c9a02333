"""The texts inside a PNG file, where ComfyUI keeps the workflow that made the picture. Pure.

Format: PNG specification, third edition (W3C), 5.2 to 5.3 (signature, chunks) and 11.3.3 (tEXt).
"""

from __future__ import annotations

import re
import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def remove_from_texts(png: bytes, pattern: re.Pattern[bytes]) -> bytes:
    """The file without what matches in its uncompressed texts (tEXt); everything else, pixels too, stays.

    What is not a well-formed PNG comes back unchanged.
    """
    if not png.startswith(SIGNATURE) or not pattern.search(png):
        return png
    chunks, position = [SIGNATURE], len(SIGNATURE)
    while position < len(png):
        (length,) = struct.unpack_from(">I", png.ljust(position + 4, b"\0"), position)
        end = position + 12 + length
        if end > len(png):
            return png
        kind, body = png[position + 4 : position + 8], png[position + 8 : end - 4]
        if kind == b"tEXt" and pattern.search(body):
            body = pattern.sub(b"", body)
            chunks.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        else:
            chunks.append(png[position:end])
        position = end
    return b"".join(chunks)
