"""Files on their way into the models folder: under temporary names until every one of them is proven, then renamed.

Use it as a context manager: leaving it without `commit`, for whatever reason, removes all that was written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from comfyui.errors import WeightsError
from comfyui.weights.disk import part_beside, room_errors, sync_folder
from comfyui.weights.folders import check_member_path
from comfyui.weights.manifest import Weight
from comfyui.weights.verify import Digest, Verifier


@dataclass(frozen=True)
class _Staged:
    weight: Weight
    part: Path
    final: Path


class Staging:
    """Verified files waiting beside their final places below `models_dir`, an existing folder."""

    def __init__(self, models_dir: Path, *, allow_pickle: bool) -> None:
        self._models_dir = models_dir
        self._allow_pickle = allow_pickle
        self._staged: list[_Staged] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for staged in self._staged:
            staged.part.unlink(missing_ok=True)

    def write(self, weight: Weight, chunks: Iterable[bytes]) -> None:
        """Write one file and verify it as it is written. Raises WeightsError; then nothing may be committed."""
        final = self._models_dir / check_member_path(weight.path)
        verifier = Verifier(weight.path, allow_pickle=self._allow_pickle, expected=Digest(weight.size, weight.sha256))
        if final.is_dir():
            raise WeightsError(
                f"{weight.path} cannot be put in place: a folder has its name. Remove that folder.",
                path=weight.path,
                expected="a file or nothing",
                seen="a folder",
            )
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as e:
            raise WeightsError(
                f"{weight.path} cannot be put in place: a file has the name of its folder. Remove that file.",
                path=weight.path,
                expected="a folder or nothing",
                seen="a file",
            ) from e
        staged = _Staged(weight, part_beside(final), final)
        self._staged.append(staged)
        with room_errors(final.parent, weight.path, f"{weight.size} bytes"), staged.part.open("xb") as file:
            for chunk in chunks:
                verifier.feed(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        verifier.finish()

    def commit(self, report: Callable[[str], None]) -> None:
        """Give every file its name. To be called once all are written; replaces what lay there, and says so."""
        for staged in self._staged:
            if staged.final.exists():
                old = staged.final.stat().st_size
                if old != staged.weight.size:
                    report(f"replacing {staged.weight.path}: {old} bytes before, {staged.weight.size} now")
        for staged in self._staged:
            staged.part.replace(staged.final)
        for folder in {staged.final.parent for staged in self._staged}:
            sync_folder(folder)
