"""The mains of the scripts for this machine: what goes wrong is a sentence and exit code 1, never a traceback."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from comfyui.local import quickstart, serve, train_lora
from comfyui.settings import Settings

TRAIN = ["photos", "--checkpoint", "https://example.com/a.safetensors", "--out", "my.safetensors"]


@pytest.mark.parametrize(
    ("module", "work", "arguments"), [(train_lora, "train", TRAIN), (quickstart, "run", []), (serve, "serve", [])]
)
def test_a_disk_that_fails_is_a_sentence(
    module: ModuleType,
    work: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/a")

    monkeypatch.setattr(module, work, fail)
    assert module.main(arguments) == 1
    assert capsys.readouterr().err == "\n[Errno 28] No space left on device: '/data/a'\n"


@pytest.mark.parametrize("flag", ["--checkpoint", "--existing-lora"])
@pytest.mark.parametrize("named", ["/nowhere/a.safetensors", "/nowhere", "a.safetensors"])
def test_a_mistyped_path_is_known_before_any_work(
    flag: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begun(*_given: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(train_lora, "ensure_upstream", begun)
    monkeypatch.setenv("CALLER_DIR", str(tmp_path))
    assert train_lora.main([*TRAIN, flag, named]) == 1
    assert f"{named}: there is no such file; give a file of this machine, or a link." in capsys.readouterr().err


def test_a_server_goes_on_without_its_example_request(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    words = serve.how_to_call("http://127.0.0.1:5000", make_settings(data_dir=tmp_path / "file"))
    assert words.startswith("\nReady at http://127.0.0.1:5000. An example of a request is not there, since ")
    assert "curl" not in words
    words = serve.how_to_call("http://127.0.0.1:5000", make_settings(data_dir=tmp_path / "data"))
    assert f"-d @{tmp_path / 'data' / 'serve' / 'request.json'}" in words
