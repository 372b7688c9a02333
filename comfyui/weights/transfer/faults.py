"""What can go wrong with one piece, by what should happen then."""

from __future__ import annotations


class PieceFault(Exception):
    """Root of what a reader may raise beside a fatal error of comfyui.errors."""


class InterruptedPieceError(PieceFault):
    """The connection failed or the server is busy: ask again for what is missing.

    `reason` is for people and holds no secret; `retry_after_s` is the server's own wish, None if it has none.
    """

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ChangedSourceError(PieceFault):
    """The source is not the same object any more: what came from it before must not be mixed with what comes now."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NoRangesError(PieceFault):
    """The server sends the whole file whatever range it is asked for: read it as one stream."""
