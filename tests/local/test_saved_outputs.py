"""What a prediction gave back, written to this machine."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

import pytest

from comfyui.errors import EngineError
from comfyui.local.saved_outputs import save_outputs
from tests.parts import largest_file


def uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in the same second, as the names' time counts."""
    monkeypatch.setattr(time, "strftime", lambda form: "20261120-120000")


def test_files_are_written_in_their_order_into_a_folder_made_for_them(tmp_path: Path) -> None:
    paths = save_outputs([uri(b"a"), uri(b"b", "image/webp")], tmp_path / "new" / "folder", "fox")
    assert paths == [
        str(tmp_path / "new" / "folder" / "fox-20261120-120000-0.png"),
        str(tmp_path / "new" / "folder" / "fox-20261120-120000-1.webp"),
    ]
    assert [Path(path).read_bytes() for path in paths] == [b"a", b"b"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (first,) = save_outputs([uri(b"a")], tmp_path, "fox")
    second = save_outputs([uri(b"b"), uri(b"c")], tmp_path, "fox")
    assert Path(first).read_bytes() == b"a"
    assert [Path(path).read_bytes() for path in second] == [b"b", b"c"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_that_does_not_fit_on_the_disk_leaves_no_half_of_it(tmp_path: Path) -> None:
    with largest_file(100), pytest.raises(OSError, match="File too large"):
        save_outputs([uri(b"a" * 50), uri(b"b" * 200)], tmp_path, "fox")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"a" * 50]


def test_a_single_file_and_a_url_of_one_elsewhere(tmp_path: Path) -> None:
    assert len(save_outputs(uri(b"a"), tmp_path, "fox")) == 1
    assert save_outputs(["https://files.example/a.png"], tmp_path, "fox") == ["https://files.example/a.png"]


@pytest.mark.parametrize(
    "output", [None, 7, {"a": 1}, ["a.png"], [uri(b"a"), None], "/etc/passwd", "file:///etc/passwd"]
)
def test_an_output_that_is_no_list_of_files_is_refused_before_anything_is_written(
    tmp_path: Path, output: object
) -> None:
    with pytest.raises(EngineError, match=re.escape("The server's output is no list of files, but")):
        save_outputs(output, tmp_path / "out", "fox")
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_decoded_is_an_error_that_quotes_little(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read: 'data:image/png;base64,!!!") as caught:
        save_outputs(["data:image/png;base64,!!!" + "x" * 1000], tmp_path, "fox")
    assert len(str(caught.value)) < 120
    assert list(tmp_path.iterdir()) == []
