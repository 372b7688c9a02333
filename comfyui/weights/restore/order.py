"""What both kinds of restore share: what was asked for, and how files get into the models folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from comfyui.settings import Settings
from comfyui.weights.bring.fetch import Fetch, Needed
from comfyui.weights.bring.folder_lock import folder_lock
from comfyui.weights.bring.staging import Staging
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.listener import Listener
from comfyui.weights.tar.source import Patience
from comfyui.weights.transfer.pump import TransferOptions

FROM_TAR = "the tar"
FROM_TAR_AGAIN = "the tar again"
"""Places a file can come from, in words for people."""


@dataclass(frozen=True)
class RestoreOrder:
    """One restore of one tar; see `restore` for what the parts mean."""

    location: str
    models_dir: Path
    settings: Settings
    listener: Listener
    patience: Patience
    opener: HttpOpener
    options: TransferOptions
    allow_pickle: bool

    def fetch(self, staging: Staging) -> Fetch:
        """Transfers into `staging`, as ordered."""
        return Fetch(staging, self.listener, self.options, self.patience.stop, allow_pickle=self.allow_pickle)

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """The models folder, made if need be, with nobody else writing weights into it."""
        self.models_dir.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.models_dir, self.listener, self.patience.stop), Staging(self.models_dir) as staging:
            yield staging

    @contextmanager
    def progress(self, files: Sequence[Needed]) -> Iterator[None]:
        """Tell the listener that these files are on their way."""
        self.listener.begin("restoring", [(file.path, file.size) for file in files])
        try:
            yield
        finally:
            self.listener.end()
