"""What was received, on disk, where a restart finds it again.

    FOLDER/PREDICTION/prediction.json    the last webhook's body, byte for byte
    FOLDER/PREDICTION/files/             the files of its output, once it has ended
    FOLDER/PREDICTION/files.json         what became of each file; written last, so whoever waits can wait for it
    FOLDER/.seen/                        a mark for each event, for as long as it could come again

For one process, and one thread at a time. Everything raises OSError when the disk fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from examples.webhook_receiver.events import EventError, Prediction, read_prediction

SEEN_S = 24 * 3600.0
"""How long an event's id is kept. A replay is refused for its age much sooner; Replicate's retries end in minutes."""
SWEEP_S = 3600.0


class Store:
    """Keeps predictions below `folder`, which is made, readable by its owner alone: inputs and outputs are private."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen = folder / ".seen"
        self._seen.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._sweep()

    def record(self, event_id: str, prediction: Prediction, body: bytes) -> bool:
        """Keep what an event tells; False if that event was here before, which changes nothing.

        The mark is set last: after a crash in between, the event is not known, and is taken when it is sent again. An
        ended prediction stays so, for events may overtake each other.
        """
        mark = self._seen / hashlib.sha256(event_id.encode()).hexdigest()
        if mark.exists():
            return False
        if prediction.ended or not self._has_ended(prediction.id):
            folder = self.folder / prediction.id
            folder.mkdir(mode=0o700, exist_ok=True)
            write_whole(folder / "prediction.json", body)
        mark.touch()
        if time.time() - self._swept > SWEEP_S:
            self._sweep()
        return True

    def read(self, prediction_id: str) -> Prediction | None:
        """The prediction as it was last told; None if it never was, or if what is there is no prediction."""
        try:
            return read_prediction((self.folder / prediction_id / "prediction.json").read_bytes())
        except (FileNotFoundError, EventError):
            return None

    def wants_files(self, prediction: Prediction) -> bool:
        """Whether its files are there to be fetched, and have not been."""
        return (
            prediction.ended
            and bool(prediction.file_urls)
            and not (self.folder / prediction.id / "files.json").exists()
        )

    def left_over(self) -> list[Prediction]:
        """The predictions whose files were still to be fetched when the last process ended."""
        found = [self.read(path.parent.name) for path in sorted(self.folder.glob("*/prediction.json"))]
        return [prediction for prediction in found if prediction is not None and self.wants_files(prediction)]

    def files_folder(self, prediction_id: str) -> Path:
        """Where the prediction's files go; made if missing."""
        folder = self.folder / prediction_id / "files"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def finish(self, prediction_id: str, files: Sequence[Mapping[str, Any]]) -> None:
        """Write files.json."""
        write_whole(self.folder / prediction_id / "files.json", json.dumps(files, indent=1).encode())

    def _has_ended(self, prediction_id: str) -> bool:
        kept = self.read(prediction_id)
        return kept is not None and kept.ended

    def _sweep(self) -> None:
        self._swept = time.time()
        for mark in self._seen.iterdir():
            if self._swept - mark.stat().st_mtime > SEEN_S:
                mark.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in its place when all of it is on the disk; until then, what was there stays."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise
