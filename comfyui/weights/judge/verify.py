"""The one path every weight file takes before it counts: its size, its SHA-256 and its structure, as bytes go by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from comfyui.errors import WeightsError
from comfyui.weights.folders import TRAINING_FOLDERS
from comfyui.weights.judge.formats import AnyBytes, structure_check


@dataclass(frozen=True)
class Digest:
    """What a file turned out to be: its size in bytes and its SHA-256 in lower-case hex."""

    size: int
    sha256: str


class Verifier:
    """Feed it a file's bytes in order, then `finish` for the Digest.

    Raises WeightsError as soon as the bytes cannot be the file at `path` of the `expected` digest; without one, the
    structure alone is checked, which shows a cut file but not a flipped byte. What a training left beside its LoRA
    (training/loss.csv) has no structure to check.
    """

    def __init__(self, path: str, *, allow_pickle: bool, expected: Digest | None = None) -> None:
        self._path = path
        self._expected = expected
        papers = path.partition("/")[0] in TRAINING_FOLDERS
        self._structure = AnyBytes() if papers else structure_check(path, allow_pickle=allow_pickle)
        self._hash = hashlib.sha256()
        self._size = 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._size += len(chunk)
        if self._expected is not None and self._size > self._expected.size:
            raise self._size_error(f"at least {self._size} bytes")
        self._hash.update(chunk)
        self._structure.feed(chunk)

    def finish(self) -> Digest:
        """Say that there are no more bytes, and get what the file is."""
        digest = Digest(self._size, self._hash.hexdigest())
        if self._expected is not None and digest.size != self._expected.size:
            raise self._size_error(f"{digest.size} bytes")
        # The hash before the structure: a damaged copy is the likelier news than a file that was always wrong.
        if self._expected is not None and digest.sha256 != self._expected.sha256:
            raise WeightsError(
                f"{self._path} is damaged: its SHA-256 is {digest.sha256}, expected {self._expected.sha256}. "
                "Its bytes changed after it was baked; fetch it again or bake it again.",
                path=self._path,
                expected=self._expected.sha256,
                seen=digest.sha256,
            )
        self._structure.finish()
        return digest

    def _size_error(self, seen: str) -> WeightsError:
        expected = f"{self._expected.size if self._expected else 0} bytes"
        return WeightsError(
            f"{self._path} does not have its size: expected {expected}, seen {seen}. Fetch it again or bake it again.",
            path=self._path,
            expected=expected,
            seen=seen,
        )
