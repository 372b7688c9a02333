"""Write a tar of weights by its layout: headers first, files in any order at their final places, the manifest last.

The tar lies under a temporary name until `finish`. What an interrupted writer leaves there can be taken up by the next
one with the same plan (see journal).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from comfyui.errors import EngineError, WeightsError
from comfyui.weights.disk import require_room, room_errors, sync_folder
from comfyui.weights.folders import TRAINING_FOLDERS, check_member_path, path_key
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.manifest import Manifest, Weight
from comfyui.weights.tar.journal import Journal, JournalFile
from comfyui.weights.tar.layout import BLOCK, RECORD, Layout, member_header, padded, tar_length
from comfyui.weights.transfer.target import Target

__all__ = ["BLOCK", "RECORD", "ArchiveWriter", "member_header", "padded", "tar_length"]


def unfinished(out: Path) -> Path:
    """Where the tar `out` lies until it is finished."""
    return out.with_name(f".{out.name}.part")


class ArchiveWriter:
    """The tar `out`, being written by `layout`; use it as a context manager.

    Leaving the context without `finish` removes what was written, or keeps it for the next writer if `keep_unfinished`.
    Raises WeightsError where the disk has no room, EngineError while another process writes the same tar.
    """

    def __init__(self, out: Path, layout: Layout, *, keep_unfinished: bool = False) -> None:
        self.layout = layout
        self._out = out
        self._part = unfinished(out)
        self._journal_path = out.with_name(f".{out.name}.journal")
        self._keep = keep_unfinished
        self._finished = False
        self._journal: Journal | None = None
        self._appended: list[Weight] = []
        self._training: list[Weight] = []
        self._end = layout.end
        self._target: Target | None = None

    def __enter__(self) -> Self:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        while self._target is None:
            target = Target(self._part)
            try:
                fcntl.flock(target.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                target.close()
                raise EngineError(
                    f"Another bake is writing {self._out.name}; wait for it, or choose another name."
                ) from error
            # Whoever had the lock may have renamed the file meanwhile: this one would then be its finished tar.
            if self._part.exists() and os.path.samestat(self._part.stat(), os.fstat(target.fileno())):
                self._target = target
            else:
                target.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()
        # The names go before the lock does: whoever waits for it must not find a file that is about to vanish.
        if not self._finished and not self._keep:
            self._part.unlink(missing_ok=True)
            self._journal_path.unlink(missing_ok=True)
        if self._target is not None:
            self._target.close()
            self._target = None

    @property
    def target(self) -> Target:
        """The tar's file, for pieces that are written at the layout's offsets."""
        if self._target is None:
            raise ValueError("the archive is not open; use it in a with statement")
        return self._target

    def prepare(self, files: Sequence[JournalFile], piece_bytes: int) -> dict[str, frozenset[int]]:
        """Make room for the tar, write its headers, and say which pieces are there from an interrupted writer."""
        size = self._part.stat().st_size
        with room_errors(self._out.parent, self._out.name, f"{self.layout.length} bytes"):
            there = self._part.stat().st_blocks * 512
            require_room(self._out.parent, max(0, self.layout.length - there), self._out.name)
            self._journal = Journal(self._journal_path, files, piece_bytes, self.target.sync)
            known = self._journal.begin(usable=size >= self.layout.length)
            if not known:
                self.target.truncate(0)
            self.target.allocate(self.layout.length)
            for place in self.layout.places:
                header = member_header(place.planned.path, place.planned.size)
                self.target.write(place.header_at, memoryview(header))
        return known

    def record(self, file: int, piece: int) -> None:
        """Piece `piece` of the plan's file number `file` has been written."""
        if self._journal is not None:
            self._journal.add(file, piece)

    def forget(self, file: int) -> None:
        """The plan's file number `file` begins again; nothing of it counts for the next writer."""
        if self._journal is not None:
            self._journal.forget(file)

    def append(self, path: str, url: str | None, chunks: Iterable[bytes], verifier: Verifier) -> Weight:
        """Add a file whose size nobody knows, behind all others, from its chunks and past the verifier.

        Raises WeightsError for a bad or repeated path, bytes that the verifier refuses, or a full disk. The place is
        as it was then, and the file may be appended again.
        """
        check_member_path(path)
        self._appended.append(self._add(path, url, _fed(chunks, verifier), verifier.finish))
        return self._appended[-1]

    def append_training(self, path: str, data: bytes) -> Weight:
        """Add what a training left beside its LoRA ("training/loss.csv"), behind all others. Raises as `append`."""
        check_member_path(path, TRAINING_FOLDERS)
        self._training.append(
            self._add(path, None, [data], lambda: Digest(len(data), hashlib.sha256(data).hexdigest()))
        )
        return self._training[-1]

    def _add(self, path: str, url: str | None, chunks: Iterable[bytes], finish: Callable[[], Digest]) -> Weight:
        known = [place.planned.path for place in self.layout.places]
        known += [weight.path for weight in (*self._appended, *self._training)]
        if path_key(path) in map(path_key, known):
            raise WeightsError(f"{path} is in the tar already.", path=path, expected="a path used once", seen=path)
        offset = self._end + len(member_header(path, 0))
        position = offset
        with room_errors(self._out.parent, path, "more bytes"):
            for chunk in chunks:
                self.target.write(position, memoryview(chunk))
                position += len(chunk)
            digest = finish()
            self.target.write(position, memoryview(bytes(padded(position) - position)))
            self.target.write(self._end, memoryview(member_header(path, digest.size)))
        self._end = padded(position)
        return Weight(path, url, digest.size, digest.sha256, offset)

    def weights(self, digests: Sequence[Digest]) -> list[Weight]:
        """All weights that lie in the tar by now; `digests` are those of the layout's files, in its order."""
        planned = [
            Weight(place.planned.path, place.planned.url, digest.size, digest.sha256, place.offset)
            for place, digest in zip(self.layout.places, digests, strict=True)
        ]
        return [*planned, *self._appended]

    def finish(self, digests: Sequence[Digest] = (), trained: Mapping[str, Any] | None = None) -> Manifest:
        """Write the manifest and the tar's end, make it all last, and give the tar its name.

        `digests` are those of the layout's files, in its order; `trained` is the manifest's record of a training.
        """
        manifest = Manifest(tuple(self.weights(digests)), training=tuple(self._training), trained=trained)
        length = tar_length(self._end)
        with room_errors(self._out.parent, self._out.name, "more bytes"):
            self._zero(length)
            self.target.write(0, memoryview(self.layout.manifest_blocks(manifest)))
            self.target.sync()
        self._part.replace(self._out)
        self._finished = True
        self._journal_path.unlink(missing_ok=True)
        sync_folder(self._out.parent)
        return manifest

    def _zero(self, length: int) -> None:
        """The padding behind each file, and the tar's end: an earlier, larger tar may have left other bytes there."""
        for place in self.layout.places:
            behind = place.offset + place.planned.size
            self.target.write(behind, memoryview(bytes(place.end - behind)))
        self.target.write(self._end, memoryview(bytes(length - self._end)))
        self.target.truncate(length)


def _fed(chunks: Iterable[bytes], verifier: Verifier) -> Iterator[bytes]:
    for chunk in chunks:
        verifier.feed(chunk)
        yield chunk
