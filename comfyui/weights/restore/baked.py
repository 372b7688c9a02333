"""Restore a tar that has a manifest: only what is missing, and what came wrong from wherever it can be had right.

missing ──► the tar ──► (bad) ──► the tar again ──► its own link ──► an error that names every place
"""

from __future__ import annotations

from collections.abc import Sequence

from comfyui.errors import SourceError, WeightsError
from comfyui.weights.bring.fetch import ITS_LINK, Fetch, Needed, given_up, reason
from comfyui.weights.bring.from_source import LinkSource
from comfyui.weights.bring.present import full_check, judge_all
from comfyui.weights.bring.staging import Staging
from comfyui.weights.disk import require_room
from comfyui.weights.judge.formats import check_extension
from comfyui.weights.judge.verify import Digest
from comfyui.weights.manifest import MANIFEST_NAME, Manifest
from comfyui.weights.restore.order import FROM_TAR, FROM_TAR_AGAIN, RestoreOrder
from comfyui.weights.sources import NO_TOKENS
from comfyui.weights.tar.baked import (
    Contents,
    bring_from_tar,
    contradiction,
    end_fault,
    look_at_headers,
    read_contents,
    worth_another_look,
)
from comfyui.weights.tar.source import RangedTar, StreamTar, open_tar
from comfyui.weights.transfer.faults import ChangedSourceError, InterruptedPieceError, NoRangesError, PieceFault


def restore_baked(order: RestoreOrder, tar: RangedTar | StreamTar, contents: Contents, manifest: Manifest) -> None:
    """Bring what is missing of the manifest's files, all or none. Raises as `restore` does."""
    files = [Needed.of(weight) for weight in manifest.weights]
    for file in files:
        check_extension(file.path, allow_pickle=order.allow_pickle)
    with order.staging() as staging:
        missing = _find_missing(order, files, staging)
        if missing:
            require_room(order.models_dir, sum(file.size for file in missing), "the weights")
            with order.progress(missing):
                _Healer(order, manifest, order.fetch(staging)).bring(tar, contents, missing)
            staging.commit(order.listener)


def _find_missing(order: RestoreOrder, files: Sequence[Needed], staging: Staging) -> list[Needed]:
    """Which files are not in the models folder, every byte of them right; says so of those that are."""
    staging.sweep(file.path for file in files)
    there = [
        (file.path, Digest(file.size, file.sha256 or ""), final)
        for file in files
        if (final := staging.final(file.path)).is_file() and final.stat().st_size == file.size
    ]
    wrong = judge_all(there, full_check(order.patience.stop, allow_pickle=order.allow_pickle))
    right = {path for path, _, _ in there if path not in wrong}
    for path, _, _ in there:
        what = f"wrong ({reason(wrong[path])}); it will be replaced" if path in wrong else "right"
        order.listener.say(f"{path} is there already and {what}")
    return [file for file in files if file.path not in right]


class _Healer:
    """Brings the files of one tar, from other places too."""

    def __init__(self, order: RestoreOrder, manifest: Manifest, fetch: Fetch) -> None:
        self._order = order
        self._manifest = manifest
        self._fetch = fetch
        self._remote = False

    def bring(self, tar: RangedTar | StreamTar, contents: Contents, missing: Sequence[Needed]) -> None:
        """Bring these files from wherever they can be had right. Raises WeightsError."""
        self._remote = isinstance(tar, StreamTar) or tar.remote
        if isinstance(tar, RangedTar):
            look_at_headers(tar, missing)
        failed = bring_from_tar(tar, contents, missing, self._fetch, FROM_TAR)
        self._say_faults(tar, contents, missing)
        failed = self._begin_again(failed)
        failed = self._heal(failed, links_first=isinstance(tar, StreamTar))
        if failed:
            raise given_up(failed)
        for file in missing:
            # A file that came from its link is not the one behind that header.
            fault = None if file.healed else contradiction(file)
            if fault is not None:
                raise fault

    def _begin_again(self, failed: list[Needed]) -> list[Needed]:
        """Read the tar anew for files that were cut off, as long as it breaks off or changes its ways."""
        for attempt in range(1, self._order.options.policy.restarts + 1):
            cut_off = [file for file in failed if _was_cut_off(file)]
            if not cut_off:
                break
            self._order.listener.say(f"{cut_off[0].path}: {reason(cut_off[0].errors[-1][1])}; reading the tar anew")
            self._order.patience.wait(attempt)
            self._again(cut_off)
            failed = [file for file in failed if file.digest is None]
        return failed

    def _heal(self, failed: list[Needed], *, links_first: bool) -> list[Needed]:
        """What came wrong, from the tar once more and from its own link; a stream is long, so the links come first."""
        for from_links in (links_first, not links_first):
            if failed:
                for file in failed:
                    place, error = file.errors[-1]
                    self._order.listener.say(f"{file.path} came wrong from {place}: {reason(error)}")
                if from_links:
                    LinkSource(self._order.settings, self._order.opener, NO_TOKENS).bring(failed, self._fetch, ITS_LINK)
                else:
                    self._again([file for file in failed if worth_another_look(file)])
                for file in failed:
                    if file.digest is not None:
                        file.healed = from_links
                        shown = f"{ITS_LINK} {file.url}" if from_links else FROM_TAR_AGAIN
                        self._order.listener.say(f"{file.path} is healed: fetched from {shown}")
            failed = [file for file in failed if file.digest is None]
        return failed

    def _again(self, files: Sequence[Needed]) -> None:
        """Open the tar anew and bring these files from it."""
        ranges = not any(isinstance(error, NoRangesError) for file in files for _, error in file.errors)
        if not files or not self._remote:
            return
        try:
            with open_tar(self._order.location, self._order.opener, self._order.patience, ranges=ranges) as tar:
                contents = self._order.patience.persist(tar.shown, lambda: read_contents(tar))
                if contents.manifest != self._manifest:
                    raise WeightsError(
                        f"{tar.shown} was replaced by another tar while it was restored. Start again.",
                        path=MANIFEST_NAME,
                        expected="the same manifest",
                        seen="another one",
                    )
                if isinstance(tar, RangedTar):
                    look_at_headers(tar, files)
                bring_from_tar(tar, contents, files, self._fetch, FROM_TAR_AGAIN)
        except (SourceError, PieceFault) as error:
            for file in files:
                if file.digest is None:
                    file.errors.append((FROM_TAR_AGAIN, error))

    def _say_faults(self, tar: RangedTar | StreamTar, contents: Contents, files: Sequence[Needed]) -> None:
        """Tell of damage beside the files' bytes, which a plain tar program would stumble over."""
        faults = [f"it has {file.header_fault} at {file.path}" for file in files if file.header_fault]
        faults += filter(None, [end_fault(tar, contents)])
        if faults:
            self._order.listener.say(f"{tar.shown} is damaged outside of its files: {'; '.join(faults[:10])}")


def _was_cut_off(file: Needed) -> bool:
    return isinstance(file.last_error, InterruptedPieceError | NoRangesError | ChangedSourceError)
