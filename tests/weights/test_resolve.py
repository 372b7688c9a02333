"""What is known of a file at any URL before it is fetched, and the rules that hold for every source."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest

from comfyui.errors import ComfyUIModelError, DownloadError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.sources import NO_TOKENS, RemoteFile, understand
from comfyui.weights.sources.resolve import resolve
from tests.weights.file_server import FileServer
from tests.weights.samples import safetensors, sha256
from tests.weights.storage_standin import Answer, StorageStandin

FILE = safetensors(7, 5000)
OTHER_SHA = "0" * 64


@pytest.fixture
def storage() -> Iterator[StorageStandin]:
    with StorageStandin() as running:
        yield running


def ask(entry: str, settings: Settings) -> RemoteFile:
    return resolve(understand(entry, settings, NO_TOKENS), settings, sleep=lambda _: None)


def test_a_plain_url(storage: StorageStandin, settings: Settings) -> None:
    url = storage.put("/x/a%20b.safetensors", FILE) + "?X-Amz-Signature=SECRET"
    storage.files["/x/a%20b.safetensors"] = FILE
    remote = ask(url, settings)
    assert (remote.name, remote.size, remote.sha256, remote.ranges) == ("a b.safetensors", len(FILE), None, True)
    assert remote.url == url
    assert remote.manifest_url == url.partition("?")[0]
    assert remote.validator is not None
    assert remote.validator.startswith('"')
    assert remote.member is None
    assert "SECRET" not in repr(remote)
    seen = storage.seen[0].headers
    assert (seen["Range"], seen["Accept-Encoding"]) == ("bytes=0-0", "identity")


def test_many_questions_go_over_one_connection(storage: StorageStandin, settings: Settings) -> None:
    url = storage.put("/a.safetensors", FILE)
    with HttpOpener(settings) as opener:
        for _ in range(5):
            resolve(understand(url, settings, NO_TOKENS), settings, opener=opener)
    assert storage.connections == 1


def test_a_server_without_ranges(server: FileServer, settings: Settings) -> None:
    url = server.put("/a", FILE, headers={"Content-Disposition": 'inline; filename="b.safetensors"', "ETag": 'W/"1"'})
    remote = ask(url, settings)
    assert (remote.name, remote.size, remote.ranges, remote.validator) == ("b.safetensors", len(FILE), False, None)
    url = server.put("/c.safetensors", FILE, chunked=True, headers={"Last-Modified": "Mon, 05 Oct 2026 07:00:00 GMT"})
    remote = ask(url, settings)
    assert (remote.size, remote.validator) == (None, "Mon, 05 Oct 2026 07:00:00 GMT")


def without(*names: str) -> Callable[[Answer], Answer]:
    return lambda a: replace(a, headers={key: value for key, value in a.headers.items() if key not in names})


def with_range(text: str) -> Callable[[Answer], Answer]:
    return lambda a: replace(a, headers={**a.headers, "Content-Range": text}) if a.status == 206 else a


def longer(answer: Answer) -> Answer:
    return replace(answer, body=answer.body + b"xx") if answer.status == 206 else answer


@pytest.mark.parametrize(
    "mangle",
    [
        without("Content-Range"),
        with_range("bytes 5-5/5000"),
        with_range("bytes 0-0/*"),
        with_range("bytes 0-0/0"),
        with_range("bytes 0-0"),
        with_range("lines 0-0/5000"),
        longer,
        lambda a: replace(a, status=416, body=b"") if a.status == 206 else a,
    ],
)
def test_a_server_with_odd_ranges_is_asked_again(
    storage: StorageStandin, settings: Settings, mangle: Callable[[Answer], Answer]
) -> None:
    storage.mangle = mangle
    remote = ask(storage.put("/a.safetensors", FILE), settings)
    assert (remote.size, remote.ranges, remote.name) == (len(FILE), False, "a.safetensors")
    assert [("Range" in seen.headers) for seen in storage.seen] == [True, False]


def test_a_range_that_breaks_off(storage: StorageStandin, settings: Settings) -> None:
    cut = {"Content-Length": "1", "Connection": "close"}
    storage.mangle = lambda a: replace(a, headers={**a.headers, **cut}, body=b"") if a.status == 206 else a
    assert not ask(storage.put("/a.safetensors", FILE), settings).ranges


def test_an_empty_file(storage: StorageStandin, settings: Settings) -> None:
    remote = ask(storage.put("/a.safetensors", b""), settings)
    assert (remote.size, remote.ranges) == (0, False)


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": '"abc"'}, '"abc"'),
        ({"ETag": 'W/"abc"', "Last-Modified": "Mon, 05 Oct 2026 07:00:00 GMT"}, None),
        ({"ETag": "abc"}, None),
        ({"ETag": '"a b"'}, None),
        ({"Last-Modified": "yesterday"}, None),
        ({"Last-Modified": "Mon, 05 Oct 2026 07:00:00 GMT"}, "Mon, 05 Oct 2026 07:00:00 GMT"),
        ({}, None),
    ],
)
def test_validators(server: FileServer, settings: Settings, headers: Mapping[str, str], validator: str | None) -> None:
    assert ask(server.put("/a.safetensors", FILE, headers=headers), settings).validator == validator


def test_a_given_name_and_sha256(storage: StorageStandin, settings: Settings) -> None:
    url = storage.put("/download", FILE)
    remote = ask(f"{url}#sha256={sha256(FILE).upper()}&name=my%20lora.safetensors", settings)
    assert (remote.name, remote.sha256) == ("my lora.safetensors", sha256(FILE))
    assert remote.url == url


def test_a_link_without_a_name(storage: StorageStandin, settings: Settings) -> None:
    with pytest.raises(DownloadError, match=r"has no file name, and its server gives none.*#name="):
        ask(storage.put("/", FILE), settings)
    assert ask(storage.url + "/#name=a.safetensors", settings).name == "a.safetensors"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_three_times(server: FileServer, settings: Settings, status: int) -> None:
    waits: list[float] = []
    source = understand(server.put("/a.safetensors", b"", status=status), settings, NO_TOKENS)
    with pytest.raises(DownloadError) as caught:
        resolve(source, settings, sleep=waits.append)
    assert (caught.value.status, len(server.seen), waits) == (status, 3, [1.0, 4.0])


@pytest.mark.parametrize("entry", ["http://127.0.0.1:2/a.safetensors", "hf://me/repo/a.safetensors", "me/repo"])
def test_a_server_that_cannot_be_reached_is_asked_three_times(
    make_settings: Callable[..., Settings], entry: str
) -> None:
    waits: list[float] = []
    settings = make_settings(hf_endpoint="http://127.0.0.1:1")
    with pytest.raises(DownloadError, match="could not be reached"):
        resolve(understand(entry, settings, NO_TOKENS), settings, sleep=waits.append)
    assert waits == [1.0, 4.0]


def test_what_cannot_pass_is_asked_once(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(hf_endpoint="http://127.0.0.1:1")
    waits: list[float] = []
    with pytest.raises(DownloadError, match="cannot be the name of a repo"):
        resolve(understand("me/a--b", settings, NO_TOKENS), settings, sleep=waits.append)
    assert waits == []


@pytest.mark.parametrize(("status", "words"), [(401, "not public"), (404, "not found"), (200, "a web page")])
def test_a_refusal(server: FileServer, settings: Settings, status: int, words: str) -> None:
    url = server.put("/a.safetensors", b"<html>", status=status, headers={"Content-Type": "text/html"})
    with pytest.raises(DownloadError, match=words):
        ask(url, settings)
    assert len(server.seen) == 1


def test_a_private_address_is_not_asked(storage: StorageStandin, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(allow_private_urls=False)
    for entry in (storage.put("/a.safetensors", FILE), "http://169.254.169.254/a.safetensors"):
        with pytest.raises(DownloadError, match="not a public internet address"):
            ask(entry, settings)
    mirrors = make_settings(allow_private_urls=False, hf_endpoint=storage.url, civitai_endpoint=storage.url + "/c")
    for entry in ("hf://me/repo/a.safetensors", "me/repo", "https://civitai.com/models/1"):
        with pytest.raises(DownloadError, match="not a public internet address"):
            ask(entry, mirrors)
    assert storage.seen == []


def test_a_secret_in_a_query_is_in_no_traceback(storage: StorageStandin, settings: Settings) -> None:
    storage.files.clear()
    for url in (storage.url + "/a.safetensors?sig=SECRET", "http://127.0.0.1:1/a.safetensors?sig=SECRET"):
        with pytest.raises(ComfyUIModelError) as caught:
            ask(url, settings)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)


def test_the_wrong_sha256_is_an_error_that_names_both(settings: Settings) -> None:
    from comfyui.weights.sources.resolve import _with_given_sha256

    source = understand(f"https://example.com/a.safetensors#sha256={OTHER_SHA}", settings, NO_TOKENS)
    remote = RemoteFile(source, source.url, source.url, "a.safetensors", 1, sha256(FILE), None, True)
    with pytest.raises(WeightsError) as caught:
        _with_given_sha256(remote)
    assert (caught.value.expected, caught.value.seen) == (OTHER_SHA, sha256(FILE))
    assert OTHER_SHA in str(caught.value)
    assert sha256(FILE) in str(caught.value)
