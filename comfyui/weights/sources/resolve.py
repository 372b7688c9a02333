"""Ask the network what an understood source is: name, size, SHA-256 and how to fetch it, before a byte is fetched."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from comfyui.errors import DownloadError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.http.opener import REQUEST_FAILURES, HttpOpener
from comfyui.weights.remote import RemoteFile, Source
from comfyui.weights.sources.civitai import resolve_civitai
from comfyui.weights.sources.huggingface import resolve_hugging_face
from comfyui.weights.sources.probe import resolve_plain
from comfyui.weights.sources.replicate import resolve_tar_member

RETRY_WAITS_S = (1.0, 4.0)
"""How long to wait before each further question to a server that is busy or cannot be reached."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


def resolve(
    source: Source,
    settings: Settings,
    *,
    opener: HttpOpener | None = None,
    retry_waits_s: Sequence[float] = RETRY_WAITS_S,
    sleep: Callable[[float], None] = time.sleep,
) -> RemoteFile:
    """What is known of the file. `opener` is used if given, and stays open. Safe to call from several threads.

    Raises DownloadError when a server refuses or gives no name, and WeightsError when the published SHA-256 is not the
    one the person gave, or a tar holds no LoRA.
    """
    if opener is None:
        with HttpOpener(settings) as own:
            return resolve(source, settings, opener=own, retry_waits_s=retry_waits_s, sleep=sleep)
    for wait_s in retry_waits_s:
        try:
            return _resolve_once(source, settings, opener)
        except DownloadError as e:
            if not _may_pass(e):
                raise
        sleep(wait_s)
    return _resolve_once(source, settings, opener)


def _may_pass(error: DownloadError) -> bool:
    # A network that failed is the cause of an error that has no status.
    network_failed = error.status is None and isinstance(error.__cause__, (OSError, *REQUEST_FAILURES))
    return error.status in _BUSY or network_failed


def _resolve_once(source: Source, settings: Settings, opener: HttpOpener) -> RemoteFile:
    if source.hub is not None:
        remote = resolve_hugging_face(source, source.hub, settings, opener)
    elif source.civitai is not None:
        remote = resolve_civitai(source, source.civitai, opener)
    else:
        remote = resolve_plain(source, opener)
        if source.tar:
            remote = resolve_tar_member(source, remote, opener)
    if not remote.name:
        raise DownloadError(
            f"{source.display_url} has no file name, and its server gives none. Write one behind the link, as in "
            "#name=my.safetensors.",
            url=source.display_url,
        )
    return _with_given_sha256(remote)


def _with_given_sha256(remote: RemoteFile) -> RemoteFile:
    given = remote.source.sha256
    if given is not None and remote.sha256 is not None and given != remote.sha256:
        raise WeightsError(
            f"{remote.name} is not the file you mean: {remote.source.display_url} is published with SHA-256 "
            f"{remote.sha256}, and the one behind the link's # is {given}. Check both.",
            path=remote.name,
            expected=given,
            seen=remote.sha256,
        )
    return replace(remote, sha256=given or remote.sha256)
