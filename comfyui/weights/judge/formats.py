"""Which check a weight file gets: chosen by its extension, fed with its bytes. Pure.

Pickle formats can run code when they are loaded, so they are refused unless the person asks for them.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Protocol

from comfyui.errors import WeightsError
from comfyui.weights.judge.safetensors_check import SafetensorsCheck
from comfyui.weights.judge.signatures import SNIFF_BYTES, recognise

SAFETENSORS_EXTENSIONS = (".safetensors", ".sft")
GGUF_EXTENSIONS = (".gguf",)
PICKLE_EXTENSIONS = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pt2")


class StructureCheck(Protocol):
    """Fed with a whole file's bytes in order; raises WeightsError as soon as they cannot be that kind of file."""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""

    def finish(self) -> None:
        """Say that there are no more."""


class AnyBytes:
    """The check of files that may hold anything."""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""

    def finish(self) -> None:
        """Say that there are no more."""


def check_extension(path: str, *, allow_pickle: bool) -> None:
    """Raise WeightsError unless files with this path's extension are accepted."""
    extension = _extension(path)
    if extension in SAFETENSORS_EXTENSIONS + GGUF_EXTENSIONS:
        return
    accepted = SAFETENSORS_EXTENSIONS + GGUF_EXTENSIONS + (PICKLE_EXTENSIONS if allow_pickle else ())
    expected = "a name that ends in " + ", ".join(accepted)
    seen = extension or "no extension"
    if extension not in PICKLE_EXTENSIONS:
        raise WeightsError(
            f"{path} does not have the name of a weight file: expected {expected}.",
            path=path,
            expected=expected,
            seen=seen,
        )
    if not allow_pickle:
        raise WeightsError(
            f"{path} is refused: {extension} files are Python pickles, which can run any code when they are loaded. "
            "Use the .safetensors file of the same model, or ask for pickles (allow_pickle) if you trust whoever made "
            "it.",
            path=path,
            expected=expected,
            seen=seen,
        )


def structure_check(path: str, *, allow_pickle: bool) -> StructureCheck:
    """The check for a file that will lie at `path`. Raises WeightsError where `check_extension` does."""
    check_extension(path, allow_pickle=allow_pickle)
    extension = _extension(path)
    if extension in SAFETENSORS_EXTENSIONS:
        return SafetensorsCheck(path)
    if extension in GGUF_EXTENSIONS:
        return HeadCheck(path, "a GGUF file", frozenset({"gguf"}))
    return HeadCheck(path, "a file saved by PyTorch (a zip archive or a pickle)", frozenset({"zip", "pickle"}))


class HeadCheck:
    """Looks at the first bytes only, for formats whose end cannot be known from their head.

    `expected` says in words what the file should be, `kinds` which of `signatures`' kinds that is.
    """

    def __init__(self, path: str, expected: str, kinds: frozenset[str]) -> None:
        self._path = path
        self._expected = expected
        self._kinds = kinds
        self._head = b""
        self._judged = False

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        if not self._judged:
            self._head += bytes(chunk[:SNIFF_BYTES])
            if len(self._head) >= SNIFF_BYTES:
                self._judge()

    def finish(self) -> None:
        """Say that there are no more."""
        if not self._judged:
            self._judge()

    def _judge(self) -> None:
        seen = recognise(self._head)
        if seen.kind not in self._kinds:
            raise WeightsError(
                f"{self._path} is not {self._expected}: it is {seen.text}.{' ' + seen.advice if seen.advice else ''}",
                path=self._path,
                expected=self._expected,
                seen=seen.text,
            )
        self._judged = True


def _extension(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
