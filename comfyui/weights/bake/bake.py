"""From the lists of links given to train() to one verified tar of weights.

    entries ──► sources ──► what each server says of its file ──► layout ──► all ranges of all files at once ──► tar

Everything that can be known to be wrong is said before the first byte is fetched. A failure anywhere leaves no tar.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from comfyui.errors import DownloadError
from comfyui.settings import Settings
from comfyui.weights.bake.addition import Addition
from comfyui.weights.bake.oven import OtherSizeError, Oven
from comfyui.weights.bake.wanted import check, find, want
from comfyui.weights.folders import workflow_use
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.listener import Listener
from comfyui.weights.manifest import Manifest
from comfyui.weights.sources import Tokens
from comfyui.weights.transfer.pump import TransferOptions


def bake(
    request: Mapping[str, str | None],
    out: Path,
    settings: Settings,
    tokens: Tokens,
    listener: Listener,
    *,
    allow_pickle: bool = False,
    resume: bool = False,
    options: TransferOptions | None = None,
    stop: threading.Event | None = None,
    addition: Addition | None = None,
) -> Manifest:
    """Fetch every link of `request` (training input → list of links) into the tar `out`; return its manifest.

    `addition` goes in behind them.

    With `resume`, what is fetched stays on the disk when the bake is interrupted, and the next one with the same
    request goes on from there. Raises TrainingInputError for what must be given otherwise, DownloadError when a server
    refuses or stays away, WeightsError when what arrives is not a whole weight file; then there is no tar.
    """
    options = options or TransferOptions()
    stop = stop or threading.Event()
    waits_s = options.policy.question_waits_s
    with HttpOpener(settings, read_timeout_s=options.read_timeout_s) as opener:
        wanted = want(request, settings, tokens, listener)
        found = find(wanted, settings, opener, listener, retry_waits_s=waits_s)
        for again in range(options.policy.restarts + 1):
            check(found, allow_pickle=allow_pickle)
            if addition is not None:
                addition.check(found, opener, stop)
            oven = Oven(
                found,
                out,
                settings,
                opener,
                listener,
                options,
                stop,
                addition,
                allow_pickle=allow_pickle,
                resume=resume,
            )
            try:
                manifest = oven.bake()
                break
            except OtherSizeError as error:
                if again == options.policy.restarts:
                    shown = error.item.wanted.source.display_url
                    raise DownloadError(
                        f"{error.item.path} keeps changing at {shown} while it is fetched; try again later.", url=shown
                    ) from None
                found = find(wanted, settings, opener, listener, retry_waits_s=waits_s)
    listener.say("In a workflow they are called:")
    for weight in manifest.weights:
        listener.say(f"  {workflow_use(weight.path)}")
    return manifest
