"""Restore a tar that has no manifest: what its headers name, if its structure is sound, all or none."""

from __future__ import annotations

from collections.abc import Sequence

from comfyui.errors import DownloadError, WeightsError
from comfyui.weights.bring.fetch import Fetch, Needed, given_up, reason
from comfyui.weights.bring.staging import Staging
from comfyui.weights.disk import require_room
from comfyui.weights.manifest import MANIFEST_NAME, Manifest
from comfyui.weights.restore.order import FROM_TAR, FROM_TAR_AGAIN, RestoreOrder
from comfyui.weights.tar.baked import Contents, InStream, read_contents
from comfyui.weights.tar.foreign import ForeignNames, scan
from comfyui.weights.tar.source import RangedTar, StreamTar
from comfyui.weights.transfer.faults import ChangedSourceError, InterruptedPieceError, NoRangesError


def restore_foreign(order: RestoreOrder, tar: RangedTar | StreamTar, contents: Contents) -> Manifest:
    """Bring the tar's weight files, and say what they are and that nothing proves them. Raises as `restore` does."""
    order.listener.say(
        f"{tar.shown} has no {MANIFEST_NAME}, so nothing proves its bytes but their structure: damaged numbers in "
        "a file would not be noticed. Weights baked by this model's training are proven by their SHA-256."
    )
    files = _by_ranges(order, tar, contents) if isinstance(tar, RangedTar) else _by_stream(order, tar, contents)
    return Manifest(tuple(file.weight() for file in files))


def _by_ranges(order: RestoreOrder, tar: RangedTar, contents: Contents) -> list[Needed]:
    """All headers first, so that a hostile tar is refused before a byte of a file is fetched."""
    files: list[Needed] = []
    names = ForeignNames(tar.shown, allow_pickle=order.allow_pickle)
    scan(contents.reader, contents.first, names, files.append)
    _check_some(tar, files)
    with order.staging() as staging:
        staging.sweep(file.path for file in files)
        require_room(order.models_dir, sum(file.size for file in files), "the weights")
        fetch = order.fetch(staging)
        with order.progress(files):
            failed = fetch.bring(files, FROM_TAR, lambda file: tar.part(file.offset or 0))
            for file in failed:
                # Another tar now, or one without ranges: all that is known of it is worth nothing.
                if isinstance(file.last_error, ChangedSourceError | NoRangesError):
                    raise file.last_error
            if failed and tar.remote:
                for file in failed:
                    order.listener.say(f"{file.path} came wrong: {reason(file.errors[-1][1])}; fetching it again")
                failed = fetch.bring(failed, FROM_TAR_AGAIN, lambda file: tar.part(file.offset or 0))
            if failed:
                raise given_up(failed)
        _say_passed_over(order, names)
        staging.commit(order.listener)
    return files


def _by_stream(order: RestoreOrder, tar: StreamTar, contents: Contents) -> list[Needed]:
    """Each file as it comes; a stream that breaks off begins again from the first."""
    with order.staging() as staging:
        fetch = order.fetch(staging)
        for attempt in range(1, order.options.policy.restarts + 2):
            names = ForeignNames(tar.shown, allow_pickle=order.allow_pickle)
            files: list[Needed] = []
            try:
                with order.progress([]):
                    _scan_stream(order, tar, contents, names, fetch, staging, files)
                break
            except InterruptedPieceError as fault:
                if attempt > order.options.policy.restarts:
                    raise DownloadError(
                        f"{tar.shown} broke off {attempt} times ({fault.reason}), and its server gives no ranges "
                        "to go on from. Try again later.",
                        url=tar.shown,
                    ) from fault
                order.listener.say(f"{tar.shown}: {fault.reason}; reading it anew")
                order.patience.wait(attempt, fault.retry_after_s)
                contents = order.patience.persist(tar.shown, lambda: read_contents(tar))
        _check_some(tar, files)
        _say_passed_over(order, names)
        staging.commit(order.listener)
    return files


def _scan_stream(
    order: RestoreOrder,
    tar: StreamTar,
    contents: Contents,
    names: ForeignNames,
    fetch: Fetch,
    staging: Staging,
    files: list[Needed],
) -> None:
    def take(file: Needed) -> None:
        staging.sweep([file.path])
        require_room(order.models_dir, file.size, file.path)
        fetch.bring([file], FROM_TAR, lambda file: InStream(contents.reader, file, tar.shown), one_stream=True)
        if isinstance(file.last_error, InterruptedPieceError):
            raise file.last_error
        if file.digest is None:
            raise given_up([file])
        files.append(file)

    scan(contents.reader, contents.first, names, take)


def _say_passed_over(order: RestoreOrder, names: ForeignNames) -> None:
    if names.passed_over:
        count = len(names.passed_over) - 10
        more = f" and {count} more" if count > 0 else ""
        shown = ", ".join(repr(name[:100]) for name in names.passed_over[:10])
        order.listener.say(f"passed over, being no weights: {shown}{more}")


def _check_some(tar: RangedTar | StreamTar, files: Sequence[Needed]) -> None:
    if not files:
        raise WeightsError(
            f"{tar.shown} has no weight files in it: expected plain files in model folders, such as "
            "loras/my_lora.safetensors.",
            path="(none)",
            expected="weight files",
            seen="none",
        )
