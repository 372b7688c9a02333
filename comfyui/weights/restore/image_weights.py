"""The weights of `weights_manifest.json`: part of the image where they were pulled before `cog push`, else fetched.

What is there gets a look (size and structure) at every start, or a full hash if somebody asks for it; what is absent or
wrong is fetched from its link, all files at once, and proven before it gets its name.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from comfyui.errors import WeightsError
from comfyui.settings import PROJECT_ROOT, Settings
from comfyui.weights.bring.fetch import ITS_LINK, Fetch, Needed, given_up, reason
from comfyui.weights.bring.folder_lock import folder_lock
from comfyui.weights.bring.from_source import LinkSource
from comfyui.weights.bring.present import full_check, judge_all, quick_check
from comfyui.weights.bring.staging import Staging
from comfyui.weights.disk import require_room
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.judge.formats import check_extension
from comfyui.weights.judge.verify import Digest
from comfyui.weights.listener import Listener, size_text
from comfyui.weights.manifest import MANIFEST_NAME, Manifest
from comfyui.weights.restore.restore import restore
from comfyui.weights.sources import NO_TOKENS, Tokens
from comfyui.weights.transfer.pump import TransferOptions


def prepare_weights(
    location: str | None,
    settings: Settings,
    listener: Listener,
    stop: Event | None = None,
    *,
    manifest_path: Path = PROJECT_ROOT / MANIFEST_NAME,
) -> None:
    """Everything a predictor needs before its first run: the image's own weights, then those of the tar at `location`.

    Raises what `ensure_weights` and `restore` raise, and ManifestError.
    """
    if manifest_path.is_file():
        ensure_weights(Manifest.load(manifest_path), settings.models_dir, settings, listener, stop=stop)
    if location:
        restore(location, settings.models_dir, settings, listener, stop)


def ensure_weights(
    manifest: Manifest,
    models_dir: Path,
    settings: Settings,
    listener: Listener,
    tokens: Tokens = NO_TOKENS,
    stop: Event | None = None,
    *,
    full: bool | None = None,
    allow_pickle: bool = True,
    options: TransferOptions | None = None,
) -> None:
    """Bring every file of `manifest` into `models_dir`; those that are there are checked, and replaced if wrong.

    `full` hashes them, else their size and structure is looked at; None leaves it to WEIGHTS_VERIFY. `allow_pickle` is
    on because whoever wrote the manifest chose its files, each with its SHA-256. Raises WeightsError for a file that
    cannot be had right, StorageError when this machine cannot hold it, StoppedError once `stop` is set; then no
    file has come or changed under a final name.
    """
    full = settings.weights_verify == "full" if full is None else full
    stop, options = stop or Event(), options or TransferOptions()
    files = [Needed.of(weight) for weight in manifest.weights]
    for file in files:
        check_extension(file.path, allow_pickle=allow_pickle)
    if not files:
        return
    started = time.monotonic()
    models_dir.mkdir(parents=True, exist_ok=True)
    with folder_lock(models_dir, listener, stop), Staging(models_dir) as staging:
        staging.sweep(file.path for file in files)
        missing = _missing(files, staging, listener, stop, full=full, allow_pickle=allow_pickle)
        if missing:
            require_room(models_dir, sum(file.size for file in missing), "the image's weights")
            fetch = Fetch(staging, listener, options, stop, allow_pickle=allow_pickle)
            _bring(missing, fetch, settings, listener, tokens)
            staging.commit(listener)
    how = "hashed" if full else "looked at"
    listener.say(
        f"{len(files)} weight files of {MANIFEST_NAME}: {len(files) - len(missing)} there and {how}, {len(missing)} "
        f"fetched ({size_text(sum(file.size for file in missing))}), in {time.monotonic() - started:.1f} s"
    )


def _missing(
    files: Sequence[Needed], staging: Staging, listener: Listener, stop: Event, *, full: bool, allow_pickle: bool
) -> list[Needed]:
    there = [
        (file.path, Digest(file.size, file.sha256 or ""), final)
        for file in files
        if (final := staging.final(file.path)).is_file()
    ]
    check = full_check(stop, allow_pickle=allow_pickle) if full else quick_check(allow_pickle=allow_pickle)
    wrong = judge_all(there, check)
    for path, error in wrong.items():
        listener.say(f"{path} is there and wrong ({reason(error)}); fetching it again")
    right = {path for path, _, _ in there} - wrong.keys()
    return [file for file in files if file.path not in right]


def _bring(missing: Sequence[Needed], fetch: Fetch, settings: Settings, listener: Listener, tokens: Tokens) -> None:
    nowhere = [file.path for file in missing if file.url is None]
    if nowhere:
        raise WeightsError(
            f"{nowhere[0]} is not in the models folder as it should be, and {MANIFEST_NAME} has no url for it. Put the "
            f"file there before `cog push`, or write its url.{f' So it is with {nowhere[1:]}.' if nowhere[1:] else ''}",
            path=nowhere[0],
            expected="the file, or a url",
            seen="neither",
        )
    listener.begin("fetching", [(file.path, file.size) for file in missing])
    try:
        with HttpOpener(settings) as opener:
            failed = LinkSource(settings, opener, tokens).bring(missing, fetch, ITS_LINK)
    finally:
        listener.end()
    if failed:
        raise given_up(failed)
