"""Checkpoints and LoRAs by their links: what a checkpoint is before it is fetched, and one file fetched and proven."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event

from comfyui.errors import DownloadError, TrainingInputError
from comfyui.settings import Settings
from comfyui.training.base_model import BaseModel, judge
from comfyui.training.metadata import OLD_HASH_RANGE, old_model_hash
from comfyui.training.tensors import read_header
from comfyui.training.trainer import Base
from comfyui.weights.bake.wanted import understood
from comfyui.weights.bring.fetch import ITS_LINK, Fetch, Needed, given_up
from comfyui.weights.bring.from_source import LinkSource
from comfyui.weights.bring.staging import Staging
from comfyui.weights.disk import require_room
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.listener import Listener
from comfyui.weights.manifest import Weight
from comfyui.weights.sources import RemoteFile, Tokens, parse_list
from comfyui.weights.sources.resolve import resolve
from comfyui.weights.transfer.faults import PieceFault
from comfyui.weights.transfer.job import Reader
from comfyui.weights.transfer.pump import TransferOptions
from comfyui.weights.transfer.readers import RangeReader, RemoteObject


@dataclass(frozen=True)
class Links:
    """Who asks for links, and who is told of it."""

    settings: Settings
    tokens: Tokens
    listener: Listener

    def ask(self, link: str, input_name: str, opener: HttpOpener) -> RemoteFile:
        """What the server of the one link of a training input says. Raises TrainingInputError and DownloadError."""
        entries = parse_list(link)
        if len(entries) != 1:
            raise TrainingInputError(f"{input_name} is one link, to one file.", input_name=input_name)
        source = understood(entries[0], input_name, self.settings, self.tokens, self.listener)
        remote = resolve(source, self.settings, opener=opener)
        for notice in remote.notices:
            self.listener.say(notice)
        return remote

    def fetch(
        self, remote: RemoteFile, folder: str, link: str, models_dir: Path, opener: HttpOpener, stop: Event
    ) -> Weight:
        """Bring the file into a folder of `models_dir`, and return what it is. Raises as weights do."""
        if remote.size is None:
            shown = remote.source.display_url
            raise DownloadError(f"{shown} does not say how long it is; put the file on another server.", url=shown)
        file = Needed(f"{folder}/{remote.name}", remote.size, remote.sha256, link)
        with staging(models_dir, self.listener, stop) as (staged, fetch):
            require_room(models_dir, remote.size, file.path)
            self.listener.begin("fetching", [(file.path, file.size)])
            try:
                failed = LinkSource(self.settings, opener, self.tokens).bring([file], fetch, ITS_LINK)
            finally:
                self.listener.end()
            if failed:
                raise given_up(failed)
            staged.commit(self.listener)
        return file.weight()


@contextmanager
def staging(models_dir: Path, listener: Listener, stop: Event) -> Iterator[tuple[Staging, Fetch]]:
    """Files on their way into a models folder, and what brings them there."""
    models_dir.mkdir(parents=True, exist_ok=True)
    with Staging(models_dir) as staged:
        yield staged, Fetch(staged, listener, TransferOptions(), stop, allow_pickle=False)


def probe(remote: RemoteFile, path: str, opener: HttpOpener) -> BaseModel | None:
    """What a checkpoint is by its header, before the rest of it is fetched; None where that cannot be known.

    Raises WeightsError for one that no LoRA can be trained on.
    """
    if not remote.ranges:
        return None
    known = RemoteObject(remote.source, remote.url, None if remote.member else remote.size, remote.validator)
    try:
        return judged(RangeReader(opener, known, first=remote.member.offset if remote.member else 0), path)
    except PieceFault:
        # The transfer tries more patiently, and what it brings is judged again.
        return None


def base_of(reader: Reader, weight: Weight) -> Base:
    """The checkpoint that `reader` reads, as the trainer wants to know it. Raises as `judged`."""
    start, length = OLD_HASH_RANGE
    part = read(reader, start, max(0, min(length, weight.size - start)))
    name = PurePosixPath(weight.path).name
    return Base(name, judged(reader, weight.path), weight.sha256, old_model_hash(part))


def judged(reader: Reader, path: str) -> BaseModel:
    """What the checkpoint that `reader` reads is. Raises as `judge`, and PieceFault as a Reader does."""
    return judge(read_header(lambda start, length: read(reader, start, length), path), path)


def read(reader: Reader, start: int, length: int) -> bytes:
    """`length` bytes of a file from `start`. Raises PieceFault as a Reader does."""
    data = bytearray(length)
    for _ in reader.read(start, memoryview(data)):
        continue
    return bytes(data)
