"""What a bake adds to its tar beside the files of its links, made from them once they are there."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from comfyui.weights.bake.wanted import Found
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.manifest import Weight


class Addition(Protocol):
    """Members of a tar that come from no link, such as a LoRA that was trained on one of its checkpoints."""

    @property
    def members(self) -> Sequence[str]:
        """The paths of all that it may add, in model folders or in training/, in their order in the tar."""

    @property
    def record_bytes(self) -> int:
        """The most bytes that its record takes in the manifest."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What it was made from and with, once it is made: `trained` in the manifest."""

    def check(self, found: Sequence[Found], opener: HttpOpener, stop: threading.Event) -> None:
        """Refuse files that it cannot be made from, before a byte of them is fetched. Raises ComfyUIModelError."""

    def make(self, tar: Path, weights: Sequence[Weight], stop: threading.Event) -> Mapping[str, bytes]:
        """The bytes of its members; one that is left out is not in the tar. `tar` is the unfinished one, in which
        `weights` lie at their offsets.

        This and `check` end early, with StoppedError, once `stop` is set.
        """
