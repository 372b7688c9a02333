"""Words that come from elsewhere (logs, errors, refusals), fit for a terminal. Pure."""

from __future__ import annotations

from comfyui.process import ANSI_SEQUENCE


def safe_line(line: str) -> str:
    """A line without what would move a terminal's cursor or colour it."""
    return "".join(char if char.isprintable() else " " for char in ANSI_SEQUENCE.sub("", line)).rstrip()


def safe_text(text: str) -> str:
    """The same for several lines."""
    return "\n".join(safe_line(line) for line in text.splitlines()).strip()
