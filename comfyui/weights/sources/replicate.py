"""The LoRA inside a tar: what Replicate's trainers give as weights (`…/trained_model.tar`).

The tar's headers are read by ranges, so that name, size and place of the LoRA are known before it is fetched, and its
bytes alone are fetched afterwards. Format: POSIX ustar with pax and GNU long names (pubs.opengroup.org, pax; GNU tar
manual). Nothing is unpacked; only a plain file can be taken.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from comfyui.errors import DownloadError, WeightsError
from comfyui.weights.folders import safe_file_name
from comfyui.weights.http.answers import check_answer, total_of_range
from comfyui.weights.http.opener import HttpOpener, OpenedResponse
from comfyui.weights.judge.formats import SAFETENSORS_EXTENSIONS
from comfyui.weights.remote import RemoteFile, Source, TarMember

_BLOCK = tarfile.BLOCKSIZE
_WINDOW_BYTES = 256 * 1024
_MAX_MEMBERS = 10_000
_MAX_EXTRA_BYTES = 64 * 1024
_MAX_TAR_BYTES = 64 * 1024**3
_NAMES_SHOWN = 12
_PREFERRED = ("lora.safetensors", "flux-lora.safetensors", "pytorch_lora_weights.safetensors")
# Names that say nothing of the LoRA in them.
_GENERIC = frozenset({"lora", "flux-lora", "pytorch_lora_weights", "trained_model", "model", "weights", "output"})

ReadAt = Callable[[int, int], bytes]
"""Bytes of the tar from a place on, fewer at its end; places only grow."""


def resolve_tar_member(source: Source, tar: RemoteFile, opener: HttpOpener) -> RemoteFile:
    """The LoRA in the tar that `tar` tells about. Raises DownloadError, and WeightsError for a tar that is none."""
    if tar.ranges and tar.size is not None:
        members = list_members(_Ranges(source, tar, opener).read_at, source.display_url)
    else:
        with opener.open(source, tar.url) as opened:
            check_answer(opened.response, source)
            members = list_members(_Stream(source, opened, opener).read_at, source.display_url)
    member = choose_member(members, source.display_url)
    name = source.name or member_name(member, source.url)
    notice = f"{source.display_url}: taking {member.name!r:.200} from the tar, as {name}."
    return replace(tar, name=name, size=member.size, member=member, notices=(*tar.notices, notice))


def list_members(read_at: ReadAt, shown: str) -> list[TarMember]:
    """The plain files of a tar. Raises WeightsError when it is no tar, or one that cannot be trusted."""
    members: list[TarMember] = []
    position, name, size = 0, None, None
    for _ in range(_MAX_MEMBERS):
        block = read_at(position, _BLOCK)
        if len(block) == _BLOCK and not any(block):
            return members
        info = _header(block, position, shown)
        position += _BLOCK
        if info.size < 0 or info.type in (tarfile.GNUTYPE_SPARSE, b"M"):
            raise _fault(shown, f"its member at byte {position - _BLOCK} is sparse, or of no size")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            extra = _extra(read_at, position, info.size, shown)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = extra.rstrip(b"\0").decode(errors="replace")
            elif info.type == tarfile.XHDTYPE:
                name, size = _pax(extra, name, size, shown)
            position += _padded(info.size)
            continue
        length = info.size if size is None else size
        # Folders, links and devices have no data, whatever their headers say.
        if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:
            if info.isreg():
                members.append(TarMember(info.name if name is None else name, length, position))
            position += _padded(length)
        if position > _MAX_TAR_BYTES:
            raise _fault(shown, f"it is longer than {_MAX_TAR_BYTES} bytes")
        name, size = None, None
    raise _fault(shown, f"it has more than {_MAX_MEMBERS} members")


def choose_member(members: Iterable[TarMember], shown: str) -> TarMember:
    """The one safetensors file, or the one that is called as the trainers call a LoRA. Raises WeightsError."""
    found = [m for m in members if _base(m).lower().endswith(SAFETENSORS_EXTENSIONS) and not _base(m).startswith("._")]
    named = [m for m in found if _base(m) in _PREFERRED]
    for choice in (found, named):
        if len(choice) == 1:
            return choice[0]
    if not found:
        raise _fault(shown, "it has no .safetensors file in it")
    names = ", ".join(m.name[:200] for m in found[:_NAMES_SHOWN])
    raise _fault(shown, f"it has {len(found)} .safetensors files and none is lora.safetensors: {names}")


def member_name(member: TarMember, url: str) -> str:
    """What to call the LoRA: as in the tar, where that says something; else after the tar's link."""
    own = safe_file_name(_base(member))
    if own.rpartition(".")[0].lower() not in _GENERIC:
        return own
    parts = [unquote(part) for part in urlsplit(url).path.split("/") if part]
    tar_stem = re.sub(r"\.tar$", "", parts[-1] if parts else "", flags=re.IGNORECASE)
    if tar_stem.lower() not in _GENERIC:
        return safe_file_name(f"{tar_stem}.safetensors") or own
    training = re.sub(r"[^\w-]", "", parts[-2] if len(parts) > 1 else "")[:12]
    return f"lora-{training}.safetensors" if training else own


class _Ranges:
    """Bytes of the tar by range requests, some more at a time than are asked for."""

    def __init__(self, source: Source, tar: RemoteFile, opener: HttpOpener) -> None:
        self._source, self._tar, self._opener = source, tar, opener
        self._start, self._window = 0, b""

    def read_at(self, start: int, length: int) -> bytes:
        if not self._start <= start <= start + length <= self._start + len(self._window):
            self._start, self._window = start, self._fetch(start, max(length, _WINDOW_BYTES))
        return self._window[start - self._start :][:length]

    def _fetch(self, start: int, length: int) -> bytes:
        size = self._tar.size or 0
        end = min(start + length, size)
        if start >= end:
            return b""
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if self._tar.validator:
            headers["If-Range"] = self._tar.validator
        with self._opener.open(self._source, self._tar.url, headers) as opened:
            # 200: it is another tar than a moment ago (If-Range).
            if opened.response.status_code != 200:
                check_answer(opened.response, self._source, status=206)
            if total_of_range(opened.response, start, end - 1) != size:
                raise DownloadError(
                    f"{self._source.display_url} gave other bytes than it was asked for. Try again, or use another "
                    "link.",
                    url=self._source.display_url,
                    status=206,
                )
            return self._opener.read(opened, end - start, self._source)


class _Stream:
    """Bytes of a tar that comes in one piece; what lies between is read over."""

    def __init__(self, source: Source, opened: OpenedResponse, opener: HttpOpener) -> None:
        self._source, self._opened, self._opener = source, opened, opener
        self._position = 0

    def read_at(self, start: int, length: int) -> bytes:
        while self._position < start:
            skipped = self._take(min(start - self._position, _WINDOW_BYTES))
            if not skipped:
                return b""
        return self._take(length)

    def _take(self, length: int) -> bytes:
        data = self._opener.read(self._opened, length, self._source)
        self._position += len(data)
        return data


def _header(block: bytes, position: int, shown: str) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError as e:
        raise _fault(shown, "it is no tar" if position == 0 else f"it is cut or damaged at byte {position}") from e


def _extra(read_at: ReadAt, position: int, size: int, shown: str) -> bytes:
    data = read_at(position, size) if size <= _MAX_EXTRA_BYTES else b""
    if len(data) != size:
        raise _fault(shown, f"it is cut, or has a name of {size} bytes, at byte {position}")
    return data


def _pax(extra: bytes, name: str | None, size: int | None, shown: str) -> tuple[str | None, int | None]:
    """Name and size from a pax header's records, each `length key=value` and a line end."""
    while extra:
        length, _, _ = extra.partition(b" ")
        end = int(length) if re.fullmatch(rb"\d{1,6}", length) else 0
        key, equals, value = extra[len(length) + 1 : end - 1].partition(b"=")
        # A record that is not longer than its own length would be read for ever.
        if not equals or not len(length) + 1 < end <= len(extra) or key.startswith(b"GNU.sparse"):
            raise _fault(shown, "it has a pax header that cannot be read, or a sparse file")
        if key == b"path":
            name = value.decode(errors="replace")
        elif key == b"size":
            if not re.fullmatch(rb"\d{1,18}", value):
                raise _fault(shown, "it has a pax header that cannot be read, or a sparse file")
            size = int(value)
        extra = extra[end:]
    return name, size


def _base(member: TarMember) -> str:
    return member.name.rpartition("/")[2]


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _fault(shown: str, what: str) -> WeightsError:
    return WeightsError(
        f"No LoRA can be taken from {shown}: {what}. Give the link of a training's weights, or of a .safetensors file.",
        path=shown,
        expected="a tar with one LoRA in it",
        seen=what,
    )
