"""What a webhook tells: a prediction (or a training) as it is now. Pure.

https://replicate.com/docs/topics/webhooks/receive-webhook
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ENDED = frozenset({"succeeded", "failed", "canceled", "aborted"})
_ID = re.compile(r"[a-z0-9]{1,64}")
_STATUS = re.compile(r"[a-z]{1,32}")


class EventError(ValueError):
    """A body that holds no prediction."""


@dataclass(frozen=True)
class Prediction:
    """As much of a prediction as is needed to keep it. `id` is fit to be the name of a folder."""

    id: str
    status: str
    file_urls: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ENDED


def read_prediction(body: bytes) -> Prediction:
    """The prediction in a webhook's body. Raises EventError with the reason."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EventError("the body is not JSON") from error
    if not isinstance(value, dict):
        raise EventError("the body is no JSON object")
    found = []
    for name, form in (("id", _ID), ("status", _STATUS)):
        text = value.get(name)
        if not isinstance(text, str) or not form.fullmatch(text):
            raise EventError(f"the body has no {name} such as Replicate gives")
        found.append(text)
    return Prediction(found[0], found[1], tuple(_urls(value.get("output"))))


def _urls(output: Any) -> Iterator[str]:
    """The files of an output: a URL, an object with `url`, or a list of these.

    Not any URL in any object: a training's output is {"version", "weights"}, and its weights are many GB.
    """
    for entry in output if isinstance(output, list) else [output]:
        url = entry.get("url") if isinstance(entry, dict) else entry
        if isinstance(url, str) and url.lower().startswith(("http://", "https://")):
            yield url
