"""Look at weights and say whether they are what their manifest says: every byte is read once, nothing is written.

    tar or folder ──► files with what they must be ──► read, hash, judge (a few at once) ──► Report

A wrong file does not end the check: all that is wrong is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from comfyui.errors import DownloadError, RequestError, StoppedError, WeightsError
from comfyui.settings import Settings
from comfyui.url_policy import display_url
from comfyui.weights.bring.fetch import Needed, reason
from comfyui.weights.bring.present import file_chunks
from comfyui.weights.folders import path_key
from comfyui.weights.http.at_once import at_once
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.judge.formats import GGUF_EXTENSIONS, PICKLE_EXTENSIONS, SAFETENSORS_EXTENSIONS
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.listener import Listener
from comfyui.weights.manifest import MANIFEST_NAME, Manifest
from comfyui.weights.tar.baked import Contents, end_fault, header_fault, read_contents
from comfyui.weights.tar.layout import member_header, padded
from comfyui.weights.tar.source import Patience, RangedTar, open_tar
from comfyui.weights.transfer.faults import PieceFault
from comfyui.weights.transfer.retry import RetryPolicy

READ_BYTES = 4 * 1024**2
CHECKED_AT_ONCE = min(4, os.cpu_count() or 1)
_WEIGHT_EXTENSIONS = SAFETENSORS_EXTENSIONS + GGUF_EXTENSIONS + PICKLE_EXTENSIONS


@dataclass(frozen=True)
class Problem:
    """Something that is wrong: `kind` is "missing", "damaged", "unknown" (not in the manifest) or "tar" (its frame)."""

    path: str
    kind: str
    text: str
    expected: str | None = None
    seen: str | None = None


@dataclass(frozen=True)
class Report:
    """What a check found: files proven by a digest, files whole but in no manifest, and all that is wrong."""

    proven: tuple[str, ...]
    unknown: tuple[str, ...]
    problems: tuple[Problem, ...]
    bytes_proven: int


@dataclass(frozen=True)
class _File:
    """A file to read: `expected` is None where only its structure can be judged."""

    path: str
    size: int
    expected: Digest | None
    chunks: Callable[[], Iterator[bytes | memoryview]]


def check_tar(location: str, settings: Settings, listener: Listener, stop: Event) -> Report:
    """Check a tar that bake made, at a path or URL. Raises SourceError or RequestError when it is no such tar."""
    try:
        return _check_tar(location, settings, listener, stop)
    except PieceFault as fault:
        shown = display_url(location) if "://" in location else location
        raise DownloadError(
            f"{shown} could not be read to its end: {reason(fault)}. Verify it again.", url=shown
        ) from fault


def _check_tar(location: str, settings: Settings, listener: Listener, stop: Event) -> Report:
    patience = Patience(RetryPolicy(), stop, listener.say)
    with HttpOpener(settings) as opener, open_tar(location, opener, patience) as tar:
        contents = read_contents(tar)
        if contents.manifest is None:
            raise WeightsError(
                f"{tar.shown} has no {MANIFEST_NAME} as its first member, so nothing says what its files must be. Bake "
                "the weights with this model; then every byte of them can be proven.",
                path=MANIFEST_NAME,
                expected=f"{MANIFEST_NAME} as the first member",
                seen=repr(contents.first.name[:300]) if contents.first else "an empty tar",
            )
        if not isinstance(tar, RangedTar):
            raise RequestError(
                f"The server of {tar.shown} gives the tar only in one piece. Download it, and verify the file."
            )
        weights = (*contents.manifest.weights, *contents.manifest.training)
        files = [
            _File(
                weight.path,
                weight.size,
                Digest(weight.size, weight.sha256),
                _part(tar, weight.offset or 0, weight.size),
            )
            for weight in weights
        ]
        frame = [*_frame_problems(tar, contents, contents.manifest)]
        return _check(files, listener, stop, frame)


def check_folder(
    folder: Path, manifest: Manifest, listener: Listener, stop: Event, *, extra_ok: bool = False
) -> Report:
    """Check a models folder against a manifest. A file that is not in it is a problem unless `extra_ok`."""
    problems: list[Problem] = []
    files: list[_File] = []
    for weight in manifest.weights:
        file = folder / weight.path
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            problems.append(_missing(weight.path, weight.size))
        elif size != weight.size:
            problems.append(_other_size(weight.path, weight.size, size))
        else:
            files.append(_File(weight.path, size, Digest(weight.size, weight.sha256), partial(file_chunks, file)))
    for path in extra_files(folder, manifest):
        file = folder / path
        try:
            files.append(_File(path, file.stat().st_size, None, partial(file_chunks, file)))
        except OSError as error:
            # A link to a file that is gone, most often.
            problems.append(_unreadable(path, "a file", error))
    report = _check(files, listener, stop, problems)
    if extra_ok:
        return report
    unproven = [
        Problem(
            path,
            "unknown",
            f"{path} is not in the manifest: it is whole, but nothing says which bytes it must have.",
            "a file of the manifest",
            "another file",
        )
        for path in report.unknown
    ]
    return Report(report.proven, report.unknown, (*report.problems, *unproven), report.bytes_proven)


def extra_files(folder: Path, manifest: Manifest) -> list[str]:
    """The weight files below a models folder that its manifest does not have, sorted; hidden files do not count."""
    known = {path_key(weight.path) for weight in manifest.weights}
    found: list[str] = []
    seen: set[str] = set()
    # Folders on other disks are often linked to; a link to a folder above would never end.
    for base, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(base) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(base))
        paths = [(Path(base) / name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
        found += [path for path in paths if path.lower().endswith(_WEIGHT_EXTENSIONS) and path_key(path) not in known]
    return sorted(found)


def _check(files: Sequence[_File], listener: Listener, stop: Event, problems: Sequence[Problem]) -> Report:
    """Read and judge the files; `problems` are those that are known already."""
    over = Event()

    def judge(file: _File) -> Digest | Problem:
        try:
            verifier = Verifier(file.path, allow_pickle=True, expected=file.expected)
            for chunk in file.chunks():
                verifier.feed(chunk)
                if stop.is_set() or over.is_set():
                    raise StoppedError("The check was stopped.")
                listener.advance(file.path, len(chunk))
            digest = verifier.finish()
        except WeightsError as error:
            return Problem(file.path, "damaged", str(error), error.expected, error.seen)
        except OSError as error:
            return _unreadable(file.path, f"{file.size} bytes", error)
        if file.expected is not None:
            listener.proven(file.path, digest.size, digest.sha256)
        return digest

    listener.begin("verifying", [(file.path, file.size) for file in files])
    try:
        verdicts = at_once(judge, files, asked_at_once=CHECKED_AT_ONCE)
    finally:
        over.set()
        listener.end()
    judged = list(zip(files, verdicts, strict=True))
    right = [file for file, verdict in judged if isinstance(verdict, Digest)]
    proven = [file for file in right if file.expected is not None]
    return Report(
        proven=tuple(file.path for file in proven),
        unknown=tuple(file.path for file in right if file.expected is None),
        problems=(*problems, *(verdict for _, verdict in judged if isinstance(verdict, Problem))),
        bytes_proven=sum(file.size for file in proven),
    )


def _frame_problems(tar: RangedTar, contents: Contents, manifest: Manifest) -> Iterator[Problem]:
    """What is wrong with the tar around its files: a header, bytes that nobody knows of, its end."""
    position = contents.first.offset + padded(contents.first.size) if contents.first else 0
    for weight in sorted((*manifest.weights, *manifest.training), key=lambda weight: weight.offset or 0):
        offset = weight.offset or 0
        header_at = offset - len(member_header(weight.path, weight.size))
        fault = header_fault(Needed.of(weight), tar.read_at(max(0, header_at), offset - max(0, header_at)))
        if fault is not None:
            text = f"{weight.path} has {fault.rstrip(',')} before its bytes in the tar, and not its own."
            yield Problem(weight.path, "tar", text, "its own header", fault.rstrip(","))
        elif header_at != position:
            yield Problem(
                weight.path,
                "tar",
                f"{weight.path} does not begin behind the file before it: expected at byte {position}, seen at "
                f"{header_at}.",
                f"byte {position}",
                f"byte {header_at}",
            )
        position = padded(offset + weight.size)
    fault = end_fault(tar, contents)
    if fault is not None:
        yield Problem(tar.shown, "tar", f"{tar.shown} does not end as it must: {fault}.", "a whole tar", fault)


def _part(tar: RangedTar, offset: int, size: int) -> Callable[[], Iterator[bytes]]:
    def chunks() -> Iterator[bytes]:
        for start in range(0, size, READ_BYTES):
            yield tar.read_at(offset + start, min(READ_BYTES, size - start))

    return chunks


def _unreadable(path: str, expected: str, error: OSError) -> Problem:
    seen = error.strerror or str(error)
    return Problem(path, "damaged", f"{path} cannot be read: {seen}.", expected, seen)


def _missing(path: str, size: int) -> Problem:
    text = f"{path} is missing: expected a file of {size} bytes, seen nothing. Fetch it with scripts/weights pull."
    return Problem(path, "missing", text, f"{size} bytes", "nothing")


def _other_size(path: str, expected: int, seen: int) -> Problem:
    text = f"{path} does not have its size: expected {expected} bytes, seen {seen}."
    return Problem(path, "damaged", text, f"{expected} bytes", f"{seen} bytes")
