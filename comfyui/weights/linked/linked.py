"""Weights that a workflow names by link: asked for each time, fetched when their content is not here yet.

    Link ──► ask (its server, with the caller's own token) ──► Asked ──► bring: the shelf, else fetch ──► Brought

The server is asked every time, so a file that was changed, closed or made private is noticed, and no caller gets what
another one's token has brought. This module knows nothing of workflows and of ComfyUI.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from threading import Event

from comfyui.errors import DownloadError, RequestError, StoppedError, StorageError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.judge.formats import PICKLE_EXTENSIONS, check_extension
from comfyui.weights.linked.fetch import LinkFetch
from comfyui.weights.linked.index import Content, Kept
from comfyui.weights.linked.shelf import Lease, Shelf, Spot
from comfyui.weights.listener import Listener, size_text
from comfyui.weights.sources import RemoteFile, Tokens, understand
from comfyui.weights.sources.resolve import resolve
from comfyui.weights.transfer.faults import ChangedSourceError
from comfyui.weights.transfer.pump import TransferOptions

FETCHES_AT_ONCE = 2
"""Each has connections and buffers of its own."""
WATCH_S = 0.1
SETTLED_S = 60.0
"""A file changed less than so long before it was asked about may change again within the same second of its date."""
_TAR_FOLDERS = ("loras",)
"""Folders for which a link to a training's tar means the LoRA in it."""


@dataclass(frozen=True)
class Link:
    """A link as the caller wrote it, and the folder below the models folder that its file is for.

    `extensions` are those of the files that ComfyUI lists in that folder; none of them stands for all.
    """

    written: str = field(repr=False)
    folder: str
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Asked:
    """A link whose server has said what it gives; `notices` are sentences for the person about it."""

    link: Link
    tokens: Tokens
    remote: RemoteFile
    content: Content

    @property
    def display_url(self) -> str:
        """Where the file comes from, for people."""
        return self.remote.source.display_url

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences for the person about what was understood and chosen."""
        return (*self.remote.source.notices, *self.remote.notices)

    @property
    def sha256(self) -> str | None:
        """What the file's SHA-256 has to be, as far as anybody has said."""
        return self.content.given or self.content.published


@dataclass(frozen=True)
class Brought:
    """A file that is there: its name in its model folder, its size in bytes, and whether it had to be fetched."""

    name: str
    size: int
    fetched: bool
    seconds: float


class LinkedWeights:
    """The linked weights of one process. Safe to use from any thread; its methods wait for servers and disks."""

    def __init__(self, settings: Settings, *, options: TransferOptions | None = None) -> None:
        self._settings = settings
        self._options = options or TransferOptions()
        self._shelf = Shelf(settings.data_dir / "linked-weights", settings.models_dir, settings.linked_weights_bytes)
        self._slots = threading.Semaphore(FETCHES_AT_ONCE)
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Lock, int]] = {}

    def lease(self) -> Lease:
        """What one prediction is going to use: none of it is removed until the lease is closed."""
        return self._shelf.lease()

    def sweep(self) -> None:
        """Remove what a killed process left. Happens by itself before the first file is brought."""
        self._shelf.sweep()

    def ask(self, link: Link, tokens: Tokens, stop: Event) -> Asked:
        """What the link gives to who has these tokens.

        Raises RequestError for a link that cannot mean a file, DownloadError when its server refuses or cannot be
        reached, WeightsError for a file of a kind that is not taken, StorageError for one that is too large.
        """
        if not self._shelf.budget:
            raise RequestError("This model takes no weights by link (LINKED_WEIGHTS_GB is 0); bake them in a training.")
        input_name = link.folder if link.folder in _TAR_FOLDERS else None
        source = understand(link.written, self._settings, tokens, input_name=input_name)
        with HttpOpener(self._settings, read_timeout_s=self._options.read_timeout_s) as opener:
            # The SHA-256 that the caller gave must not pass for one that the site has published.
            remote = resolve(
                replace(source, sha256=None),
                self._settings,
                opener=opener,
                retry_waits_s=self._options.policy.question_waits_s,
                sleep=lambda seconds: _rest(stop, seconds),
            )
        content = Content(
            link=_link_key(remote),
            size=remote.size,
            validator=remote.validator if _is_strong(remote.validator) else None,
            published=remote.sha256,
            given=source.sha256,
        )
        asked = Asked(link, tokens, remote, content)
        self._check(asked)
        return asked

    def check_together(self, asked: Collection[Asked]) -> None:
        """Raise StorageError if these files, which one prediction needs at once, are more than there may be."""
        sizes = {one.content.published or one.content.link: one.remote.size or 0 for one in asked}
        total = sum(sizes.values())
        if total > self._shelf.budget:
            raise StorageError(
                f"The {len(sizes)} files that this workflow names by link are {size_text(total)} together, more than "
                f"the {size_text(self._shelf.budget)} that all weights by links may take here. Bake some in a "
                "training, or set LINKED_WEIGHTS_GB higher.",
                path=", ".join(one.remote.name for one in asked),
                expected=f"{self._shelf.budget} bytes at most",
                seen=f"{total} bytes",
            )

    def bring(self, asked: Asked, lease: Lease, listener: Listener, stop: Event) -> Brought:
        """See that the file is there, for as long as the lease is open; two who want the same file fetch it once.

        Raises as `ask` does, and StoppedError once `stop` is set; then nothing half fetched is left.
        """
        started = time.monotonic()
        for _ in range(self._options.policy.restarts + 1):
            try:
                with self._turn(asked, stop):
                    found, fetched = self._bring(asked, lease, listener, stop)
            except ChangedSourceError as error:
                listener.say(f"{asked.remote.name} begins again: {error.reason}")
                asked = self.ask(asked.link, asked.tokens, stop)
                continue
            name, kept = found
            return Brought(name, kept.size, fetched, time.monotonic() - started)
        raise DownloadError(
            f"{asked.remote.name} keeps changing at {asked.display_url} while it is fetched; try again later.",
            url=asked.display_url,
        )

    def _bring(self, asked: Asked, lease: Lease, listener: Listener, stop: Event) -> tuple[tuple[str, Kept], bool]:
        spot = Spot(asked.link.folder, asked.remote.name)
        if found := self._shelf.take(asked.content, spot, lease, listener.say):
            _check_given(asked, found[1].sha256)
            return found, False
        with self._slot(stop), self._shelf.new_part(spot) as part:
            listener.begin(f"fetching {asked.display_url}:", [(asked.remote.name, asked.remote.size)])
            with HttpOpener(self._settings, read_timeout_s=self._options.read_timeout_s) as opener:
                fetch = LinkFetch(asked.remote, asked.sha256, part, opener, self._options, listener, stop)
                digest = fetch.bring()
            return self._shelf.keep(part, digest, asked.content, lease), True

    def _check(self, asked: Asked) -> None:
        """Refuse before a byte is fetched what could not be used afterwards."""
        name, size = asked.remote.name, asked.remote.size
        extension = name[name.rfind(".") :].lower() if "." in name else ""
        if extension in PICKLE_EXTENSIONS:
            raise WeightsError(
                f"{name} is refused: {extension} files are Python pickles, which can run any code when they are "
                "loaded. Use the .safetensors file of the same model. If you trust whoever made it, bake it in a "
                "training with allow_pickle.",
                path=name,
                seen=extension,
            )
        check_extension(name, allow_pickle=False)
        if asked.link.extensions and extension not in asked.link.extensions:
            expected = ", ".join(sorted(asked.link.extensions.difference(PICKLE_EXTENSIONS)))
            raise WeightsError(
                f"{name} cannot be used there: ComfyUI looks for {expected} in {asked.link.folder}.",
                path=name,
                expected=expected,
                seen=extension,
            )
        if asked.content.published is not None:
            _check_given(asked, asked.content.published)
        if size is not None and size > self._shelf.budget:
            raise StorageError(
                f"{name} is {size_text(size)}, more than the {size_text(self._shelf.budget)} that all weights by links "
                "may take here. Bake it in a training, or set LINKED_WEIGHTS_GB higher.",
                path=name,
                expected=f"{self._shelf.budget} bytes at most",
                seen=f"{size} bytes",
            )

    @contextmanager
    def _turn(self, asked: Asked, stop: Event) -> Iterator[None]:
        """One at a time for the same content, as far as that is known; others wait, and then find it there."""
        key = asked.content.published or asked.content.link
        with self._lock:
            turn, users = self._turns.get(key, (threading.Lock(), 0))
            self._turns[key] = (turn, users + 1)
        try:
            _wait(turn.acquire, stop)
            try:
                yield
            finally:
                turn.release()
        finally:
            with self._lock:
                turn, users = self._turns.pop(key)
                if users > 1:
                    self._turns[key] = (turn, users - 1)

    @contextmanager
    def _slot(self, stop: Event) -> Iterator[None]:
        _wait(self._slots.acquire, stop)
        try:
            yield
        finally:
            self._slots.release()


def _wait(acquire: Callable[..., bool], stop: Event) -> None:
    while not acquire(timeout=WATCH_S):
        if stop.is_set():
            raise StoppedError("The prediction that wanted these weights has ended.")


def _rest(stop: Event, seconds: float) -> None:
    if stop.wait(seconds):
        raise StoppedError("The prediction that wanted these weights has ended.")


def _check_given(asked: Asked, seen: str) -> None:
    given = asked.content.given
    if given is not None and given != seen:
        raise WeightsError(
            f"{asked.remote.name} is not the file you mean: {asked.display_url} gives the one with SHA-256 {seen}, and "
            f"the one behind the link's # is {given}. Check both.",
            path=asked.remote.name,
            expected=given,
            seen=seen,
        )


def _link_key(remote: RemoteFile) -> str:
    """What stands for a link in the index: no more than a hash, for its query may hold a secret."""
    part = f"\n{remote.member.name}\n{remote.member.offset}" if remote.member else ""
    return hashlib.sha256(f"{remote.url}{part}".encode()).hexdigest()


def _is_strong(validator: str | None) -> bool:
    """Whether two answers with this validator are the same content (RFC 9110, 8.8.1 and 8.8.2.2)."""
    if validator is None or validator.startswith('"'):
        return validator is not None
    return time.time() - parsedate_to_datetime(validator).timestamp() > SETTLED_S
