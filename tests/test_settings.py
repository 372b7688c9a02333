"""The environment as settings, and the words for a value that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui.errors import RequestError
from comfyui.settings import PROJECT_ROOT, Settings


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    assert Settings.from_environ({}) == Settings(
        upstream_dir=PROJECT_ROOT / "comfyui" / "upstream",
        models_dir=PROJECT_ROOT / "models",
        data_dir=PROJECT_ROOT / ".data",
        device="auto",
        engine_args=(),
        engine_start_timeout_s=300.0,
        allow_private_urls=False,
        hf_endpoint="https://huggingface.co",
        civitai_endpoint="https://civitai.com",
        weights_verify="quick",
        linked_weights_bytes=20_000_000_000,
        weights_out=None,
    )
    assert (PROJECT_ROOT / "pyproject.toml").is_file()


def test_a_variable_that_is_set_to_nothing_is_as_good_as_not_set() -> None:
    names = (
        "COMFYUI_DIR MODELS_DIR DATA_DIR COMFYUI_DEVICE COMFYUI_ARGS ENGINE_START_TIMEOUT_S "
        "ALLOW_PRIVATE_URLS HF_ENDPOINT CIVITAI_ENDPOINT WEIGHTS_VERIFY "
        "LINKED_WEIGHTS_GB WEIGHTS_OUT"
    )
    assert Settings.from_environ(dict.fromkeys(names.split(), "")) == Settings.from_environ({})


def test_every_variable_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = Settings.from_environ(
        {
            "COMFYUI_DIR": "../ComfyUI",
            "MODELS_DIR": "~/models",
            "DATA_DIR": "data",
            "COMFYUI_DEVICE": "gpu",
            "COMFYUI_ARGS": "--lowvram --preview-size '2 56'",
            "ENGINE_START_TIMEOUT_S": "1.5",
            "ALLOW_PRIVATE_URLS": "1",
            "HF_ENDPOINT": "http://127.0.0.1:1/",
            "CIVITAI_ENDPOINT": "http://127.0.0.1:2//",
            "WEIGHTS_VERIFY": "full",
            "LINKED_WEIGHTS_GB": "1.5",
            "WEIGHTS_OUT": "~/out",
        }
    )
    assert settings == Settings(
        upstream_dir=tmp_path / "../ComfyUI",
        models_dir=Path("/home/somebody/models"),
        data_dir=tmp_path / "data",
        device="gpu",
        engine_args=("--lowvram", "--preview-size", "2 56"),
        engine_start_timeout_s=1.5,
        allow_private_urls=True,
        hf_endpoint="http://127.0.0.1:1",
        civitai_endpoint="http://127.0.0.1:2",
        weights_verify="full",
        linked_weights_bytes=1_500_000_000,
        weights_out=Path("/home/somebody/out"),
    )


TIME = "set it to a number of seconds above 0."
ROOM = "set it to a number of GB, or to 0."


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COMFYUI_DEVICE", "cuda", "COMFYUI_DEVICE is 'cuda'; set it to auto, cpu or gpu."),
        ("WEIGHTS_VERIFY", "1", "WEIGHTS_VERIFY is '1'; set it to quick or full."),
        ("ALLOW_PRIVATE_URLS", "yes", "ALLOW_PRIVATE_URLS is 'yes'; set it to 1 or 0."),
        ("ENGINE_START_TIMEOUT_S", "5m", f"ENGINE_START_TIMEOUT_S is '5m'; {TIME}"),
        ("ENGINE_START_TIMEOUT_S", "0", f"ENGINE_START_TIMEOUT_S is '0'; {TIME}"),
        ("ENGINE_START_TIMEOUT_S", "-1", f"ENGINE_START_TIMEOUT_S is '-1'; {TIME}"),
        ("ENGINE_START_TIMEOUT_S", "inf", f"ENGINE_START_TIMEOUT_S is 'inf'; {TIME}"),
        ("ENGINE_START_TIMEOUT_S", "nan", f"ENGINE_START_TIMEOUT_S is 'nan'; {TIME}"),
        ("LINKED_WEIGHTS_GB", "20 GB", f"LINKED_WEIGHTS_GB is '20 GB'; {ROOM}"),
        ("LINKED_WEIGHTS_GB", "-1", f"LINKED_WEIGHTS_GB is '-1'; {ROOM}"),
        ("LINKED_WEIGHTS_GB", "inf", f"LINKED_WEIGHTS_GB is 'inf'; {ROOM}"),
        ("LINKED_WEIGHTS_GB", "nan", f"LINKED_WEIGHTS_GB is 'nan'; {ROOM}"),
        ("COMFYUI_ARGS", "--x 'y", 'COMFYUI_ARGS is "--x \'y", which is not a command line: No closing quotation.'),
        ("MODELS_DIR", "~no-such-user/m", "MODELS_DIR is '~no-such-user/m', and there is no such home folder."),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(name: str, value: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Settings.from_environ({name: value})
    assert str(caught.value) == message


def test_no_room_for_linked_weights_is_a_setting_too() -> None:
    assert Settings.from_environ({"LINKED_WEIGHTS_GB": "0"}).linked_weights_bytes == 0
