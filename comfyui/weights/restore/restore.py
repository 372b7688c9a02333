"""From a tar of weights to files in ComfyUI's models folder: all of them, each proven, or none.

    tar ──► manifest ──► what is missing ──► ranges of all files at once ──► proven ──► all renamed
                                               └─ bad ones: the tar again ──► their own links ──► an error

A tar of bake is read by its manifest (`baked`), any other by its headers (`foreign`). A server that
gives no ranges sends one stream, and the files come out of it one after another.
"""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event

from comfyui.errors import DownloadError, WeightsError
from comfyui.settings import Settings
from comfyui.url_policy import display_url
from comfyui.weights.bring.fetch import reason
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.listener import Listener, size_text
from comfyui.weights.manifest import MANIFEST_NAME, Manifest
from comfyui.weights.restore.baked import restore_baked
from comfyui.weights.restore.foreign import restore_foreign
from comfyui.weights.restore.order import RestoreOrder
from comfyui.weights.tar.baked import read_contents
from comfyui.weights.tar.source import Patience, open_tar
from comfyui.weights.transfer.faults import ChangedSourceError, NoRangesError
from comfyui.weights.transfer.pump import TransferOptions


def restore(
    location: str,
    models_dir: Path,
    settings: Settings,
    listener: Listener,
    stop: Event | None = None,
    *,
    allow_pickle: bool = True,
    options: TransferOptions | None = None,
) -> Manifest:
    """Restore the tar at `location` (an http, https or file URL, or a path) into `models_dir`, and return its manifest.

    The manifest of a tar that bake did not make is what was found in it. `allow_pickle` is on because a tar has pickles
    only if whoever baked it asked for them. Raises WeightsError or ManifestError for what is not whole and true and
    cannot be healed, DownloadError for a link, RequestError for a location that is no file, StorageError when this
    machine cannot hold the files, and StoppedError once `stop` is set; then no file has come or changed under a
    final name.
    """
    options = options or TransferOptions()
    patience = Patience(options.policy, stop or Event(), listener.say)
    with HttpOpener(settings) as opener:
        return _run(
            RestoreOrder(location, models_dir, settings, listener, patience, opener, options, allow_pickle=allow_pickle)
        )


def read_manifest(location: str, settings: Settings) -> Manifest:
    """What the tar at `location` says it holds, nothing of it proven; `location` and errors are those of `restore`.

    Raises WeightsError for a tar that has no manifest.
    """
    patience = Patience(TransferOptions().policy, Event(), lambda _line: None)
    with HttpOpener(settings) as opener, open_tar(location, opener, patience, ranges=False) as tar:
        contents = patience.persist(tar.shown, lambda: read_contents(tar))
    if contents.manifest is None:
        seen = repr(contents.first.name[:300]) if contents.first else "nothing"
        raise WeightsError(
            f"{tar.shown} was not made by this model's training: its first member must be {MANIFEST_NAME}, seen "
            f"{seen}. Bake the weights again with this model.",
            path=MANIFEST_NAME,
            expected=f"{MANIFEST_NAME} as the first member",
            seen=seen,
        )
    return contents.manifest


def _run(order: RestoreOrder) -> Manifest:
    """Whatever tar it is; one that turns out to be another than at first, or to have no ranges, begins again."""
    ranges = True
    for attempt in range(1, order.options.policy.restarts + 2):
        try:
            return _run_once(order, ranges=ranges)
        except (NoRangesError, ChangedSourceError) as fault:
            ranges = ranges and not isinstance(fault, NoRangesError)
            order.listener.say(f"the tar begins again: {reason(fault)}")
        order.patience.wait(attempt)
    shown = display_url(order.location)
    raise DownloadError(f"{shown} keeps changing while it is read. Try again later.", url=shown)


def _run_once(order: RestoreOrder, *, ranges: bool) -> Manifest:
    started = time.monotonic()
    with open_tar(order.location, order.opener, order.patience, ranges=ranges) as tar:
        order.listener.say(f"restoring weights from {tar.shown} ({size_text(tar.size)})")
        contents = order.patience.persist(tar.shown, lambda: read_contents(tar))
        if contents.manifest is None:
            manifest = restore_foreign(order, tar, contents)
        else:
            manifest = contents.manifest
            restore_baked(order, tar, contents, manifest)
    size = size_text(sum(weight.size for weight in manifest.weights))
    order.listener.say(f"{len(manifest.weights)} weight files in place, {size} in {time.monotonic() - started:.1f} s")
    return manifest
