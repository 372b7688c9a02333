"""What Cog's server prints and answers, made readable. The server itself runs in tests/e2e."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator

import pytest

from comfyui.local.cog_server import file_of_data_uri, readable_line, suffix_of_data_uri

LINE = (
    '{"timestamp":"2026-11-20T07:12:00.1Z","level":"INFO","fields":{"message":"[comfyui] Starting server"},'
    '"target":"coglet::worker"}'
)


@pytest.fixture
def no_system_media_types(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A slim container has no /etc/mime.types, and Python's own list knows image/webp only as a common type."""
    with monkeypatch.context() as changed:
        changed.setattr(mimetypes, "knownfiles", [])
        mimetypes.init()
        yield
    mimetypes.init()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (LINE, "[comfyui] Starting server"),
        ('{"fields": {"message": 7}}', "7"),
        *(
            (line, line)
            for line in ("plain text", "", "7", "null", "[1]", '"x"', "{}", '{"fields": "x"}', '{"fields": {}}')
        ),
    ],
)
def test_the_text_of_a_log_line_is_what_our_code_printed(line: str, text: str) -> None:
    assert readable_line(line) == text


def test_the_bytes_of_a_data_uri() -> None:
    assert file_of_data_uri("data:image/webp;base64,AP+A") == b"\x00\xff\x80"
    assert file_of_data_uri("data:;base64,") == b""


@pytest.mark.parametrize(
    "uri",
    ["", "http://127.0.0.1/a.png", "data:text/plain,hello", "data:image/png;base64,AP+", "data:image/png;base64,*"],
)
def test_what_is_no_base64_data_uri_is_a_value_error(uri: str) -> None:
    with pytest.raises(ValueError, match=r"data: URI|base64|padding"):
        file_of_data_uri(uri)


@pytest.mark.parametrize(
    ("uri", "suffix"),
    [
        ("data:image/png;base64,AA==", ".png"),
        ("data:image/jpeg;base64,AA==", ".jpg"),
        ("data:image/webp;base64,AA==", ".webp"),
        ("data:video/mp4;base64,AA==", ".mp4"),
        ("data:text/plain,hello", ".txt"),
        ("data:application/x-unheard-of;base64,AA==", ".bin"),
        ("data:,hello", ".bin"),
    ],
)
@pytest.mark.usefixtures("no_system_media_types")
def test_the_file_ending_of_a_data_uri_is_that_of_its_media_type(uri: str, suffix: str) -> None:
    assert suffix_of_data_uri(uri) == suffix
