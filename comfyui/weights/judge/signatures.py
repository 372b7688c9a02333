"""What the first bytes of a file say it is: the things servers send in place of weights, by name. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

SNIFF_BYTES = 64
"""Bytes of a file's head that `recognise` needs to tell its kinds apart."""


@dataclass(frozen=True)
class Recognised:
    """`kind` for code, `text` and `advice` for an error's reader ("it is {text}. {advice}")."""

    kind: str
    text: str
    advice: str = ""


_EMPTY = Recognised("empty", "an empty file", "Check the link.")
_HTML = Recognised(
    "html", "a web page (HTML)", "The link leads to a page, a log-in or an error page; use the link of the file itself."
)
_JSON = Recognised("json", "a JSON text", "The server probably answered with an error; open the link to read it.")
_LFS = Recognised(
    "lfs",
    "a Git LFS pointer, the few lines that stand for the file in a Git repository",
    "Use the link of the file itself; on Hugging Face it has /resolve/ in it.",
)
_ZIP = Recognised("zip", "a zip archive (PyTorch's pickle format is one)")
_GZIP = Recognised("gzip", "compressed with gzip", "Give the uncompressed file.")
_PICKLE = Recognised("pickle", "a Python pickle")
_GGUF = Recognised("gguf", "a GGUF file")
_SAFETENSORS = Recognised("safetensors", "a safetensors file")
_UNKNOWN = Recognised("unknown", "of no known format", "Check that the link gives the file itself.")

_SIGNATURES = (
    (re.compile(rb"version https://git-lfs"), _LFS),
    (re.compile(rb"PK\x03\x04"), _ZIP),
    (re.compile(rb"\x1f\x8b"), _GZIP),
    (re.compile(rb"\x80[\x02-\x05]"), _PICKLE),
    (re.compile(rb"GGUF"), _GGUF),
    (re.compile(rb"[\s\S]{5}\0{3}\{"), _SAFETENSORS),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]"), _HTML),
    (re.compile(rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\"{\[\]}\d]"), _JSON),
)


def recognise(head: bytes) -> Recognised:
    """Say what a file is whose first bytes are `head`."""
    if not head:
        return _EMPTY
    return next((what for pattern, what in _SIGNATURES if pattern.match(head)), _UNKNOWN)
