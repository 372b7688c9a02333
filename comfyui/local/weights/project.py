"""The project's own weights: entries of its weights_manifest.json, and the files in its models folder.

What lies there goes into the image at `cog push`. An entry is written only once its size and SHA-256 are known: from
the site that publishes them, or from the file itself, which is fetched and judged for that.
"""

from __future__ import annotations

import difflib
import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from comfyui.errors import ComfyUIModelError, DownloadError, RequestError, StoppedError, WeightsError
from comfyui.local.weights.check import extra_files
from comfyui.settings import Settings
from comfyui.weights.bring.fetch import Fetch, Needed, reason
from comfyui.weights.bring.folder_lock import folder_lock
from comfyui.weights.bring.from_source import LinkSource
from comfyui.weights.bring.staging import Staging
from comfyui.weights.disk import room_errors
from comfyui.weights.folders import TRAINING_INPUTS, check_member_path, path_key
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.judge.formats import check_extension
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.listener import Listener
from comfyui.weights.manifest import Manifest, Weight
from comfyui.weights.sources import RemoteFile, Tokens, understand
from comfyui.weights.sources.resolve import resolve
from comfyui.weights.transfer.faults import InterruptedPieceError
from comfyui.weights.transfer.pump import TransferOptions
from comfyui.weights.transfer.readers import stream_chunks

_INPUT_OF = {folder: name for name, folder in TRAINING_INPUTS.items()}


@dataclass(frozen=True)
class State:
    """An entry and what lies at its place, judged by its size alone: "there", "missing" or "other size"."""

    weight: Weight
    state: str
    seen: int | None


@dataclass(frozen=True)
class Project:
    """A manifest file and the models folder that it describes."""

    manifest_path: Path
    settings: Settings

    def manifest(self) -> Manifest:
        """The manifest. Raises ManifestError, and RequestError when there is none."""
        try:
            return Manifest.load(self.manifest_path)
        except FileNotFoundError as error:
            raise RequestError(f"There is no manifest at {self.manifest_path}.") from error

    def states(self) -> list[State]:
        """Each entry with what lies at its place."""
        found = []
        for weight in self.manifest().weights:
            file = self.settings.models_dir / weight.path
            seen = file.stat().st_size if file.is_file() else None
            state = "missing" if seen is None else "there" if seen == weight.size else "other size"
            found.append(State(weight, state, seen))
        return found

    def extras(self) -> list[str]:
        """Weight files in the models folder that are not in the manifest."""
        return extra_files(self.settings.models_dir, self.manifest())

    def add(
        self, link: str, folder: str, tokens: Tokens, listener: Listener, stop: Event, *, allow_pickle: bool
    ) -> Weight:
        """Write an entry for the file at `link`, into a model folder; fetch it if nobody publishes its SHA-256.

        Raises RequestError for what is there already, and what `resolve` and a fetch raise.
        """
        source = understand(link, self.settings, tokens, input_name=_INPUT_OF.get(folder))
        for notice in source.notices:
            listener.say(notice)
        with HttpOpener(self.settings) as opener:
            remote = resolve(source, self.settings, opener=opener)
            for notice in remote.notices:
                listener.say(notice)
            path = f"{folder}/{remote.name}"
            check_member_path(path)
            check_extension(path, allow_pickle=allow_pickle)
            _refuse_known(self.manifest(), path)
            if remote.sha256 is not None and remote.size is not None:
                weight = Weight(path, remote.manifest_url, remote.size, remote.sha256)
            else:
                weight = self._fetched(link, path, remote, opener, tokens, listener, stop, allow_pickle=allow_pickle)
        with self._alone():
            manifest = self.manifest()
            _refuse_known(manifest, path)
            Manifest((*manifest.weights, weight)).save(self.manifest_path)
        return weight

    def remove(self, path: str) -> Weight:
        """Take an entry out of the manifest; its file stays. Raises RequestError where there is none."""
        with self._alone():
            manifest = self.manifest()
            gone = next((weight for weight in manifest.weights if weight.path == path), None)
            if gone is None:
                known = [weight.path for weight in manifest.weights]
                near = difflib.get_close_matches(path, known, n=1)
                hint = f"did you mean {near[0]}?" if near else "scripts/weights list shows what is."
                raise RequestError(f"{path} is not in {self.manifest_path.name}; {hint}")
            Manifest(tuple(weight for weight in manifest.weights if weight is not gone)).save(self.manifest_path)
        return gone

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While it is entered, nobody else changes the manifest: two that did would lose one's entry."""
        handle = os.open(self.manifest_path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _fetched(
        self,
        link: str,
        path: str,
        remote: RemoteFile,
        opener: HttpOpener,
        tokens: Tokens,
        listener: Listener,
        stop: Event,
        *,
        allow_pickle: bool,
    ) -> Weight:
        """Fetch the file into the models folder, and take its size and SHA-256 from its bytes."""
        models_dir = self.settings.models_dir
        if (models_dir / path).exists():
            raise RequestError(
                f"There is a file at {models_dir / path}, and {remote.source.display_url} publishes no SHA-256 that "
                "would say whether it is the same. Move it away, or give the new one another name with #name=…."
            )
        listener.say(f"{remote.source.display_url} publishes no SHA-256: fetching the file to know it.")
        models_dir.mkdir(parents=True, exist_ok=True)
        with folder_lock(models_dir, listener, stop), Staging(models_dir) as staging:
            listener.begin("fetching", [(path, remote.size)])
            try:
                if remote.size is None:
                    digest = _stream(path, remote, opener, staging, listener, stop, allow_pickle=allow_pickle)
                else:
                    # By the link as it was given: the manifest's has lost its query, which may be a signature.
                    needed = Needed(path, remote.size, remote.sha256, link)
                    fetch = Fetch(staging, listener, TransferOptions(), stop, allow_pickle=allow_pickle)
                    shown = remote.source.display_url
                    if LinkSource(self.settings, opener, tokens).bring([needed], fetch, shown):
                        raise _why(needed, shown)
                    digest = Digest(needed.weight().size, needed.weight().sha256)
            finally:
                listener.end()
            if remote.sha256 not in (None, digest.sha256):
                raise WeightsError(
                    f"{path} is not the file that was promised: its SHA-256 is {digest.sha256}, expected "
                    f"{remote.sha256}. Check the link.",
                    path=path,
                    expected=remote.sha256,
                    seen=digest.sha256,
                )
            staging.commit(listener)
        return Weight(path, remote.manifest_url, digest.size, digest.sha256)


def _stream(
    path: str,
    remote: RemoteFile,
    opener: HttpOpener,
    staging: Staging,
    listener: Listener,
    stop: Event,
    *,
    allow_pickle: bool,
) -> Digest:
    """A file whose length nobody says, as one stream."""
    verifier = Verifier(path, allow_pickle=allow_pickle)
    position = 0
    with closing(staging.open(path, 0)) as target, room_errors(target.path.parent, path, "more bytes"):
        try:
            for chunk in stream_chunks(opener, remote.source, remote.url):
                if stop.is_set():
                    raise StoppedError("The transfer was stopped.")
                verifier.feed(chunk)
                target.write(position, memoryview(chunk))
                position += len(chunk)
                listener.advance(path, len(chunk))
        except InterruptedPieceError as error:
            shown = remote.source.display_url
            raise DownloadError(
                f"{path} could not be fetched from {shown}: {error.reason}. Try again.", url=shown
            ) from error
        digest = verifier.finish()
        target.sync()
    listener.proven(path, digest.size, digest.sha256)
    return digest


def _why(needed: Needed, shown: str) -> Exception:
    error = needed.last_error or RuntimeError("a file that failed without an error")
    if isinstance(error, ComfyUIModelError):
        return error
    return DownloadError(f"{needed.path} could not be fetched from {shown}: {reason(error)}. Try again.", url=shown)


def _refuse_known(manifest: Manifest, path: str) -> None:
    known = next((weight for weight in manifest.weights if path_key(weight.path) == path_key(path)), None)
    if known is not None:
        raise RequestError(
            f"{known.path} is in the manifest already, from {known.url or 'no link'} ({known.size} bytes). Remove it "
            f"first (scripts/weights remove {known.path}), or name the new one with #name=… behind its link."
        )
