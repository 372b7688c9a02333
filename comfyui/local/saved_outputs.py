"""What a prediction gave back, as files on this machine that overwrite nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from comfyui.errors import EngineError
from comfyui.local.cog_server import file_of_data_uri, suffix_of_data_uri


def save_outputs(output: object, folder: Path, stem: str) -> list[str]:
    """Write each file of a prediction's output into `folder`, made if missing; returns their absolute paths, in order.

    The names are `stem`, the time and a number. A file that the server has put elsewhere (cog's --upload-url) is not
    fetched: its URL stands in the list. Raises EngineError for an output that is no list of files.
    """
    entries = [str(entry) for entry in (output if isinstance(output, list) else [output])]
    if not all(entry.startswith(("data:", "http://", "https://")) for entry in entries):
        raise EngineError(f"The server's output is no list of files, but {str(output)[:100]!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    begin = folder.absolute() / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbers = itertools.count()
    return [_save(entry, begin, numbers) if entry.startswith("data:") else entry for entry in entries]


def _save(uri: str, begin: Path, numbers: Iterator[int]) -> str:
    try:
        content = file_of_data_uri(uri)
    except ValueError as error:
        raise EngineError(f"The server's output has a file that cannot be read: {uri[:40]!r}….") from error
    while True:
        path = Path(f"{begin}-{next(numbers)}{suffix_of_data_uri(uri)}")
        try:
            file = path.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                file.write(content)
        except BaseException:
            path.unlink()
            raise
        return str(path)
