"""Where Replicate is and how often it is asked: the official client's own variables, looked at before it reads them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from comfyui.errors import RequestError
from comfyui.url_policy import origin

BASE_URL = "https://api.replicate.com"
POLL_INTERVAL_S = 0.5
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Service:
    """Replicate's API, or a server that speaks it. `poll_interval_s` is the first wait before a run is asked about.

    Raises RequestError for a URL that would show the token to others on its way, DownloadError for one that is none.
    """

    base_url: str = BASE_URL
    poll_interval_s: float = POLL_INTERVAL_S

    def __post_init__(self) -> None:
        home = origin(self.base_url)
        if home.scheme != "https" and home.host not in _LOOPBACK:
            raise RequestError(f"REPLICATE_BASE_URL is {self.base_url!r}; a token is only sent over https.")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Service:
        """Read REPLICATE_BASE_URL and REPLICATE_POLL_INTERVAL (seconds). Raises as the class, and RequestError."""
        given = environ.get("REPLICATE_POLL_INTERVAL", str(POLL_INTERVAL_S))
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < math.inf:
            raise RequestError(f"REPLICATE_POLL_INTERVAL is {given!r}; set it to a number of seconds above 0.")
        return cls(environ.get("REPLICATE_BASE_URL") or BASE_URL, seconds)
