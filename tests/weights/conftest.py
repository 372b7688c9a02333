"""What the tests of the weights room share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfyui.settings import Settings
from comfyui.weights.http.opener import HttpOpener
from tests.weights.file_server import FileServer


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A file server of this test's own."""
    with FileServer() as running:
        yield running


@pytest.fixture
def other_server() -> Iterator[FileServer]:
    """Another one, on another port: another origin."""
    with FileServer() as running:
        yield running


@pytest.fixture
def opener(settings: Settings) -> Iterator[HttpOpener]:
    """As patient as it is for users."""
    with HttpOpener(settings) as opened:
        yield opened
