"""The receiver of a prediction's log. Cog's real server posts to it in tests/e2e/test_generate.py."""

from __future__ import annotations

import http.client
import json
import threading
from urllib.parse import urlsplit

import pytest
import requests

from comfyui.local import log_webhook as module
from comfyui.local.log_webhook import LogLines, log_webhook


def post(url: str, body: bytes) -> int:
    with requests.post(url, data=body, timeout=10) as response:
        return response.status_code


def test_each_line_is_handed_on_once_and_only_when_it_is_whole() -> None:
    heard: list[str] = []
    lines = LogLines(heard.append)
    for logs in ("one\ntw", "one\ntwo\n", "one\n", "one\ntwo\nthree"):
        lines.feed(logs)
    assert heard == ["one", "two"]
    lines.feed("one\ntwo\nthree", at_end=True)
    lines.feed("", at_end=True)
    assert heard == ["one", "two", "three"]


def test_threads_that_feed_the_same_logs_make_no_line_twice() -> None:
    heard: list[str] = []
    lines = LogLines(heard.append)
    logs = "".join(f"line {number}\n" for number in range(500))

    def work() -> None:
        for end in range(0, len(logs), 7):
            lines.feed(logs[:end])
        lines.feed(logs)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == logs.splitlines()


def test_logs_arrive_by_the_url_alone() -> None:
    heard: list[str] = []
    with log_webhook(LogLines(heard.append)) as url:
        assert urlsplit(url).hostname == "127.0.0.1"
        assert post(url, json.dumps({"id": "a", "logs": "one\n", "status": "processing"}).encode()) == 200
        for other in (url + "x", url.rsplit("/", 1)[0] + "/"):
            assert post(other, b'{"logs": "one\\nmore\\n"}') == 404
    assert heard == ["one"]


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"\xff", b"7", b"[]", b'{"logs": 7}', b'{"logs": null}', b"{}", b"[" * 5000]
)
def test_a_body_without_logs_says_nothing(body: bytes) -> None:
    heard: list[str] = []
    with log_webhook(LogLines(heard.append)) as url:
        assert post(url, body) == 200
    assert heard == []


@pytest.mark.parametrize("length", ["many", "-1", "", str(module.MAX_BODY_BYTES + 1)])
def test_a_body_that_does_not_say_how_long_it_is_or_is_too_long_is_not_read(length: str) -> None:
    with log_webhook(LogLines(lambda line: None)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.putrequest("POST", urlsplit(url).path)
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == 404
        connection.close()


def test_it_ends_with_its_block_also_when_somebody_keeps_a_connection_open() -> None:
    with log_webhook(LogLines(lambda line: None)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.connect()
    with pytest.raises(requests.ConnectionError):
        post(url, b"{}")
    connection.close()
    assert "log-webhook" not in [thread.name for thread in threading.enumerate()]
