"""From a tar of weights to files in ComfyUI's models folder: all of them, each proven, or none.

The tar is read once, in order, from a link or from disk. Its manifest says which bytes must come at which place; a tar
that differs anywhere is refused by name, and nothing of it lies under a final name. A restore that reads ranges side
by side can stage and commit in the same way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from comfyui.errors import ComfyUIModelError, ManifestError, RequestError, WeightsError
from comfyui.settings import Settings
from comfyui.url_policy import display_url
from comfyui.weights.archive import padded, tar_length
from comfyui.weights.disk import require_room
from comfyui.weights.download import CHUNK_BYTES, open_stream
from comfyui.weights.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, Weight
from comfyui.weights.progress import Progress, size_text
from comfyui.weights.signatures import recognise
from comfyui.weights.sources import plain
from comfyui.weights.staging import Staging
from comfyui.weights.tar_reader import Member, TarReader

# Where every tar since POSIX 1988 says that it is one.
_MAGIC = b"ustar"
_MAGIC_AT = 257


class RestoreStoppedError(ComfyUIModelError):
    """The `stop` event ended a restore; nothing of it is left."""


@dataclass(frozen=True)
class _TarStream:
    """`shown` names the tar for people, `size` is its length in bytes if known."""

    shown: str
    size: int | None
    chunks: Iterator[bytes]


def restore(
    location: str,
    models_dir: Path,
    settings: Settings,
    report: Callable[[str], None],
    stop: threading.Event | None = None,
    *,
    allow_pickle: bool = True,
) -> Manifest:
    """Restore the tar at `location` (an http, https or file URL, or a path) into `models_dir`, and return its manifest.

    `allow_pickle` is on because a tar has pickles only if whoever baked it asked for them. Raises WeightsError or
    ManifestError for a tar that is not whole and true, DownloadError for a link, RequestError for a location that is
    no file, and RestoreStoppedError once `stop` is set; then no file has come or changed under a final name.
    """
    started = time.monotonic()
    with _open(location, settings) as tar:
        report(f"restoring weights from {tar.shown} ({size_text(tar.size)})")
        reader = TarReader(_until_stopped(tar.chunks, stop), tar.shown)
        manifest, planned = _read_manifest(reader, tar)
        models_dir.mkdir(parents=True, exist_ok=True)
        require_room(models_dir, sum(weight.size for weight in planned), "the weights")
        with Staging(models_dir, allow_pickle=allow_pickle) as staging:
            for index, weight in enumerate(planned):
                member = reader.next_member(weight.path)
                _check_member(member, weight, planned[:index], planned[index + 1 :])
                progress = Progress(f"verified {weight.path}", weight.size, report)
                staging.write(weight, progress.watch(reader.data(weight.size, weight.path)))
                progress.end(weight.sha256)
            last = planned[-1].path if planned else MANIFEST_NAME
            extra = reader.next_member(last)
            if extra is not None:
                raise _extra(extra, planned)
            reader.finish(last)
            staging.commit(report)
    report(
        f"{len(planned)} weight files in place, {size_text(sum(weight.size for weight in planned))} "
        f"in {time.monotonic() - started:.1f} s"
    )
    return manifest


def read_manifest(location: str, settings: Settings) -> Manifest:
    """What the tar at `location` says it holds, nothing of it proven; `location` and errors are those of `restore`."""
    with _open(location, settings) as tar:
        return _read_manifest(TarReader(tar.chunks, tar.shown), tar)[0]


@contextmanager
def _open(location: str, settings: Settings) -> Iterator[_TarStream]:
    scheme = urlsplit(location).scheme if "://" in location else ""
    if scheme in ("http", "https"):
        source = plain(location)
        with open_stream(source, settings) as remote:
            yield _TarStream(source.display_url, remote.size, remote.chunks(remote.name or "the weights tar"))
        return
    path = Path(location)
    if scheme:
        parts = urlsplit(location)
        if scheme != "file" or parts.netloc not in ("", "localhost"):
            raise RequestError(
                f"The weights at {display_url(location)} cannot be read: give an http, https or file URL, or a path."
            )
        path = Path(unquote(parts.path))
    if not path.is_file():
        raise RequestError(f"There is no weights tar at {path}; give the path or URL of one that training made.")
    with path.open("rb") as file:
        yield _TarStream(path.name, path.stat().st_size, iter(lambda: file.read(CHUNK_BYTES), b""))


def _until_stopped(chunks: Iterator[bytes], stop: threading.Event | None) -> Iterator[bytes]:
    for chunk in chunks:
        if stop is not None and stop.is_set():
            raise RestoreStoppedError("The restore of the weights was stopped; nothing of it is left.")
        yield chunk


def _read_manifest(reader: TarReader, tar: _TarStream) -> tuple[Manifest, list[Weight]]:
    """The manifest, and its weights in the order of the tar, their places checked against the tar's length."""
    head = reader.peek()
    # Without this, a compressed tar or a web page would be called a damaged one.
    if head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        seen = recognise(head)
        raise WeightsError(
            f"{tar.shown} is not a tar of weights: it is {seen.text}. Give the tar that this model's training made.",
            path=MANIFEST_NAME,
            expected="a tar",
            seen=seen.text,
        )
    member = reader.next_member(MANIFEST_NAME)
    if member is None or member.name != MANIFEST_NAME or member.oddity is not None:
        seen_first = "nothing" if member is None else repr(member.name[:300])
        raise WeightsError(
            f"{tar.shown} was not made by this model's training: its first member must be {MANIFEST_NAME}, seen "
            f"{seen_first}. Bake the weights again with this model.",
            path=MANIFEST_NAME,
            expected=f"{MANIFEST_NAME} as the first member",
            seen=seen_first,
        )
    if member.size > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{MANIFEST_NAME} is {member.size} bytes long; {MAX_MANIFEST_BYTES} is the limit.")
    manifest = Manifest.parse(b"".join(reader.data(member.size, MANIFEST_NAME)))
    for weight in manifest.weights:
        if weight.offset is None:
            raise ManifestError(
                f"In {MANIFEST_NAME}, {weight.path!r} has no offset, so this tar is not what training made. "
                "Bake the weights again.",
                entry=weight.path,
            )
    planned = sorted(manifest.weights, key=lambda weight: weight.offset or 0)
    _check_length(planned, tar, reader.position)
    return manifest, planned


def _check_length(planned: list[Weight], tar: _TarStream, position: int) -> None:
    """Compare the tar's length, where it is known, with the manifest's, before any file is fetched."""
    if tar.size is None:
        return
    for weight in planned:
        end = (weight.offset or 0) + weight.size
        if end > tar.size:
            raise _length_error(tar, tar.size, end, weight.path, f"too short to hold {weight.path}")
        position = max(position, padded(end))
    expected = tar_length(position)
    if tar.size != expected:
        last = planned[-1].path if planned else MANIFEST_NAME
        raise _length_error(tar, tar.size, expected, last, "not as long as its manifest says")


def _length_error(tar: _TarStream, seen: int, expected: int, path: str, fault: str) -> WeightsError:
    return WeightsError(
        f"{tar.shown} is {fault}: expected {expected} bytes, seen {seen}. Fetch it again or bake it again.",
        path=path,
        expected=f"{expected} bytes",
        seen=f"{seen} bytes",
    )


def _check_member(member: Member | None, weight: Weight, before: list[Weight], after: list[Weight]) -> None:
    """Raise WeightsError unless `member` is exactly what the manifest has at this place."""
    if member is None:
        raise WeightsError(
            f"{weight.path} is missing: the tar ends where it should begin. Fetch the tar again or bake it again.",
            path=weight.path,
            expected=f"{weight.path}, {weight.size} bytes",
            seen="the end of the tar",
        )
    if member.name != weight.path:
        known = {other.path for other in (*before, *after)}
        if member.name not in known:
            raise _extra(member, [weight])
        fault = "comes a second time" if member.name in {other.path for other in before} else "comes too early"
        raise WeightsError(
            f"{weight.path} is not at its place in the tar: {member.name!r:.300} {fault}. Bake the weights again.",
            path=weight.path,
            expected=weight.path,
            seen=member.name,
        )
    seen = member.oddity or f"{member.size} bytes at byte {member.offset} of the tar"
    expected = f"{weight.size} bytes at byte {weight.offset} of the tar"
    if seen != expected:
        raise WeightsError(
            f"{weight.path} is not what the manifest says: expected {expected}, seen {seen}. Bake the weights again.",
            path=weight.path,
            expected=expected,
            seen=seen,
        )


def _extra(member: Member, planned: list[Weight]) -> WeightsError:
    expected = planned[0].path if len(planned) == 1 else "the end of the tar"
    what = f" ({member.oddity})" if member.oddity else ""
    return WeightsError(
        f"The tar has {member.name[:300]!r}{what}, which its manifest does not have there. Bake the weights again.",
        path=member.name,
        expected=expected,
        seen=member.name,
    )
