"""Trainings through Cog's real train server."""

from __future__ import annotations

import http.server
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Served


class _Answers(http.server.BaseHTTPRequestHandler):
    """Servers as people meet them: a login page, a missing file, a broken one, a cut file."""

    def do_GET(self) -> None:
        status, kind, body, length = {
            "/401/a.safetensors": (401, "text/plain", b"no", None),
            "/404/a.safetensors": (404, "text/plain", b"gone", None),
            "/500/a.safetensors": (500, "text/plain", b"oops", None),
            "/html/a.safetensors": (200, "text/html", b"<!doctype html><title>Sign in</title>", None),
            "/cut/a.safetensors": (200, "application/octet-stream", b"\x10\0\0\0\0\0\0\0{}", 4096),
        }[self.path]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture(scope="module")
def bad_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_tar_is_an_ordinary_tar_with_the_manifest_first(baked_tar: tuple[Path, dict[str, Any]]) -> None:
    with tarfile.open(baked_tar[0]) as tar:
        names = tar.getnames()
        stream = tar.extractfile(names[0])
        assert stream is not None
        manifest = json.load(stream)
    assert names[0] == "weights_manifest.json"
    assert names[1:] == [weight["path"] for weight in manifest["weights"]]
    assert "loras/tiny-sd15-lora.safetensors" in names


def test_the_log_names_the_files_for_the_workflow(baked_tar: tuple[Path, dict[str, Any]]) -> None:
    logs = baked_tar[1]["logs"]
    assert "tiny-sd15.safetensors" in logs
    assert "LoraLoader.lora_name" in logs


def test_nothing_given_lists_the_right_names(train_server: Served) -> None:
    error = train_server.error_of()
    assert "checkpoints, loras, upscale_models" in error


@pytest.mark.parametrize(
    ("name", "right"), [("hf_lora", "loras"), ("hf_checkpoint", "checkpoints"), ("lora", "loras"), ("vae", "vaes")]
)
def test_a_wrong_input_name_names_the_right_one(train_server: Served, name: str, right: str) -> None:
    error = train_server.error_of(**{name: "https://huggingface.co/a/b/resolve/main/c.safetensors"})
    assert f"no input {name!r}; did you mean {right!r}?" in error
    assert "checkpoints, loras, upscale_models" in error


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/401/a.safetensors", "401"),
        ("/404/a.safetensors", "404"),
        ("/500/a.safetensors", "500"),
        ("/html/a.safetensors", "web page"),
        ("/cut/a.safetensors", "after 10 of 4096 bytes"),
    ],
)
def test_a_server_that_does_not_give_the_file_is_named(
    train_server: Served, bad_server: str, path: str, said: str
) -> None:
    error = train_server.error_of(loras=bad_server + path)
    assert said in error
    assert "a.safetensors" in error


def test_a_private_address_is_refused_unless_it_is_allowed(tmp_path: Path, weight_urls: dict[str, str]) -> None:
    from comfyui.deadline import Deadline
    from comfyui.local.cog_server import CogServer

    environ = {"ALLOW_PRIVATE_URLS": "0", "DATA_DIR": str(tmp_path)}
    with CogServer("train", environ=environ, sink=lambda _line: None) as server:
        server.wait_ready(Deadline(60, "The train server's setup"))
        answer = server.call({"loras": weight_urls["loras/tiny-sd15-lora.safetensors"]}, timeout_s=60)
    assert answer["status"] == "failed"
    assert "ALLOW_PRIVATE_URLS" in answer["error"]


def test_a_training_without_weights_out_gives_the_tar_itself(tmp_path: Path, weight_urls: dict[str, str]) -> None:
    from comfyui.deadline import Deadline
    from comfyui.local.cog_server import CogServer, file_of_data_uri

    environ = {"ALLOW_PRIVATE_URLS": "1", "DATA_DIR": str(tmp_path)}
    with CogServer("train", environ=environ, sink=lambda _line: None) as server:
        server.wait_ready(Deadline(60, "The train server's setup"))
        answer = server.call({"loras": weight_urls["loras/tiny-sd15-lora.safetensors"]}, timeout_s=60)
    (tmp_path / "got.tar").write_bytes(file_of_data_uri(answer["output"]["weights"]))
    with tarfile.open(tmp_path / "got.tar") as tar:
        assert "loras/tiny-sd15-lora.safetensors" in tar.getnames()


def test_a_token_is_in_no_log(train_server: Served, bad_server: str) -> None:
    token = "hf_thisMustNotBeSeen"
    answer = train_server.call(
        loras=f"{bad_server}/401/a.safetensors", huggingface_read_token=token, civitai_api_token=token
    )
    assert token not in json.dumps(answer)
    assert token not in "\n".join(train_server.lines)
