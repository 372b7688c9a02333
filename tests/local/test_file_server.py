"""Real requests to the little file server."""

from __future__ import annotations

import random
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from comfyui.local.file_server import serve_files


def get(url: str) -> requests.Response:
    with requests.get(url, timeout=10) as response:
        response.content  # noqa: B018 - read whole, so that the connection can be closed
        return response


def raw_get(url: str, target: str) -> bytes:
    """What the server answers to a target that an HTTP library would tidy up before it asks."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            return answer.read()


def test_each_file_is_served_whole_under_its_key(tmp_path: Path) -> None:
    keys = ["checkpoints/a.safetensors", "loras/ünï code #1?.pt", "b 50%.bin"]
    files = {key: tmp_path / str(number) for number, key in enumerate(keys)}
    for number, path in enumerate(files.values()):
        path.write_bytes(random.Random(number).randbytes(300_000))
    with serve_files(files) as urls:
        assert list(urls) == keys
        for key, url in urls.items():
            assert url.startswith("http://127.0.0.1:")
            assert get(url).content == files[key].read_bytes()
            assert get(f"{url}?download=true").content == files[key].read_bytes()


@pytest.mark.parametrize("target", ["/", "/other", "/../secret", "/%2e%2e/secret", "//secret", "/folder", "/a.bin/"])
def test_nothing_else_is_served(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.bin").write_bytes(b"a")
    with serve_files({"a.bin": tmp_path / "a.bin"}) as urls:
        answer = raw_get(urls["a.bin"], target)
    assert b" 404 " in answer.splitlines()[0]
    assert b"secret" not in answer


def test_a_file_that_went_away_is_not_found(tmp_path: Path) -> None:
    with serve_files({"a.bin": tmp_path / "a.bin"}) as urls:
        assert get(urls["a.bin"]).status_code == 404


def test_two_clients_are_served_at_once(tmp_path: Path) -> None:
    """A client that reads slowly must not hold up the next one."""
    (tmp_path / "big").write_bytes(bytes(64 * 1024**2))
    (tmp_path / "small").write_bytes(b"small")
    files = {"big": tmp_path / "big", "small": tmp_path / "small"}
    with serve_files(files) as urls, requests.get(urls["big"], stream=True, timeout=10) as slow:
        chunks = slow.iter_content(1024**2)
        read = len(next(chunks))
        assert get(urls["small"]).content == b"small"
        assert read + sum(map(len, chunks)) == 64 * 1024**2


def test_the_server_is_gone_after_the_block(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="stop"), serve_files({"a": tmp_path / "a"}) as urls:
        raise ValueError("stop")
    with pytest.raises(requests.ConnectionError):
        get(urls["a"])
    assert not [thread for thread in threading.enumerate() if thread.name == "file-server" and thread not in before]


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ("bytes=0-0", 206, b"0"),
        ("bytes=3-5", 206, b"345"),
        ("bytes=8-", 206, b"89"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=10-12", 416, b""),
        ("bytes=-2", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_ranges(tmp_path: Path, asked: str, status: int, body: bytes) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with serve_files({"a": tmp_path / "a"}) as urls:
        answer = requests.get(urls["a"], headers={"Range": asked}, timeout=10)
        answer.close()
    assert (answer.status_code, answer.content) == (status, body)
    if status == 206:
        first = int(asked[6:].split("-")[0])
        assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/10"


def test_a_range_of_a_file_that_has_changed_is_the_whole_new_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with serve_files({"a": tmp_path / "a"}) as urls:
        etag = get(urls["a"]).headers["ETag"]
        (tmp_path / "a").write_bytes(b"other")
        answer = requests.get(urls["a"], headers={"Range": "bytes=0-1", "If-Range": etag}, timeout=10)
        answer.close()
    assert (answer.status_code, answer.content) == (200, b"other")


def test_a_client_that_goes_away_makes_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(bytes(64 * 1024**2))
    with serve_files({"a": tmp_path / "a"}) as urls:
        with requests.get(urls["a"], stream=True, timeout=10) as answer:
            next(answer.iter_content(1024))
        assert len(get(urls["a"]).content) == 64 * 1024**2
    assert capfd.readouterr().err == ""
