"""What a prediction gave back, as files: nothing is overwritten, and nothing that is not whole gets a name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from comfyui.errors import DownloadError, RequestError
from comfyui.local.cog_server import file_of_data_uri, suffix_of_data_uri
from comfyui.settings import Settings
from comfyui.weights.folders import safe_file_name
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.sources.links import plain

CHUNK_BYTES = 1 << 20
_KEPT = "Replicate keeps outputs for about an hour; run the prediction again."


class GoneError(DownloadError):
    """The files of an output are not there any more; only another prediction makes them anew."""


def output_urls(output: Any) -> list[str]:
    """The URLs in a prediction's output, in their order: a string, an object with `url`, or lists of these."""
    if isinstance(output, str):
        return [output]
    if isinstance(output, Mapping):
        return [output["url"]] if isinstance(output.get("url"), str) else list(_of_each(list(output.values())))
    return list(_of_each(output)) if isinstance(output, Sequence) else []


def _of_each(items: Sequence[Any]) -> Iterator[str]:
    for item in items:
        yield from output_urls(item)


def need_folder(folder: Path) -> None:
    """Make the folder for outputs, before anything is paid for. Raises RequestError where files cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"No file can be written into {folder}: {error.strerror}. Name another folder with --out."
        ) from error


def save_outputs(output: Any, folder: Path, settings: Settings) -> list[Path]:
    """Fetch every file of an output into `folder`; returns their paths, in order.

    Any server may be named in an output, so each URL goes through the policy for URLs from outside, without a token.
    Raises DownloadError, GoneError where there is no file (any more); what was saved before it stays.
    """
    urls = output_urls(output)
    if not urls:
        # Replicate remembers a prediction for longer than what it made:
        # https://replicate.com/docs/topics/predictions/data-retention
        raise GoneError(f"There is no file in the output. {_KEPT}", url="")
    folder.mkdir(parents=True, exist_ok=True)
    with HttpOpener(settings) as opener:
        return [_save(url, number, folder, opener) for number, url in enumerate(urls)]


def _save(url: str, number: int, folder: Path, opener: HttpOpener) -> Path:
    handle, name = tempfile.mkstemp(prefix=".output-", suffix=".part", dir=folder)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            own = _decode(url, file) if url.startswith("data:") else _fetch(url, file, opener)
        part.chmod(0o644)
        return _give_name(part, folder, own or f"output-{number}")
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, file: BinaryIO, opener: HttpOpener) -> str:
    source = plain(url)
    with opener.open(source, source.url) as opened:
        status = opened.response.status_code
        if status != 200:
            said = f"{source.display_url} could not be fetched: the server answered {status}."
            if status in (403, 404):
                raise GoneError(f"{said} {_KEPT}", url=source.display_url, status=status)
            raise DownloadError(said, url=source.display_url, status=status)
        declared = opened.response.headers.get("Content-Length", "")
        while piece := opener.read(opened, CHUNK_BYTES, source):
            file.write(piece)
    if declared.isdigit() and file.tell() != int(declared):
        raise DownloadError(
            f"{source.display_url} ended after {file.tell()} of {declared} bytes. Try again.",
            url=source.display_url,
        )
    return safe_file_name(unquote(urlsplit(url).path))


def _decode(uri: str, file: BinaryIO) -> str:
    try:
        file.write(file_of_data_uri(uri))
    except ValueError:
        raise DownloadError("An output is a data: URI that is no base64.", url="data:") from None
    return f"output{suffix_of_data_uri(uri)}"


def _give_name(part: Path, folder: Path, own: str) -> Path:
    """Move a whole file to its own name, or to that name with a number where another file has it."""
    stem, suffix = Path(own).stem, Path(own).suffix
    number = 1
    while True:
        path = folder / (own if number == 1 else f"{stem}-{number}{suffix}")
        try:
            # Takes the name, so that nobody else can between the look and the move.
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            continue
        return part.replace(path)
