"""From the lists of links given to train() to one verified tar of weights.

Everything that can be known to be wrong is said before the first byte is fetched; then each file goes from its server
straight into the tar. A failure anywhere leaves no tar.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from comfyui.errors import TrainingInputError, WeightsError
from comfyui.settings import Settings
from comfyui.suggest import unknown_inputs_message
from comfyui.weights.archive import ArchiveWriter
from comfyui.weights.download import open_stream
from comfyui.weights.folders import TRAINING_INPUTS, path_key, workflow_use
from comfyui.weights.formats import check_extension
from comfyui.weights.manifest import Manifest, Weight, room_for
from comfyui.weights.progress import Progress, size_text
from comfyui.weights.sources import Source, Tokens, parse_list, understand
from comfyui.weights.verify import Verifier


@dataclass(frozen=True)
class _Planned:
    """One link, the training input it was given to and the model folder it goes into."""

    input_name: str
    folder: str
    source: Source


class _Paths:
    """Which link each path of the tar comes from, so that two links never become one file unseen."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}

    def claim(self, path: str, planned: _Planned) -> None:
        key, url = path_key(path), planned.source.display_url
        if key in self._urls:
            raise TrainingInputError(
                f"Two links would both become {path}: {self._urls[key]} and {url}. "
                "Leave one out, or give one of the files another name at its source.",
                input_name=planned.input_name,
            )
        self._urls[key] = url


def bake(
    request: Mapping[str, str | None],
    out: Path,
    settings: Settings,
    tokens: Tokens,
    report: Callable[[str], None],
    allow_pickle: bool = False,
) -> Manifest:
    """Fetch every link of `request` (training input → one URL per line) into the tar `out`; return its manifest.

    Raises TrainingInputError for what must be given otherwise, DownloadError when a server refuses, and WeightsError
    when what arrives is not a whole weight file; then there is no tar.
    """
    started = time.monotonic()
    plan = _plan(request, settings, tokens, report, allow_pickle)
    paths = _Paths()
    room = room_for((planned.folder, planned.source.display_url) for planned in plan)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ArchiveWriter(out, manifest_room=room) as archive:
        for number, planned in enumerate(plan, start=1):
            report(f"[{number}/{len(plan)}] fetching {planned.source.display_url}")
            _bake_one(planned, archive, paths, settings, report, allow_pickle)
        manifest = archive.finish()
    total = sum(weight.size for weight in manifest.weights)
    report(f"baked {len(plan)} weight files, {size_text(total)}, in {time.monotonic() - started:.1f} s")
    report("In a workflow they are called:")
    for weight in manifest.weights:
        report(f"  {workflow_use(weight.path)}")
    return manifest


def _plan(
    request: Mapping[str, str | None],
    settings: Settings,
    tokens: Tokens,
    report: Callable[[str], None],
    allow_pickle: bool,
) -> list[_Planned]:
    wrong = [name for name in request if name not in TRAINING_INPUTS]
    if wrong:
        raise TrainingInputError(unknown_inputs_message(wrong, tuple(TRAINING_INPUTS)), input_name=wrong[0])
    plan: list[_Planned] = []
    certain, urls = _Paths(), set[tuple[str, str]]()
    for input_name, folder in TRAINING_INPUTS.items():
        for entry in parse_list(request.get(input_name)):
            planned = _Planned(input_name, folder, understand(entry, settings, tokens, input_name=input_name))
            _report_source(planned, report)
            _check_certain(planned, certain, urls, allow_pickle)
            plan.append(planned)
    if not plan:
        raise TrainingInputError(
            f"No weights were given. Put URLs, one per line, into at least one of: {', '.join(TRAINING_INPUTS)}."
        )
    return plan


def _report_source(planned: _Planned, report: Callable[[str], None]) -> None:
    for notice in planned.source.notices:
        report(notice)
    token = ", with your token" if planned.source.secret_headers else ""
    report(f"{planned.input_name}: {planned.source.display_url} ({planned.source.kind.value}{token})")


def _check_certain(planned: _Planned, certain: _Paths, urls: set[tuple[str, str]], allow_pickle: bool) -> None:
    """What can be refused before anything is fetched."""
    key = (planned.folder, planned.source.url)
    if key in urls:
        raise TrainingInputError(
            f"{planned.source.display_url} is given twice in {planned.input_name}; leave one out.",
            input_name=planned.input_name,
        )
    urls.add(key)
    if planned.source.name is not None:
        path = f"{planned.folder}/{planned.source.name}"
        check_extension(path, allow_pickle=allow_pickle)
        certain.claim(path, planned)


def _bake_one(
    planned: _Planned,
    archive: ArchiveWriter,
    paths: _Paths,
    settings: Settings,
    report: Callable[[str], None],
    allow_pickle: bool,
) -> Weight:
    with open_stream(planned.source, settings) as remote:
        if not remote.name:
            raise WeightsError(
                f"{planned.source.display_url} has no file name, and its server gives none; use a link that ends in "
                "the file's name.",
                path=f"{planned.folder}/",
            )
        path = f"{planned.folder}/{remote.name}"
        paths.claim(path, planned)
        report(f"  {path}, {size_text(remote.size)}")
        verifier = Verifier(path, allow_pickle=allow_pickle)
        progress = Progress(f"  baked {path}", remote.size, report)
        chunks = progress.watch(remote.chunks(path))
        weight = archive.add(path, planned.source.display_url, remote.size, chunks, verifier)
        progress.end(weight.sha256)
    return weight
